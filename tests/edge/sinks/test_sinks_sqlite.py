"""Decisions in SQLite: readable meanwhile, corrected once, bounded."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outcomes import LABELS, outcome, record

from coe.cascade import ConfigError
from edge.sinks import Event, Outcome, SinkConfig, Sinks, open_sinks, sqlite
from edge.sinks.sqlite import SqliteWriter


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "decisions.db"


def rows(path: Path, query: str = "SELECT * FROM decisions ORDER BY seq") -> list[dict[str, Any]]:
    """As another program reads it."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=0)) as reader:
        reader.row_factory = sqlite3.Row
        return [dict(row) for row in reader.execute(query)]


def test_others_read_each_decision_as_soon_as_it_is_made(path):
    sinks = open_sinks([SinkConfig("sqlite", path)], LABELS)
    for number in range(3):
        sinks.write(outcome(f"x{number}"))
        assert [row["id"] for row in rows(path)] == [f"x{at}" for at in range(number + 1)]
    sinks.write(Outcome("bad", None, 0.5, None, "cannot be read", at=17.0))
    sinks.write_event(Event("drift", {"share": 0.3}, at=18.0))
    good, bad = rows(path)[2:]
    assert {key: good[key] for key in ("label", "name", "exit_tier", "vote", "score", "degraded", "truth")} == {
        "label": 1, "name": "one", "exit_tier": 1, "vote": 0.666667, "score": 0.5, "degraded": None, "truth": 1,
    }  # fmt: skip
    assert json.loads(good["record"]) == record("x2")
    assert (bad["label"], bad["error"], bad["at"]) == (None, "cannot be read", 17.0)
    (event,) = rows(path, "SELECT * FROM events")
    assert (event["kind"], event["at"], json.loads(event["record"])["share"]) == ("drift", 18.0, 0.3)
    sinks.close()


@pytest.mark.parametrize("name", ["bad\udcff.png", "\ud800", "new\nline.png", "a\0b", "ümläut 日本.png"])
def test_any_name_that_a_file_can_have_is_a_row(path, name):
    writer = SqliteWriter(path)
    writer.write(record(name, truth=10**30, spooled="k1", degraded=f"timeout: {name}"))
    writer.write(record(name, corrects="k1", label=2))
    (row,) = rows(path)
    assert row["id"] == name.encode("utf-8", "backslashreplace").decode()
    assert json.loads(row["first"])["id"] == json.loads(row["record"])["id"] == name
    assert [found["id"] for found in writer.since("")] == [name, name]
    assert row["truth"] == 1e30  # a column of whole numbers; `record` has it as it was
    writer.close()


def test_a_late_answer_takes_the_place_of_the_one_it_corrects_once(path):
    writer = SqliteWriter(path)
    writer.write(record("a", spooled="k1", degraded="timeout: late"))
    writer.write(record("b", spooled="k2", degraded="timeout: late"))
    late = record("a", label=2, exit_tier=2, corrects="k1", truth=None)
    for again in (late, {**late, "label": 0}):
        writer.write(again)
    first, second = rows(path)
    assert (first["label"], first["name"], first["exit_tier"], first["degraded"]) == (2, "two", 2, None)
    assert (first["corrects"], first["corrected_at"], first["truth"]) == ("k1", late["at"], 1)
    assert json.loads(first["first"])["degraded"] == "timeout: late"
    assert (second["label"], second["degraded"], second["first"]) == (1, "timeout: late", None)
    writer.close()


def test_a_late_answer_whose_example_is_not_there_has_a_row_of_its_own_once(path):
    writer = SqliteWriter(path)
    for _ in range(2):
        writer.write(record("a", label=2, corrects="k1"))
    assert [(row["id"], row["corrects"]) for row in rows(path)] == [("a", "k1")]
    writer.close()


def test_after_a_crash_it_says_what_it_has(path):
    writer = SqliteWriter(path)
    mark = writer.mark()
    writer.write(record("a", spooled="k1"))
    writer.close()
    writer = SqliteWriter(path)
    middle = writer.mark()
    writer.write(record("a", corrects="k1"))
    writer.write(record("b"))
    writer.sync()
    assert set(writer.missing(["k1", "k2"])) == {"k2"}
    assert [(told["id"], told.get("corrects")) for told in writer.since(mark)] == [
        ("a", None),
        ("a", "k1"),
        ("b", None),
    ]
    assert [told["id"] for told in writer.since(middle)] == ["b"]
    assert len(list(writer.since("no mark of ours"))) == 3
    writer.close()


@settings(max_examples=20)
@given(n=st.integers(0, 40), max_rows=st.integers(1, 20), every=st.integers(1, 9))
def test_it_keeps_the_newest_rows_and_few_more(tmp_path_factory, n, max_rows, every):
    path = tmp_path_factory.mktemp("sink") / "decisions.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite, "PRUNE_EVERY", every)
        writer = SqliteWriter(path, max_rows)
        for number in range(n):
            writer.write({"id": f"x{number}"})
        writer.close()
    kept = [row["id"] for row in rows(path)]
    assert kept == [f"x{number}" for number in range(n)][len(kept) * -1 :] * bool(kept)
    assert min(n, max_rows) <= len(kept) <= max_rows + every


def test_a_full_disk_is_an_error_and_what_was_written_stays(path):
    writer = SqliteWriter(path)
    writer.write(record("a"))
    (n_pages,) = writer._db.execute("PRAGMA page_count").fetchone()
    writer._db.execute(f"PRAGMA max_page_count = {n_pages}")
    with pytest.raises(OSError, match="full") as caught:
        writer.write({"id": "b", "fill": "x" * 100_000})
    assert (caught.value.errno, caught.value.filename) == (28, str(path))
    writer._db.execute("PRAGMA max_page_count = 1000000")
    writer.write(record("c"))
    assert [row["id"] for row in rows(path)] == ["a", "c"]
    writer.close()


def test_somebody_who_holds_the_file_is_waited_for_a_moment_only(path):
    writer = SqliteWriter(path)
    sinks = Sinks([writer, SqliteWriter(path.with_name("other.db"))], LABELS)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        sinks.write(outcome("a"))
        assert "locked" in sinks.health()[0].last_error
        other.execute("COMMIT")
    sinks.write(outcome("b"))
    assert [row["id"] for row in rows(path)] == ["b"]
    assert [status.dropped for status in sinks.health()] == [1, 0]
    sinks.close()


def test_a_database_of_another_program_is_left_alone(path):
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE photos (id)")
    with pytest.raises(
        ConfigError, match=r"sink\.path: .*decisions\.db cannot be written: it is a database of another"
    ):
        open_sinks([SinkConfig("sqlite", path)], LABELS)


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(OSError, match=r"unable to open database file: .*decisions\.db"):
        open_sinks([SinkConfig("sqlite", tmp_path / "nowhere" / "decisions.db")], LABELS)
