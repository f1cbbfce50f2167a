"""What a watched folder remembers: each file is decided once, over restarts and after a kill."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from fakes import BOUND_S

from coe.cascade import ConfigError
from edge.sinks import Record, Rereadable, Sinks, Writer
from edge.sinks.delivery import BufferedSink
from edge.sinks.jsonlines import JsonLinesFile, JsonLinesStream
from edge.sources import Example
from edge.sources import folder as folder_module
from edge.sources.folder import FolderSource
from edge.sources.inotify import SETTLE_S
from edge.spool import SpoolConfig
from edge.spool import history as history_module
from edge.spool.history import FileHistory
from edge.spool.store import SpoolStore


class Life:
    """One run of an agent: its history, its sinks, and a source of which some examples are decided."""

    def __init__(self, path: Path, writers: list[Writer] | None = None) -> None:
        self.path = path
        (path / "in").mkdir(exist_ok=True)
        self.writers = writers or [JsonLinesFile(path / "out.jsonl")]
        self.history = FileHistory(path / "state")
        self.history.attach(Sinks(self.writers, ()))
        self.history.add(path / "in")
        self.source = FolderSource(path / "in", watch=True, poll_s=0.01, history=self.history)

    def run(self, n: int, decide: Callable[[Example], None] | None = None, *, within_s: float = BOUND_S) -> list[str]:
        """The ids of the first n examples, each decided; fewer where no more came in that time."""
        stop = threading.Event()
        timer = threading.Timer(0.4 if n == 0 else within_s, stop.set)
        timer.start()
        ids = []
        for example in self.source.examples(stop):
            ids.append(example.id)
            (decide or self.decide)(example)
            if len(ids) == n:
                stop.set()
        timer.cancel()
        return ids

    def decide(self, example: Example) -> None:
        self.write(example)
        assert example.answered is not None
        example.answered(None)

    def write(self, example: Example) -> None:
        for writer in self.writers:
            writer.write({"id": example.id, "label": 1})

    def end(self) -> None:
        self.history.detach()
        self.history.close()
        for writer in self.writers:
            writer.close()

    def kill(self) -> None:
        """As the end of its process would leave it."""
        assert self.history._db is not None
        assert self.history._file_lock is not None
        assert self.history._journal is not None
        self.history._db.close()
        self.history._file_lock.close()
        self.history._journal.close()
        for writer in self.writers:
            writer.close()


def drop(path: Path, *names: str, content: bytes = b"\x89PNG") -> None:
    (path / "in").mkdir(exist_ok=True)
    for name in names:
        (path / "in" / name).write_bytes(content)


def test_what_was_decided_is_not_decided_again_after_a_restart(tmp_path):
    drop(tmp_path, "a.png", "b.png", "\udcff.png")
    life = Life(tmp_path)
    assert len(life.run(3)) == 3
    life.end()
    drop(tmp_path, "c.png")
    life = Life(tmp_path)
    assert life.run(1) == ["c.png"]
    life.end()
    life = Life(tmp_path)
    assert life.run(0) == []
    life.end()


def test_a_file_that_changed_is_decided_again(tmp_path):
    drop(tmp_path, "a.png", "b.png")
    life = Life(tmp_path)
    life.run(2)
    life.end()
    drop(tmp_path, "a.png", content=b"\x89PNG, another")
    life = Life(tmp_path)
    assert life.run(1) == ["a.png"]
    life.end()


@pytest.mark.parametrize("n_written", [0, 1, 2, 3])
def test_after_a_kill_the_sinks_know_what_was_decided(tmp_path, n_written):
    drop(tmp_path, "a.png", "b.png", "c.png")
    life = Life(tmp_path)
    written: list[str] = []

    def decide(example: Example) -> None:
        if len(written) < n_written:
            written.append(example.id)
            life.write(example)  # killed before it could be told so

    life.run(3, decide)
    life.kill()
    life = Life(tmp_path)
    left = ["a.png", "b.png", "c.png"][n_written:]
    assert life.run(len(left)) == left
    life.end()
    lines = [json.loads(line)["id"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert sorted(lines) == ["a.png", "b.png", "c.png"]


def test_a_file_that_a_kill_had_taken_again_is_done_with_its_one_outcome(tmp_path):
    drop(tmp_path, "a.png")
    life = Life(tmp_path)
    life.run(1, lambda example: None)  # taken, and no outcome
    life.kill()
    life = Life(tmp_path)
    assert life.run(1, life.write) == ["a.png"]  # the outcome, and not recorded as done
    life.kill()
    life = Life(tmp_path)
    assert life.run(0) == []
    life.end()


def test_an_older_outcome_of_a_changed_file_does_not_count_for_the_new_one(tmp_path):
    drop(tmp_path, "a.png")
    life = Life(tmp_path)
    life.run(1)
    life.end()
    drop(tmp_path, "a.png", content=b"\x89PNG, another")
    life = Life(tmp_path)
    life.run(1, lambda example: None)  # taken, and killed before it was decided
    life.kill()
    life = Life(tmp_path)
    assert life.run(1) == ["a.png"]
    life.end()


def test_a_correction_is_no_outcome(tmp_path):
    drop(tmp_path, "a.png")
    life = Life(tmp_path)
    life.run(1, lambda example: life.writers[0].write({"id": "a.png", "corrects": "17"}))
    life.kill()
    life = Life(tmp_path)
    assert life.run(1) == ["a.png"]
    life.end()


def test_an_example_that_still_waits_for_a_server_is_not_done(tmp_path):
    drop(tmp_path, "a.png", "b.png")
    life = Life(tmp_path)
    life.run(2, lambda example: life.decide(example) if example.id == "b.png" else None)
    life.end()
    life = Life(tmp_path)
    assert life.run(1) == ["a.png"]
    life.end()


def test_what_one_sink_has_and_the_other_lacks_is_copied(tmp_path):
    drop(tmp_path, "a.png", "b.png")
    both = ["one.jsonl", "two.jsonl"]
    life = Life(tmp_path, [JsonLinesFile(tmp_path / name) for name in both])
    life.run(2, lambda example: life.writers[0].write({"id": example.id, "label": 1}))
    life.kill()
    life = Life(tmp_path, [JsonLinesFile(tmp_path / name) for name in both])
    assert life.run(0) == []
    life.end()
    assert (tmp_path / "one.jsonl").read_text() == (tmp_path / "two.jsonl").read_text()


class Away:
    """A transport whose other end is not there."""

    name, kind, most, gather_s = "over there", "far", 20, 0.0

    def send(self, records: Sequence[Record]) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    def close(self) -> None:
        pass


def test_what_a_restart_hands_to_an_outbox_is_stored_before_its_file_is_done(tmp_path):
    drop(tmp_path, "a.png", "b.png")
    life = Life(tmp_path)
    life.run(2, life.write)  # the outcomes are in the file, and not recorded as done
    life.kill()
    store = SpoolStore(SpoolConfig(tmp_path / "spool.db", sync="normal"), [].append)
    life = Life(tmp_path, [JsonLinesFile(tmp_path / "out.jsonl"), BufferedSink(Away(), flush_s=0.0, outbox=store)])
    assert life.run(0) == []
    assert store.outbox_count("far") == 2
    life.end()
    store.close()


def test_where_no_sink_can_be_read_back_what_is_in_doubt_is_decided_again(tmp_path, capsys):
    import sys

    drop(tmp_path, "a.png", "b.png")
    life = Life(tmp_path, [JsonLinesStream(sys.stdout)])
    life.run(2, life.write)
    life.kill()
    life = Life(tmp_path, [JsonLinesStream(sys.stdout)])
    assert life.run(2) == ["a.png", "b.png"]
    life.end()


def test_what_the_spool_is_known_to_have_written_is_done(tmp_path):
    import sys

    drop(tmp_path, "a.png", "b.png")
    life = Life(tmp_path, [JsonLinesStream(sys.stdout)])
    life.run(2, lambda example: None)
    life.kill()
    life = Life(tmp_path, [JsonLinesStream(sys.stdout)])
    life.history.attach(Sinks(life.writers, ()), {"a.png"})
    assert life.run(1) == ["b.png"]
    life.end()


def test_many_that_are_done_are_written_down_before_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(history_module, "AT_ONCE", 4)
    drop(tmp_path, *(f"{n}.png" for n in range(9)))
    time.sleep(2 * SETTLE_S)  # younger files come later, in another order
    life = Life(tmp_path)
    life.run(9)
    life.kill()
    (tmp_path / "out.jsonl").write_text("")  # so that the history alone can know
    life = Life(tmp_path)
    assert life.run(1) == ["8.png"]
    life.end()


def test_names_of_files_that_are_gone_are_forgotten_once_they_are_many_but_not_with_an_empty_folder(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(folder_module, "MOST_GONE", 5)
    names = [f"{n}.png" for n in range(10)]
    drop(tmp_path, *names)
    life = Life(tmp_path)
    life.run(10)
    life.end()
    for name in names:
        os.rename(tmp_path / "in" / name, tmp_path / name)  # as if its disk were not mounted
    life = Life(tmp_path)
    assert life.run(0) == []
    for name in names:
        os.rename(tmp_path / name, tmp_path / "in" / name)
    assert life.run(0) == []
    for name in names:
        (tmp_path / "in" / name).unlink()
    drop(tmp_path, "new.png")
    assert life.run(1) == ["new.png"]
    life.end()
    life = Life(tmp_path)
    assert set(dict(life.history.done(tmp_path / "in"))) == {"new.png"}
    life.end()


def opened_history(state: Path, *folders: Path) -> FileHistory:
    history = FileHistory(state)
    for folder in folders:
        history.add(folder)
    return history


def test_two_folders_do_not_share_names(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    history = opened_history(tmp_path, one, two)
    history.take(one, "a.png", (1, 2))
    history.finish(one, "a.png", (1, 2))
    assert dict(history.done(two)) == {}
    history.close()
    history = opened_history(tmp_path, one, two)
    assert dict(history.done(one)) == {"a.png": (1, 2)}
    assert dict(history.done(two)) == {}
    history.close()


def test_a_second_agent_on_one_state_folder_is_told(tmp_path):
    life = Life(tmp_path)
    with pytest.raises(ConfigError, match=r"^state: .*folders\.db is in use by another coe-edge"):
        Life(tmp_path)
    life.end()


def test_a_damaged_history_is_set_aside_and_logged(tmp_path, logged):
    drop(tmp_path, "a.png")
    life = Life(tmp_path)
    life.run(1)
    life.end()
    path = tmp_path / "state" / "folders.db"
    path.write_bytes(b"nonsense" * 1000)
    life = Life(tmp_path)
    assert life.run(1) == ["a.png"]
    life.end()
    assert "cannot be used (now folders.db.damaged-" in logged[0]
    assert len(list(path.parent.glob("folders.db.damaged-*"))) == 1


def test_damage_found_later_costs_the_history_and_not_the_agent(tmp_path, logged):
    drop(tmp_path, *(f"{n:03}.png" for n in range(300)))
    life = Life(tmp_path)
    life.run(300)
    life.end()
    path = tmp_path / "state" / "folders.db"
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))
    life = Life(tmp_path)
    assert len(life.run(300)) == 300
    life.end()
    assert len(logged) == 1
    assert "folders.db" in logged[0]
    life = Life(tmp_path)  # a new one, without some of them
    life.run(300, within_s=5)
    life.end()
    life = Life(tmp_path)
    assert life.run(0) == []
    life.end()


def test_a_disk_that_takes_nothing_is_logged_once_and_costs_no_decision(tmp_path, monkeypatch, logged):
    import sqlite3

    drop(tmp_path, "a.png", "b.png")
    life = Life(tmp_path)

    def fails(statement: str, rows: object) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    monkeypatch.setattr(life.history, "_transact", fails)
    monkeypatch.setattr(history_module, "AT_ONCE", 1)  # each is written down by itself
    assert life.run(2) == ["a.png", "b.png"]
    assert len(logged) == 1
    assert "cannot be written (disk full)" in logged[0]
    monkeypatch.undo()
    life.end()
    life = Life(tmp_path)
    assert life.run(0) == []  # what could not be written down then was later
    life.end()


def test_the_mark_of_a_sink_is_where_its_next_record_will_stand(tmp_path):
    writer = JsonLinesFile(tmp_path / "out.jsonl")
    writer.write({"id": "before"})
    mark = writer.mark()
    writer.write({"id": "after"})
    assert isinstance(writer, Rereadable)
    assert [record["id"] for record in writer.since(mark)] == ["after"]
    writer.close()
