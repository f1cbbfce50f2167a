"""The spool's file: nothing leaves it uncounted, its bounds hold after every step, and it survives its disk."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from spools import MB, Clock, better, example, fill, finish, local, opened, put

from coe.cascade import ConfigError
from edge.sinks import Event
from edge.sources import Example
from edge.spool.database import size_of
from edge.spool.store import SpoolStore, read_status
from edge.sqlite_file import read_only

# One example's way


@pytest.mark.parametrize("name", ["a.png", "a\ud800/b\n", ""])
def test_an_example_comes_back_as_it_was_put_with_the_outcome_it_had(tmp_path, name):
    store = opened(tmp_path)
    (key,) = put(store, name)
    store.close()
    store = opened(tmp_path)
    row = store.next()
    assert row is not None
    assert row.example == example(name)
    assert row.local == replace(local(name), spooled=key, at=row.local.at)
    store.close()


def test_an_array_comes_back_as_it_was(tmp_path):
    store = opened(tmp_path)
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    store.confirm(store.put(Example("a", pixels), local("a")))
    row = store.next()
    assert row is not None
    assert isinstance(row.example.value, np.ndarray)
    assert row.example.value.dtype == np.uint8
    assert row.example.value.tolist() == pixels.tolist()
    store.close()


def test_the_same_example_put_twice_is_one_and_another_content_is_another(tmp_path):
    store = opened(tmp_path)
    one = store.put(example("a"), local("a"))
    assert store.put(example("a"), local("a")) == one
    assert store.put(example("a", size=500), local("a")) not in ("", one)
    status = store.status()
    assert status is not None
    assert (status.n_waiting, status.n_offered) == (2, 2)
    store.close()


def test_a_key_is_never_given_again(tmp_path):
    store = opened(tmp_path)
    keys = set(put(store, "a"))
    finish(store)
    store.close()
    store = opened(tmp_path)
    keys |= set(put(store, "a"))
    store.clear()
    keys |= set(put(store, "a"))
    store.close()
    (tmp_path / "spool.db").unlink()
    store = opened(tmp_path)
    keys |= set(put(store, "a"))
    store.close()
    assert len(keys) == 4


def test_an_example_whose_first_outcome_is_not_in_the_sink_yet_waits_for_it(tmp_path):
    store = opened(tmp_path)
    key = store.put(example("a"), local("a"))
    assert store.next() is None
    store.confirm(key)
    assert store.next() is not None
    store.close()


def test_what_a_killed_agent_had_not_confirmed_is_known_to_the_next(tmp_path):
    store = opened(tmp_path)
    store.confirm(store.put(example("sure"), local("sure")))
    store.put(example("unsure"), local("unsure"))  # whose transaction writes the confirmation before it
    store._file_lock.close()  # as the end of its process would
    store = opened(tmp_path)
    (row,) = store.unsure()
    assert row.local.id == "unsure"
    assert finish(store) == "sure"
    assert store.next() is None
    store.confirm(row.key)
    assert finish(store) == "unsure"
    store.close()


def test_an_answer_is_in_the_file_until_it_is_known_to_be_in_the_sink(tmp_path):
    store = opened(tmp_path)
    put(store, "a")
    row = store.next()
    assert row is not None
    assert store.answer(row, better(row))
    store.close()
    store = opened(tmp_path)
    assert store.next() is None
    (again,) = store.answered()
    assert again.answer == better(row) or replace(again.answer, at=0.0) == replace(better(row), at=0.0)
    assert store.gone(again)
    assert store.answered() == []
    status = store.status()
    assert status is not None
    assert (status.n_corrected, status.n_waiting, status.n_answered) == (1, 0, 0)
    store.close()


@pytest.mark.parametrize(("order", "expected"), [("oldest", "abc"), ("newest", "cba")])
def test_turns_are_by_age_and_those_asked_about_before_come_after_the_others(tmp_path, order, expected):
    store = opened(tmp_path, order=order)
    put(store, "x", *"abc") if order == "oldest" else put(store, *"abc", "x")
    row = store.next()
    assert row is not None
    assert row.local.id == "x"
    store.put_off(row, "timeout: late")
    assert [finish(store) for _ in "abcx"] == [*expected, "x"]
    store.close()


# Bounds


def counts(store: SpoolStore) -> tuple[int, dict[str, int]]:
    status = store.status()
    assert status is not None
    return status.n_waiting, dict(status.dropped)


def test_the_oldest_is_dropped_for_one_too_many(tmp_path):
    events: list = []
    store = opened(tmp_path, events, max_count=3)
    put(store, *"abcde")
    assert counts(store) == (3, {"count": 2})
    assert [finish(store) for _ in range(3)] == ["c", "d", "e"]
    assert [event.facts for event in events] == [{"state": "full", "drops": "oldest"}]  # once
    store.close()


def test_or_the_newest_is_not_kept(tmp_path):
    store = opened(tmp_path, max_count=3, drop="newest")
    assert [bool(key) for key in put(store, *"abcde")] == [True, True, True, False, False]
    assert counts(store) == (3, {"count": 2})
    assert [finish(store) for _ in range(3)] == ["a", "b", "c"]
    store.close()


def test_what_is_answered_is_not_dropped_for_room(tmp_path):
    store = opened(tmp_path, max_count=1)
    put(store, "a")
    row = store.next()
    assert row is not None
    store.answer(row, better(row))
    assert put(store, "b") == [""]
    assert counts(store) == (0, {"count": 1})
    store.close()


def test_one_example_too_large_by_itself_is_not_kept_and_costs_no_other(tmp_path):
    store = opened(tmp_path)
    put(store, "a")
    assert store.put(example("large", size=MB // 8 + 1), local("large")) == ""
    assert counts(store) == (1, {"large": 1})
    store.close()


def test_one_that_is_not_kept_is_counted_also_when_its_agent_is_killed_just_then(tmp_path):
    store = opened(tmp_path)
    store.put(example("large", size=MB // 8 + 1), local("large"))
    store._file_lock.close()  # as the end of its process would
    store = opened(tmp_path)
    assert counts(store) == (0, {"large": 1})
    store.close()


def test_the_largest_examples_that_are_allowed_follow_each_other(tmp_path):
    store = opened(tmp_path)
    assert all(put(store, *(f"x{n}" for n in range(20)), size=MB // 8 - 10))
    n_waiting, dropped = counts(store)
    assert n_waiting >= 4
    assert dropped == {"bytes": 20 - n_waiting}
    store.close()


def test_age_is_counted_while_an_agent_runs(tmp_path):
    clock = Clock()
    store = opened(tmp_path, clock=clock, max_age_s=100.0)
    put(store, "a")
    clock.now += 60
    put(store, "b")
    store.close()
    other = Clock()
    other.now = 5.0  # another boot: its seconds begin anew
    store = opened(tmp_path, clock=other, max_age_s=100.0)
    store.tidy()
    assert counts(store) == (2, {})
    other.now += 41
    store.tidy()
    assert counts(store) == (1, {"age": 1})
    other.now += 60
    put(store, "c")
    assert counts(store) == (1, {"age": 2})
    store.close()


@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_a_jump_of_the_wall_clock_drops_nothing_and_keeps_nothing_for_good(tmp_path, monkeypatch, jump):
    import time

    clock = Clock()
    store = opened(tmp_path, clock=clock, max_age_s=100.0)
    put(store, "a")
    there = time.time() + jump
    monkeypatch.setattr(time, "time", lambda: there)
    store.tidy()
    put(store, "b")
    assert counts(store) == (2, {})
    clock.now += 101
    store.tidy()
    assert counts(store) == (0, {"age": 2})
    store.close()


def test_a_smaller_bound_holds_from_the_next_start_on(tmp_path):
    store = opened(tmp_path, max_bytes=4 * MB)
    put(store, *(f"x{n}" for n in range(60)), size=40_000)
    store.close()
    assert size_of(tmp_path / "spool.db") > 2 * MB
    store = opened(tmp_path, max_bytes=MB)
    assert size_of(tmp_path / "spool.db") <= MB
    assert finish(store) != "x0"
    store.close()


def test_a_file_that_has_been_emptied_is_small_again(tmp_path):
    store = opened(tmp_path, max_bytes=8 * MB)
    put(store, *(f"x{n}" for n in range(100)), size=40_000)
    for _ in range(100):
        finish(store)
    store.tidy()
    store.close()
    assert size_of(tmp_path / "spool.db") < 1.8 * MB  # of which half a megabyte is ballast


class Spool(RuleBasedStateMachine):
    """Any steps in any order, kills and restarts among them, against a list of what must be there."""

    @initialize(drop=st.sampled_from(["oldest", "newest"]), order=st.sampled_from(["oldest", "newest"]))
    def start(self, drop: str, order: str) -> None:
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.clock = Clock()
        self.changes = {"drop": drop, "order": order, "max_count": 12, "max_age_s": 50.0}
        self.store = opened(Path(self.folder.name), clock=self.clock, **self.changes)
        self.n_put = self.n_corrected = 0
        self.number = 0

    @rule(sizes=st.lists(st.integers(1, 150_000), min_size=1, max_size=6), confirmed=st.booleans())
    def put(self, sizes: list[int], confirmed: bool) -> None:
        for size in sizes:
            self.number += 1
            name = f"x{self.number}"
            key = self.store.put(example(name, size), local(name))
            self.n_put += 1
            if confirmed:
                self.store.confirm(key)
            self.bounds_hold()

    @rule(known=st.booleans())
    def finish(self, known: bool) -> None:
        row = self.store.next()
        if row is None:
            return
        assert self.store.answer(row, better(row))
        assert not self.store.answer(row, better(row)), "answered twice"
        if known:
            assert self.store.gone(row)
            self.n_corrected += 1

    @rule()
    def put_off(self) -> None:
        row = self.store.next()
        if row is not None:
            self.store.put_off(row, "timeout: late")

    @rule(seconds=st.integers(1, 30))
    def time_passes(self, seconds: int) -> None:
        self.clock.now += seconds
        self.store.tidy()

    @rule(killed=st.booleans())
    def restart(self, killed: bool) -> None:
        if killed:
            self.store._file_lock.close()
        else:
            self.store.close()
        self.store = opened(Path(self.folder.name), clock=self.clock, **self.changes)
        for row in self.store.answered():
            assert self.store.gone(row)
            self.n_corrected += 1
        for row in self.store.unsure():
            self.store.confirm(row.key)

    @precondition(lambda self: hasattr(self, "store"))
    @invariant()
    def bounds_hold(self) -> None:
        status = self.store.status()
        assert status is not None
        n_here = status.n_waiting + status.n_answered
        assert size_of(self.store.config.path) <= MB
        assert n_here <= 12
        assert (status.oldest_s or 0) <= 80  # a tidy is due each 30 s at most
        assert status.n_corrected == self.n_corrected
        assert self.n_put == status.n_offered == n_here + status.n_corrected + status.n_refused + status.n_dropped

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.folder.cleanup()


TestSpool = Spool.TestCase
TestSpool.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


# Who may open it


def test_a_second_agent_is_told_in_one_line_and_may_look_meanwhile(tmp_path):
    store = opened(tmp_path)
    put(store, "a")
    with pytest.raises(
        ConfigError, match=rf"^spool\.path: .*spool\.db is in use by another coe-edge, process {os.getpid()} "
    ) as told:
        opened(tmp_path)
    assert len(told.value.findings) == 1
    db = read_only(tmp_path / "spool.db")
    assert read_status(db, tmp_path / "spool.db").n_waiting == 1
    db.close()
    store.close()
    opened(tmp_path).close()


def test_a_database_of_something_else_is_left_alone(tmp_path):
    with sqlite3.connect(tmp_path / "spool.db") as db:
        db.execute("CREATE TABLE photos (id)")
    db.close()
    before = (tmp_path / "spool.db").read_bytes()
    with pytest.raises(ConfigError, match=r"is another program.s database"):
        opened(tmp_path)
    assert (tmp_path / "spool.db").read_bytes() == before


def test_a_file_of_a_newer_agent_is_kept_beside_a_new_one(tmp_path):
    store = opened(tmp_path)
    put(store, "a")
    store.close()
    with sqlite3.connect(tmp_path / "spool.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    events: list[Event] = []
    store = opened(tmp_path, events)
    (aside,) = tmp_path.glob("spool.db.format-99-*[0-9]")
    assert [event.facts for event in events] == [{"state": "newer", "set_aside": str(aside)}]
    assert store.next() is None
    assert put(store, "b")[0]
    store.close()
    with sqlite3.connect(aside) as db:
        assert db.execute("SELECT count(*) FROM rows").fetchone() == (1,)
    db.close()


def test_an_agent_of_before_leaves_what_waits_for_the_sinks(tmp_path):
    """It knows version 2, and nothing of the outbox."""
    store = opened(tmp_path)
    store.update_outbox("mqtt-1", [], [{"id": "a"}])
    store.close()
    with sqlite3.connect(tmp_path / "spool.db") as db:
        assert db.execute("PRAGMA user_version").fetchone() == (2,)
        db.execute("DELETE FROM rows")
    db.close()
    store = opened(tmp_path)
    assert [record for _, record in store.outbox("mqtt-1") or []] == [{"id": "a"}]
    store.close()


@pytest.mark.parametrize("cause", ["count", "age", "cleared", "policy"])
def test_an_example_that_is_dropped_has_a_closing_record(tmp_path, cause):
    clock = Clock()
    store = opened(tmp_path, clock=clock, max_count=2, max_age_s=100.0)
    keys = put(store, "a", "b")
    if cause == "count":
        put(store, "c")
    elif cause == "age":
        clock.now += 1000
        store.tidy()
    elif cause == "cleared":
        store.clear()
    else:
        store.apply_policy("nothing may leave")
    closings = [record for _, record in store.outbox("") or []]
    assert [record["id"] for record in closings] == (["a"] if cause == "count" else ["a", "b"])
    assert [record["corrects"] for record in closings] == keys[: len(closings)]
    assert {record["error"] for record in closings} == {f"dropped: {cause}"}
    assert "label" not in closings[0]
    status = store.status()
    assert status is not None
    assert (status.n_outbox, status.n_dropped) == (len(closings), len(closings))
    store.close()


def test_a_correction_is_counted_once_every_sink_has_acknowledged_it(tmp_path):
    store, counted = opened(tmp_path), []
    store.on_corrected = counted.append
    (key,) = put(store, "a")
    row = store.next()
    assert row is not None
    assert store.answer(row, better(row))
    (first,) = store.update_outbox("mqtt-1", [], [{"id": "a", "corrects": key}]) or []
    (second,) = store.update_outbox("webhook-1", [], [{"id": "a", "corrects": key}]) or []
    assert store.gone(row)
    status = store.status()
    assert status is not None
    assert (status.n_corrected, status.n_delivering, status.n_answered) == (0, 1, 0)
    assert store.outbox_holds("mqtt-1", key)
    store.update_outbox("mqtt-1", [first], [])
    assert counted == []
    store.update_outbox("webhook-1", [second], [])
    assert counted == [1]
    status = store.status()
    assert status is not None
    assert (status.n_corrected, status.n_delivering, status.n_outbox) == (1, 0, 0)
    assert status.n_offered == status.n_corrected
    store.close()


def test_a_file_of_the_format_before_is_brought_up_to_date_with_what_it_holds(tmp_path):
    store = opened(tmp_path)
    put(store, "a", "b")
    store.close()
    with sqlite3.connect(tmp_path / "spool.db") as db:
        db.execute("ALTER TABLE rows RENAME COLUMN confirmed TO told")
        db.execute("PRAGMA user_version = 1")
    db.close()
    store = opened(tmp_path)
    assert counts(store) == (2, {})
    put(store, "c")
    assert counts(store) == (3, {})
    store.close()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"spool\.path cannot be written: .* \(set `state:`"):
        opened(tmp_path / "file" / "state")


def test_looking_at_a_spool_that_no_agent_holds_needs_no_right_to_write(tmp_path):
    store = opened(tmp_path)
    put(store, "a")
    store.close()
    path = tmp_path / "spool.db"
    assert not path.with_name("spool.db-wal").exists()
    tmp_path.chmod(0o555)
    path.chmod(0o444)
    try:
        db = read_only(path)
        assert read_status(db, path).n_waiting == 1
        db.close()
    finally:
        tmp_path.chmod(0o755)


# Damage


def test_a_file_that_is_no_database_is_set_aside_and_told(tmp_path):
    path = tmp_path / "spool.db"
    path.write_bytes(b"not a database at all" * 1000)
    events: list = []
    store = opened(tmp_path, events)
    (event,) = events
    assert event.kind == "spool"
    assert event.facts["state"] == "damaged"
    assert Path(event.facts["set_aside"]).read_bytes().startswith(b"not a database")
    put(store, "a")
    assert finish(store) == "a"
    store.close()


def test_damage_that_shows_later_is_set_aside_then_and_the_example_is_kept(tmp_path):
    store = opened(tmp_path)
    put(store, *(f"x{n}" for n in range(50)))
    store.close()
    path = tmp_path / "spool.db"
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))
    events: list = []
    store = opened(tmp_path, events)
    assert put(store, "new") != [""]
    assert finish(store) == "new"
    assert [event.facts["state"] for event in events] == ["damaged"]
    assert store.state == "ok"
    store.close()


def test_a_payload_that_is_not_what_was_put_is_dropped_and_the_others_stay(tmp_path):
    store = opened(tmp_path)
    put(store, *"abc")
    store.close()
    with sqlite3.connect(tmp_path / "spool.db") as db:
        db.execute("UPDATE rows SET payload = x'00' WHERE seq = 1")
        db.execute("UPDATE rows SET local = '{' WHERE seq = 2")
    db.close()
    store = opened(tmp_path)
    assert finish(store) == "c"
    assert counts(store) == (0, {"damaged": 2})
    store.close()


# A full disk


@pytest.mark.parametrize("drop", ["newest", "oldest"])
def test_a_full_disk_is_told_once_counted_and_recovered_from(small_disk, drop):
    events: list = []
    store = opened(small_disk, events, max_bytes=20 * MB, drop=drop, sync="full")
    kept = [key for key in put(store, *(f"a{n}" for n in range(20)), size=20_000) if key]
    assert len(kept) == 20
    fill(small_disk)
    keys = put(store, *(f"b{n}" for n in range(100)), size=20_000)
    assert store.state == "disk full"
    assert [event.facts for event in events] == [{"state": "disk full"}]
    n_waiting, dropped = counts(store)
    assert n_waiting + sum(dropped.values()) == 20 + 100
    assert set(dropped) == {"disk"}
    first = store.next()
    assert first is not None
    if drop == "newest":
        assert first.local.id == "a0"
        assert n_waiting >= 20
        assert keys.count("") == dropped["disk"] > 0
    else:  # the oldest made room: their pages are on the disk
        assert first.local.id.startswith("b")
        assert n_waiting >= 15
        assert keys.count("") <= 1
        store.close()
        events.clear()
        store = opened(small_disk, events, max_bytes=20 * MB, drop=drop, sync="full")
        assert put(store, *(f"c{n}" for n in range(30)), size=20_000)[-1], "it starts on a full disk, too"
        assert counts(store)[0] >= 15
        assert [event.facts for event in events] == [{"state": "disk full"}]
    (small_disk / "others").unlink()
    assert put(store, "after", size=20_000) != [""]
    assert store.state == "ok"
    assert [event.facts["state"] for event in events] == ["disk full", "ok"]
    assert (small_disk / "spool.db.ballast").exists() is (drop == "oldest")
    for _ in range(counts(store)[0]):
        finish(store)
    store.close()
    store = opened(small_disk, max_bytes=20 * MB)
    status = store.status()
    assert status is not None
    assert status.n_offered == status.n_corrected + status.n_dropped
    store.close()


def test_on_a_full_disk_what_is_said_to_be_kept_is_kept_and_nothing_else(small_disk):
    for leave in range(0, 120_000, 8192):  # so that it is full at one step, or at another
        folder = small_disk / str(leave)
        folder.mkdir()
        store = opened(folder, max_bytes=2 * MB, drop="newest")
        put(store, *(f"a{n}" for n in range(20)), size=4000)
        fill(small_disk, leave)
        keys = [store.put(example(f"b{n}", 4000), local(f"b{n}")) for n in range(60)]
        n_kept = 20 + len([key for key in keys if key])
        assert n_kept < 80
        store._file_lock.close()
        (small_disk / "others").unlink()
        store = opened(folder, max_bytes=2 * MB, drop="newest")
        assert counts(store)[0] == n_kept
        store.close()


def test_a_disk_that_has_room_again_is_noticed_without_a_new_example(small_disk):
    store = opened(small_disk, max_bytes=20 * MB, drop="newest")
    put(store, "a")
    fill(small_disk)
    put(store, *(f"b{n}" for n in range(60)), size=60_000)
    store.tidy()
    assert store.state == "disk full"
    (small_disk / "others").unlink()
    store.tidy()
    assert store.state == "ok"
    store.close()


# A crash


CRASH = """
import os, sys, threading
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from spools import *
store = opened(Path(sys.argv[1]), sync="full")
print("open", flush=True)
for number in range(1_000_000):
    name = f"x{number}"
    key = store.put(example(name), local(name))
    print("put", name, key, flush=True)
    store.confirm(key)
    if number % 2:
        row = store.next()
        store.answer(row, better(row))
        print("answered", row.local.id, row.key, flush=True)
        store.gone(row)
"""


def test_whatever_was_put_before_a_kill_is_there_after_it_or_was_answered(tmp_path):
    """The file is whole at every moment: what its process said it kept, it has kept."""
    for turn in range(3):
        folder = tmp_path / str(turn)
        folder.mkdir()
        process = subprocess.Popen(
            [sys.executable, "-c", CRASH, folder, Path(__file__).parent], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(20 + 23 * turn)]
        process.kill()
        lines += process.stdout.readlines()
        process.wait()
        process.stdout.close()
        words = [line.split() for line in lines if line.endswith("\n")]
        answered = [word[1] for word in words if word[0] == "answered"]
        store = opened(folder)
        here = [row.local.id for row in store.answered()] + [row.local.id for row in store.unsure()]
        while (row := store.next()) is not None:
            here.append(row.local.id)
            store.answer(row, better(row))
        assert len(set(here)) == len(here)
        assert {word[1] for word in words if word[0] == "put"} <= {*here, *answered}
        store.close()
