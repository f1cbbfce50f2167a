"""Several sinks at once: one that fails, or is away, stops neither the others nor the agent."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from fakes import BOUND_S, until
from hypothesis import given
from hypothesis import strategies as st
from outcomes import LABELS, outcome

from edge.sinks import Event, Sinks
from edge.sinks.delivery import BufferedSink, PermanentFailure


class Place:
    """A quick writer whose disk may be full."""

    def __init__(self, name: str = "place") -> None:
        self.name, self.kind = name, "memory"
        self.is_full = False
        self.records: list[dict[str, Any]] = []

    def write(self, record: dict[str, Any]) -> None:
        if self.is_full:
            raise OSError(28, "No space left on device", self.name)
        self.records.append(record)

    def missing(self, keys: Sequence[str]) -> Sequence[str]:
        return keys

    def close(self) -> None:
        self.is_closed = True

    @property
    def ids(self) -> list[str]:
        return [record["id"] for record in self.records if "id" in record]

    @property
    def events(self) -> list[dict[str, Any]]:
        return [record for record in self.records if "event" in record]


class Far:
    """A carrier whose other end is there, or not, as the test says; `gate` holds it up in the middle of a call."""

    kind = "far"

    def __init__(self, most: int = 1, gather_s: float = 0.0, error: Exception | None = None) -> None:
        self.name, self.most, self.gather_s = "over there", most, gather_s
        self.error = error
        self.gate = threading.Event()
        self.gate.set()
        self.sent: list[list[str]] = []
        self.n_calls = 0
        self.is_closed = False

    def send(self, records: Sequence[dict[str, Any]]) -> None:
        self.n_calls += 1
        assert self.gate.wait(BOUND_S)
        if self.error is not None:
            raise self.error
        self.sent.append([record.get("id", "event") for record in records])

    def close(self) -> None:
        self.is_closed = True

    @property
    def ids(self) -> list[str]:
        return [name for together in self.sent for name in together]


def queued(far: Far, **options: Any) -> BufferedSink:
    return BufferedSink(far, first_wait_s=0.005, **{"flush_s": 5.0, **options})


def test_each_gets_every_record_in_order():
    places, far = [Place(), Place()], Far()
    sinks = Sinks([*places, queued(far)], LABELS)
    for number in range(20):
        sinks.write(outcome(f"x{number}"))
    sinks.write_event(Event("drift"))
    sinks.close()
    expected = [f"x{number}" for number in range(20)]
    assert [place.ids for place in places] == [expected, expected]
    assert far.ids == [*expected, "event"]
    assert [status.written for status in sinks.health()] == [21, 21, 21]
    assert all(place.is_closed for place in places)
    assert far.is_closed


def test_one_that_fails_is_told_of_once_and_again_when_it_is_back(logged):
    good, bad = Place("good"), Place("bad")
    sinks = Sinks([bad, good], LABELS)
    sinks.write(outcome("a"))
    bad.is_full = True
    for name in "bcd":
        sinks.write(outcome(name))
    (first, second) = sinks.health()
    assert (first.written, first.dropped, first.last_error) == (1, 3, "bad: No space left on device")
    assert first.failing_since is not None
    assert (second.written, second.dropped, second.failing_since) == (5, 0, None)
    bad.is_full = False
    sinks.write(outcome("e"))
    assert bad.ids == ["a", "e"]
    assert good.ids == list("abcde")
    assert [(event["event"], event["sink"], event["state"]) for event in good.events] == [
        ("sink", "bad", "failing"),
        ("sink", "bad", "back"),
    ]
    assert good.events[1]["dropped"] == 3
    assert sinks.health()[0].failing_since is None
    assert logged[0] == "warning: sink memory bad fails: bad: No space left on device"
    assert logged[1].startswith("sink memory bad works again, after ")
    assert logged[1].endswith("; 3 records lost to it")
    assert len(logged) == 2


def test_where_every_sink_fails_a_record_waits_until_one_takes_it_and_is_not_lost(logged):
    place = Place("disk")
    place.is_full = True
    sinks, waits = Sinks([place], LABELS), []

    def waits_after(error: OSError) -> bool:
        waits.append(error.errno)
        place.is_full = len(waits) < 3
        return True

    sinks.waits_after = waits_after
    sinks.write(outcome())
    assert waits == [28, 28, 28]
    assert len(place.ids) == 1
    assert (sinks.health()[0].written, sinks.health()[0].dropped) == (1, 0)
    assert logged[0] == "warning: sink memory disk fails: disk: No space left on device"
    assert logged[1].startswith("sink memory disk works again, after ")
    assert len(logged) == 2
    place.is_full = True
    sinks.waits_after = lambda error: False
    with pytest.raises(OSError, match="No space left"):
        sinks.write(outcome())
    assert (len(place.ids), sinks.health()[0].dropped) == (1, 1)


@pytest.mark.parametrize("n_more", [0, 1])
def test_where_no_quick_writer_is_left_the_agent_hears_of_it(n_more, logged):
    places = [Place() for _ in range(1 + n_more)]
    sinks = Sinks(places, LABELS)
    for place in places[:-1]:
        place.is_full = True
        sinks.write(outcome())
    places[-1].is_full = True
    with pytest.raises(OSError, match="No space left"):
        sinks.write(outcome())
    assert len(logged) == 2 * n_more  # one alone: the agent's own last word says it


def test_a_queue_that_takes_it_is_no_place_where_it_arrived():
    place, far = Place(), Far()
    sinks = Sinks([place, queued(far)], LABELS)
    place.is_full = True
    with pytest.raises(OSError, match="No space left"):
        sinks.write(outcome())
    sinks.close()


def test_a_slow_writer_holds_up_nobody_and_loses_the_oldest(logged):
    far, place = Far(), Place()
    slow = queued(far, max_queued=10)
    sinks = Sinks([slow, place], LABELS)
    far.gate.clear()
    sinks.write(outcome("first"))
    until(lambda: far.n_calls == 1)  # in hand, and held up
    started = time.perf_counter()
    for number in range(30):
        sinks.write(outcome(f"x{number}"))
    assert time.perf_counter() - started < 1.0  # the gate is still shut
    assert place.ids == ["first", *(f"x{number}" for number in range(30))]
    assert logged == ["warning: sink far over there: 10 records wait, and the oldest are dropped"]
    assert [event["state"] for event in place.events] == ["full"]
    assert (sinks.health()[0].queued, sinks.health()[0].dropped) == (11, 20)
    far.gate.set()
    sinks.close()
    assert far.ids == ["first", *(f"x{number}" for number in range(20, 30))]


def test_what_is_away_is_tried_again_until_it_is_back_and_nothing_is_lost(logged):
    far, place = Far(error=ConnectionRefusedError(111, "Connection refused")), Place()
    sinks = Sinks([queued(far), place], LABELS)
    for number in range(5):
        sinks.write(outcome(f"x{number}"))
    until(lambda: far.n_calls >= 3)
    assert sinks.health()[0].failing_since is not None
    far.error = None
    until(lambda: sinks.health()[0].failing_since is None)
    sinks.close()
    assert far.ids[:5] == [f"x{number}" for number in range(5)]
    assert [event["state"] for event in place.events] == ["failing", "back"]
    assert [line.split(":")[0] for line in logged] == [
        "warning",
        f"sink far over there works again, after {place.events[1]['away_s']:.1f} s",
    ]


def test_what_is_refused_is_not_sent_again(logged):
    far, place = Far(error=PermanentFailure("HTTP 400 Bad Request")), Place()
    sinks = Sinks([queued(far), place], LABELS)
    for number in range(3):
        sinks.write(outcome(f"x{number}"))
    until(lambda: sinks.health()[0].dropped == 3)
    assert far.n_calls == 3
    assert logged == ["warning: sink far over there fails: HTTP 400 Bad Request"]
    far.error = None
    sinks.write(outcome("good"))
    sinks.close()
    assert far.ids == ["good"]


def test_records_go_together_up_to_so_many():
    far = Far(most=4)
    writer = queued(far)
    far.gate.clear()
    writer.write({"id": "first"})
    until(lambda: far.n_calls == 1)
    for number in range(9):
        writer.write({"id": f"x{number}"})
    far.gate.set()
    writer.close()
    assert [len(together) for together in far.sent] == [1, 4, 4, 1]


def test_a_few_wait_for_company_but_not_for_ever():
    far = Far(most=4, gather_s=0.05)
    writer = queued(far)
    for number in range(3):
        writer.write({"id": f"x{number}"})
    until(lambda: far.sent)
    assert far.sent == [["x0", "x1", "x2"]]
    writer.close()


def test_the_other_end_says_when_to_come_again():
    error = OSError("busy")
    error.retry_after_s = 0.3  # type: ignore[attr-defined]
    far = Far(error=error)
    writer = queued(far)
    started = time.monotonic()
    writer.write({"id": "x"})
    until(lambda: far.n_calls == 2)
    assert time.monotonic() - started >= 0.3
    far.error = None
    writer.close()


def test_closing_delivers_what_waits():
    far = Far()
    writer = queued(far)
    for number in range(500):
        writer.write({"id": f"x{number}"})
    writer.close()
    assert len(far.ids) == 500


def test_closing_waits_no_longer_than_it_may_and_says_what_was_lost(logged):
    far = Far(error=OSError("away"))
    sinks = Sinks([queued(far, flush_s=0.1), Place()], LABELS)
    for number in range(3):
        sinks.write(outcome(f"x{number}"))
    started = time.monotonic()
    sinks.close()
    assert time.monotonic() - started < 20
    assert logged[-1] == "warning: sink far over there: 3 records not delivered"
    assert sinks.health()[0].dropped == 3


def test_closing_does_not_wait_for_a_call_that_hangs(logged):
    far = Far()
    far.gate.clear()
    sinks = Sinks([queued(far, flush_s=0.05)], LABELS)
    sinks.write(outcome())
    until(lambda: far.n_calls == 1)
    sinks.close()
    assert logged == ["warning: sink far over there: 1 record not delivered"]
    far.gate.set()


def test_one_that_is_back_while_the_agent_ends_still_gets_its_records():
    far = Far(error=OSError("away"))
    writer = BufferedSink(far, first_wait_s=0.02, flush_s=BOUND_S)
    writer.write({"id": "x"})
    until(lambda: far.n_calls >= 4)
    writer.begin_close()
    far.error = None
    writer.close()
    assert far.ids == ["x"]
    assert writer.dropped == 0


@given(steps=st.lists(st.sampled_from(["write", "good", "full"]), max_size=40))
def test_every_record_is_written_or_counted_as_dropped(steps):
    sometimes, always = Place(), Place()
    sinks = Sinks([sometimes, always], LABELS)
    for number, step in enumerate(steps):
        if step == "write":
            sinks.write(outcome(f"x{number}"))
        else:
            sometimes.is_full = step == "full"
    (first, second) = sinks.health()
    n_written = Counter(steps)["write"]
    assert len(always.ids) == n_written
    assert len(sometimes.ids) + first.dropped == n_written
    assert (first.written, second.written) == (len(sometimes.records), len(always.records))
    n_outages = sum(event["state"] == "failing" for event in always.events)
    assert n_outages - sum(event["state"] == "back" for event in always.events) in (0, 1)
    if first.dropped == 0:
        assert always.events == []
