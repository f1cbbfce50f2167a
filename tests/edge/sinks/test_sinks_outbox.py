"""What has not arrived waits on the disk: over restarts, in order, bounded, and counted by its acknowledgement."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes import BOUND_S, until
from outcomes import LABELS, outcome, record

from edge.sinks import Sinks, delivery
from edge.sinks.delivery import BufferedSink
from edge.spool import SpoolConfig
from edge.spool.store import SpoolStore


class Far:
    """A transport whose other end is there, or not; `gate` holds it up in the middle of a call."""

    kind = "far"
    most, gather_s = 20, 0.0

    def __init__(self, is_there: bool = True, name: str = "over there") -> None:
        self.name = name
        self.is_there = is_there
        self.gate = threading.Event()
        self.gate.set()
        self.ids: list[str] = []
        self.n_calls = 0

    def send(self, records: Sequence[dict[str, Any]]) -> None:
        self.n_calls += 1
        assert self.gate.wait(BOUND_S)
        if not self.is_there:
            raise ConnectionRefusedError(111, "Connection refused")
        self.ids += [one.get("id", "event") for one in records]

    def close(self) -> None:
        pass


def opened(folder: Path) -> SpoolStore:
    return SpoolStore(SpoolConfig(folder / "spool.db", max_bytes=4_000_000, sync="normal"), [].append)


def sink(far: Far, store: SpoolStore, **options: Any) -> BufferedSink:
    return BufferedSink(far, first_wait_s=0.005, most_wait_s=0.01, outbox=store, **{"flush_s": 0.0, **options})


def names(first: int, last: int) -> list[str]:
    return [f"x{number}" for number in range(first, last)]


def test_what_had_not_arrived_is_sent_after_a_restart_in_its_order(tmp_path):
    store, far = opened(tmp_path), Far(is_there=False)
    sinks = Sinks([sink(far, store)], LABELS)
    for name in names(0, 50):
        sinks.write(outcome(name))
    sinks.close()
    assert sinks.health()[0].dropped == 0
    store.close()
    store, far = opened(tmp_path), Far()
    sinks = Sinks([sink(far, store)], LABELS)
    for name in names(50, 60):
        sinks.write(outcome(name))
    until(lambda: len(far.ids) == 60)
    assert far.ids == names(0, 60)
    sinks.close()
    assert store.outbox_count("far") == 0
    store.close()


def test_what_was_stored_and_not_closed_properly_is_sent_again_too(tmp_path):
    store, far = opened(tmp_path), Far(is_there=False)
    writer = sink(far, store)
    for name in names(0, 5):
        writer.write(record(name))
    writer.commit()
    store._file_lock.close()  # as the end of its process would
    again, here = opened(tmp_path), Far()
    other = sink(here, again)
    until(lambda: here.ids == names(0, 5))
    other.close()
    writer.close()
    assert again.outbox_count("far") == 0
    again.close()
    store.close()


def test_what_arrives_at_once_never_comes_to_the_disk(tmp_path):
    store, far = opened(tmp_path), Far()
    writer = sink(far, store)
    for name in names(0, 30):
        writer.write(record(name))
    until(lambda: len(far.ids) == 30 and not writer.queued)
    writer.commit()
    writer.close()
    found = store._open_table.db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'outbox'").fetchone()
    assert found is None
    store.close()


def test_more_than_memory_takes_are_read_from_the_disk_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(delivery, "IN_MEMORY", 30)
    store, far = opened(tmp_path), Far(is_there=False)
    writer = sink(far, store)
    for start in range(0, 200, 50):
        for name in names(start, start + 50):
            writer.write(record(name))
        writer.commit()
    assert len(writer._waiting) + len(writer._sending) <= 60
    assert writer.queued == 200
    far.is_there = True
    for name in names(200, 210):
        writer.write(record(name))
    until(lambda: len(far.ids) >= 210)
    assert far.ids == names(0, 210)
    writer.close()
    assert store.outbox_count("far") == 0
    store.close()


@pytest.mark.parametrize("drop", ["oldest", "newest"])
def test_beyond_the_bound_the_chosen_ones_are_dropped_and_counted(tmp_path, monkeypatch, drop):
    monkeypatch.setattr(delivery, "IN_MEMORY", 8)
    store, far = opened(tmp_path), Far(is_there=False)
    writer = sink(far, store, max_queued=20, drop=drop)
    writer.write(record("first"))
    until(lambda: far.n_calls)  # being sent: it is not dropped
    for number, name in enumerate(names(0, 50)):
        writer.write(record(name))
        if number % 7 == 0:
            writer.commit()
    assert writer.dropped == 30
    writer.commit()
    assert store.outbox_count("far") >= 20
    far.is_there = True
    until(lambda: not writer.queued)
    assert far.ids == ["first", *(names(30, 50) if drop == "oldest" else names(0, 20))]
    writer.close()
    assert store.outbox_count("far") == 0
    store.close()


def test_a_disk_that_fails_costs_nothing_as_long_as_the_process_lives(tmp_path, monkeypatch):
    store, far = opened(tmp_path), Far(is_there=False)
    writer = sink(far, store, flush_s=BOUND_S)
    monkeypatch.setattr(store, "update_outbox", lambda *_: None)
    for name in names(0, 10):
        writer.write(record(name))
    writer.commit()
    far.is_there = True
    writer.close()
    assert far.ids == names(0, 10)
    assert writer.dropped == 0
    store.close()


def test_what_waits_for_a_sink_that_is_gone_is_dropped(tmp_path):
    store = opened(tmp_path)
    store.update_outbox("mqtt-1", [], [record("a"), record("b")])
    store.update_outbox("webhook-1", [], [record("c")])
    assert store.keep_outboxes(["webhook-1", "jsonlines-1"]) == 2
    assert (store.outbox_count("mqtt-1"), store.outbox_count("webhook-1")) == (0, 1)
    store.close()


def test_writers_and_the_group_in_turn_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(delivery, "IN_MEMORY", 16)
    store, far = opened(tmp_path), Far()
    sinks = Sinks([sink(far, store, flush_s=BOUND_S)], LABELS, commit_s=0.002, commit_count=7)
    for number, name in enumerate(names(0, 2000)):
        sinks.write(outcome(name))
        if number % 500 == 250:
            far.is_there = not far.is_there
    far.is_there = True
    until(lambda: len(far.ids) >= 2000)
    assert [one for one in far.ids if one != "event"] == names(0, 2000)
    sinks.close()
    assert store.outbox_count("far") == 0
    store.close()
