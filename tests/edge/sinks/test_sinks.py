"""Where decisions go; the order restored; the live line; the tally's words."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import sqlite3
import time
from contextlib import closing

import pytest
from fakes import until
from hypothesis import given
from hypothesis import strategies as st

from coe.cascade import CallCost, Decision
from edge.sinks import Outcome, ReorderBuffer, SinkConfig, Sinks, as_record, delivery, open_sinks
from edge.sinks.jsonlines import JsonLinesStream
from edge.sinks.sqlite import SqliteWriter
from edge.tally import LiveLine, Tally, format_bytes

LABELS = ("zero", "one", "two")


def decision(**changes: object) -> Decision:
    fields: dict[str, object] = {
        "id": "x",
        "label": 1,
        "exit_tier": 1,
        "vote": 2 / 3,
        "score": 0.5,
        "asked": 3,
        "n_members": 3,
        "tier_votes": (2 / 3,),
        "tier_times_s": (0.001,),
    }
    return Decision(**(fields | changes))  # type: ignore[arg-type]


def outcome(name: str = "x", **changes: object) -> Outcome:
    return Outcome(name, decision(id=name, **changes), 0.002, 1, at=1700000000.0)


def test_a_record_says_all_there_is_to_say():
    record = as_record(outcome(call=CallCost(bytes_sent=100), degraded="timeout: late"), LABELS)
    assert record == {
        "id": "x",
        "label": 1,
        "name": "one",
        "exit_tier": 1,
        "vote": 0.666667,
        "score": 0.5,
        "asked": 3,
        "members": 3,
        "tier_votes": [0.666667],
        "tier_times_s": [0.001],
        "degraded": "timeout: late",
        "call": {"bytes_sent": 100},
        "truth": 1,
        "latency_s": 0.002,
        "at": 1700000000.0,
    }


def test_an_outcome_without_a_decision_has_its_error_in_place():
    record = as_record(Outcome("x", None, 0.0, None, "cannot be read", at=17.0), LABELS)
    assert record == {"id": "x", "error": "cannot be read", "latency_s": 0.0, "at": 17.0}


def test_a_score_that_is_not_known_is_null_so_that_every_line_is_json():
    stream = io.StringIO()
    Sinks([JsonLinesStream(stream)], LABELS).write(outcome(score=math.nan))
    assert json.loads(stream.getvalue(), parse_constant=pytest.fail)["score"] is None


def test_each_line_is_flushed_as_it_is_written():
    flushed = []

    class Stream(io.StringIO):
        def flush(self) -> None:
            flushed.append(self.getvalue().count("\n"))

    sink = Sinks([JsonLinesStream(Stream())], LABELS)
    sink.write(outcome("a"))
    sink.write(Outcome("b \u2028\n", None, 0.0, error="né\ud800"))
    assert flushed[:2] == [1, 2]


def test_a_sink_on_a_file_appends_and_closes_it(tmp_path):
    path = tmp_path / "decisions.jsonl"
    for name in ("a", "b"):
        sink = open_sinks([SinkConfig(path=path)], LABELS)
        sink.write(outcome(name))
        sink.close()
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["a", "b"]


def test_where_no_sink_can_be_opened_that_is_an_error(tmp_path):
    with pytest.raises(OSError, match=r"No such file or directory: .*decisions\.jsonl"):
        open_sinks([SinkConfig(path=tmp_path / "nowhere" / "decisions.jsonl")], LABELS)


@pytest.mark.parametrize("kind", ["jsonlines", "sqlite"])
def test_a_sink_that_cannot_be_opened_yet_stops_no_other_and_is_opened_later(tmp_path, monkeypatch, logged, kind):
    monkeypatch.setattr(delivery, "FIRST_WAIT_S", 0.0)
    late = tmp_path / "disk" / "late"
    sinks = open_sinks([SinkConfig(kind, path=late), SinkConfig(path=tmp_path / "here.jsonl")], LABELS)
    for name in ("a", "b"):
        sinks.write(outcome(name))
    assert [health.dropped for health in sinks.health()] == [2, 0]
    late.parent.mkdir()  # as if it were mounted
    sinks.write(outcome("c"))
    sinks.close()
    assert [health.written for health in sinks.health()] == [1, 5]  # two of them say that the other fails, and works
    assert [line.removeprefix("warning: ").split(" ")[:3] for line in logged] == [["sink", kind, str(late)]] * 2
    assert late.stat().st_size > 0


def test_a_damaged_database_is_set_aside_and_a_new_one_begun(tmp_path, logged):
    path = tmp_path / "out.db"
    path.write_bytes(b"not a database, but a text of some length" * 100)
    sinks = open_sinks([SinkConfig("sqlite", path=path)], LABELS)
    sinks.write(outcome("a"))
    sinks.close()
    (aside,) = tmp_path.glob("out.db.damaged-*")
    assert logged == [f"warning: {path} was damaged: a new one is begun, the old one is now {aside}"]
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM decisions").fetchone() == (1,)


def test_a_database_that_is_damaged_while_it_is_used_costs_no_later_decision(tmp_path, monkeypatch, logged):
    sinks = open_sinks([SinkConfig("sqlite", path=tmp_path / "out.db"), SinkConfig(path=tmp_path / "o.jsonl")], LABELS)
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    monkeypatch.setattr(SqliteWriter, "_put", lambda *_: (_ for _ in ()).throw(error))
    sinks.write(outcome("a"))
    assert sinks.health()[0].failing_since is not None
    monkeypatch.undo()
    sinks.write(outcome("b"))
    assert sinks.health()[0].failing_since is None
    sinks.close()
    with closing(sqlite3.connect(tmp_path / "out.db")) as db:
        assert db.execute("SELECT count(*) FROM decisions").fetchone() == (2,)


@given(order=st.permutations(range(7)))
def test_the_order_is_restored_whatever_the_order_of_arrival(order):
    reorder: ReorderBuffer[str] = ReorderBuffer()
    given: list[str] = []
    for number in order:
        given += reorder.take(number, f"x{number}")
        arrived = set(order[: order.index(number) + 1])
        ready = next(count for count in itertools.count() if count not in arrived)
        assert len(given) == ready  # nothing waits longer than it must
    assert given == [f"x{number}" for number in range(7)]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_live_line_is_rewritten_on_a_terminal_and_gone_at_the_end():
    stream, words = Terminal(), itertools.count()
    with LiveLine(lambda: f"turn {next(words)}", stream, every_s=0.005):
        until(lambda: "turn 3" in stream.getvalue())
    assert "\n" not in stream.getvalue()
    assert stream.getvalue().startswith("\r\x1b[Kturn 0\r\x1b[Kturn 1")
    assert stream.getvalue().endswith("\r\x1b[K")


def test_the_live_line_fits_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    stream = Terminal()
    with LiveLine(lambda: "x" * 500, stream, every_s=0.005):
        until(lambda: "x" in stream.getvalue())
    assert "x" * 19 in stream.getvalue()
    assert "x" * 20 not in stream.getvalue()


def test_where_there_is_no_terminal_nothing_is_shown():
    stream = io.StringIO()
    with LiveLine(lambda: pytest.fail("asked"), stream, every_s=0.001):
        time.sleep(0.02)
    assert stream.getvalue() == ""


def test_the_tally_counts_and_says_what_it_counted():
    tally = Tally()
    assert "0 examples" in tally.line()
    assert tally.summary()[0] == "0 examples, 0 decided (none)"
    tally.add(outcome())
    tally.add(outcome(exit_tier=2, label=2, call=CallCost(1, bytes_sent=1500, bytes_received=250)))
    tally.add(outcome(degraded="timeout: late"))
    tally.add(Outcome("x", None, 0.0, 1, "cannot be read"))
    assert tally.kept_share == pytest.approx(1 / 4)
    assert tally.line() == "4 examples  25% kept on the device  1.5 kB sent  2 ms mean  cloud timeout"
    assert tally.summary() == [
        "4 examples, 3 decided (tier 1: 2, tier 2: 1)",
        "25.0% kept on the device; 1.5 kB sent, 250 B received in 1 calls",
        "mean latency 2 ms",
        "accuracy 66.67% of 3 with a known label",
        "1 degraded: a tier gave no answer, or the example may not leave, so the tier before it answered",
        "1 without a decision: their records say why",
    ]


@pytest.mark.parametrize(("n", "text"), [(0, "0 B"), (812, "812 B"), (12_340, "12.3 kB"), (4_500_000, "4.5 MB")])
def test_bytes_are_written_as_people_do(n, text):
    assert format_bytes(n) == text


def test_standard_output_whose_reader_has_ended_fails_from_then_on():
    """It fails as another sink would: BrokenPipeError ends a program as if its work were done."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        sinks = Sinks([JsonLinesStream(stream)], LABELS)
        for _ in range(3):
            with pytest.raises(OSError, match="the program that read it has ended: 'standard output'") as raised:
                sinks.write(outcome())
            assert not isinstance(raised.value, BrokenPipeError)
