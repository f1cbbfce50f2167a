"""Recovery after a crash: what the sinks already have, and which files of watched folders were decided.

A file is written down as taken before it is decided, with a mark where the sinks' records stand, and as done some
time after its outcome is in the sinks. After a kill, those that are taken and not done are looked for in the sinks.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge.sinks import Record, Sinks, Writer, as_record
from edge.sinks.jsonlines import Rereadable

from .database import DatabaseFormat, FileLock, connect_or_anew, describe_error, set_aside

if TYPE_CHECKING:
    from .store import SpoolStore


def sinks_mark(sinks: Sinks) -> str:
    """Where the records of all writers stand."""
    with sinks.still():
        return json.dumps([writer.mark() if isinstance(writer, Rereadable) else "" for writer in sinks.writers])


def sync_sinks(sinks: Sinks) -> None:
    """What was written stays, should the power fail now; where a writer knows how to see to that.

    Raises:
        OSError: the disk fails, for all of them.
    """
    writers = [writer for writer in sinks.writers if isinstance(writer, Rereadable)]
    failed: list[OSError] = []
    for writer in writers:
        try:
            try:
                writer.sync()
            except OSError:  # it may be just about to write, or to go on in another file
                with sinks.still():
                    writer.sync()
        except OSError as error:
            failed.append(error)
    if failed and len(failed) == len(writers):
        raise failed[0]


def write_missing_outcomes(store: SpoolStore, sinks: Sinks) -> set[str]:
    """Write the outcomes and the corrections that a killed agent kept, and some writer lacks.

    One that cannot say what it has gets them again, under the same key.

    Returns:
        Ids of the examples whose outcome was in doubt, and is in the sinks now.
    Raises:
        OSError: no writer can be written. Where one of several cannot, the next start does it again.
    """
    unsure, answered = store.unsure(), store.answered()
    failed: list[OSError] = []
    for place, writer in enumerate(sinks.writers):
        try:
            for row in unsure:
                if not _has(writer, _mark_at(row.mark, place), row.key):
                    writer.write(as_record(row.local, sinks.labels))
            missing = set(writer.missing([row.key for row in answered])) if answered else set()
            for row in answered:
                if row.key in missing and row.answer is not None:
                    writer.write(as_record(row.answer, sinks.labels))
        except OSError as error:
            failed.append(error)
    if failed and len(failed) == len(sinks.writers):
        raise failed[0]
    if failed:
        return set()
    sync_sinks(sinks)
    for row in unsure:
        store.confirm(row.key)
    for row in answered:
        store.gone(row)
    return {row.local.id for row in unsure}


def decided_ids(sinks: Sinks, marks: Mapping[str, str]) -> set[str]:
    """Of the ids, each with the mark set before it was taken, those with an outcome in the sinks.

    What one writer has and another lacks is copied; writers that cannot say what they have do not count.

    Raises:
        OSError: a writer cannot be written.
    """
    writers = sinks.writers
    places = [place for place, writer in enumerate(writers) if isinstance(writer, Rereadable)]
    done: set[str] = set()
    for mark in set(marks.values()):
        ids = {name for name, its in marks.items() if its == mark}
        found = [_first_records(writers[place], _mark_at(mark, place), ids) for place in places]
        for name in sorted(ids):
            record = next((records[name] for records in found if name in records), None)
            if record is None:
                continue
            for place, records in zip(places, found, strict=True):
                if name not in records:
                    writers[place].write(record)
            done.add(name)
    return done


def _has(writer: Writer, mark: str, key: str) -> bool:
    """Whether the outcome of the row with that key is among its records."""
    return isinstance(writer, Rereadable) and any(record.get("spooled") == key for record in writer.since(mark))


def _first_records(writer: Writer, mark: str, ids: Iterable[str]) -> dict[str, Record]:
    """The first outcome of each id from a mark on: what corrects one comes later."""
    wanted = set(ids)
    found: dict[str, Record] = {}
    assert isinstance(writer, Rereadable)
    for record in writer.since(mark):
        name = record.get("id")
        if name in wanted and name not in found and "corrects" not in record:
            found[str(name)] = record
    return found


def _mark_at(mark: str, place: int) -> str:
    """One writer's part of a mark; "" for a writer that was not there then."""
    try:
        return str(json.loads(mark)[place])
    except (ValueError, LookupError, TypeError):
        return ""


Stamp = tuple[int, int]  # size in bytes, time of change in ns

MEMORY = DatabaseFormat(
    field="state",
    version=1,
    schema="""
CREATE TABLE files (
    folder INTEGER NOT NULL,  -- the beginning of its path's SHA-256
    name BLOB NOT NULL,
    size INTEGER NOT NULL,
    changed_ns INTEGER NOT NULL,
    mark TEXT,
    PRIMARY KEY (folder, name)
) WITHOUT ROWID;
CREATE INDEX taken ON files (folder) WHERE mark IS NOT NULL;
""",
)
AT_ONCE = 256  # files that are done, written down together


class FileHistory:
    """Of all watched folders of one agent; opened with the first of them.

    Args:
        state: the folder its file is in.
        tell: told what a user must know.
    """

    def __init__(self, state: Path, tell: Callable[[str], None]) -> None:
        self.path = state / "folders.db"
        self._tell = tell
        self._lock = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._file_lock: FileLock | None = None
        self._sinks: Sinks | None = None
        self._known: Collection[str] = ()
        self._taken: dict[tuple[int, str], tuple[Stamp, str]] = {}  # not written down yet
        self._done: dict[tuple[int, str], Stamp] = {}
        self._is_failing = False

    def attach(self, sinks: Sinks, known: Collection[str] = ()) -> None:
        """The agent's sinks, before it takes its first example; and ids of which they are known to have the outcome."""
        with self._lock:
            self._sinks, self._known = sinks, known

    def detach(self) -> None:
        """The sinks are about to be closed."""
        with self._lock:
            self._write()
            self._sinks, self._known = None, ()

    def of(self, folder: Path) -> FolderHistory:
        """That of one folder.

        Raises:
            ConfigError: the file is another agent's, or cannot be opened.
        """
        with self._lock:
            if self._db is None:
                self._open()
        digest = hashlib.sha256(os.fsencode(folder.absolute())).digest()
        return FolderHistory(self, int.from_bytes(digest[:8], signed=True))

    def _give_up(self, error: sqlite3.Error) -> None:
        """Go on without, and begin anew at the next start."""
        assert self._db is not None
        self._db.close()
        self._db = None
        aside = set_aside(self.path)
        self._tell(
            f"warning: {self.path} cannot be read ({describe_error(error)}; now {aside.name}): nothing is remembered"
        )

    def _open(self) -> None:
        lock = FileLock(self.path, MEMORY.field)
        try:
            self._db, aside = connect_or_anew(self.path, MEMORY, "normal")
        except BaseException:
            lock.close()
            raise
        self._file_lock = lock
        if aside is not None:
            self._tell(f"warning: {self.path} was damaged (now {aside.name}): what was done before is not known")

    def done(self, folder: int) -> dict[str, Stamp]:
        with self._lock:
            db = self._db
            if db is None:
                return {}
            columns = "name, size, changed_ns, mark"
            try:
                found = db.execute(f"SELECT {columns} FROM files WHERE folder = ?", (folder,)).fetchall()
            except sqlite3.Error as error:
                self._give_up(error)
                return {}
            stamps = {os.fsdecode(name): (size, changed_ns) for name, size, changed_ns, _ in found}
            marks = {os.fsdecode(name): mark for name, _, _, mark in found if mark is not None}
            decided = set(self._known) & set(marks)
            if self._sinks is not None:
                decided |= decided_ids(self._sinks, marks)
            for name in marks:
                if name in decided:
                    self._done[folder, name] = stamps[name]
                else:
                    del stamps[name]  # it is taken again, with a mark of its own
            self._write()
            return stamps

    def take(self, folder: int, stamps: Mapping[str, Stamp]) -> None:
        with self._lock:
            mark = "" if self._sinks is None else sinks_mark(self._sinks)
            for name, stamp in stamps.items():
                self._taken[folder, name] = stamp, mark
                self._done.pop((folder, name), None)
            self._write()

    def finish(self, folder: int, name: str, stamp: Stamp) -> None:
        with self._lock:
            self._done[folder, name] = stamp
            if len(self._done) >= AT_ONCE:
                self._write()

    def forget(self, folder: int, names: Collection[str]) -> None:
        with self._lock, contextlib.suppress(sqlite3.Error):
            if self._db is not None:
                rows = [(folder, os.fsencode(name)) for name in names]
                self._transact("DELETE FROM files WHERE folder = ? AND name = ?", rows)

    def close(self) -> None:
        with self._lock:
            if self._db is not None:
                self._write()
                self._db.close()
                self._db = None
            if self._file_lock is not None:
                self._file_lock.close()
                self._file_lock = None

    def _write(self) -> None:
        """Write down what is not yet. Where that fails, it is told once, and tried again with the next."""
        if self._db is None or not (self._taken or self._done):
            return
        try:
            if self._done and self._sinks is not None:
                sync_sinks(self._sinks)  # or a power cut might take an outcome, and leave that it is done
            insert = "INSERT OR REPLACE INTO files (folder, name, size, changed_ns, mark) VALUES (?, ?, ?, ?, ?)"
            rows: list[tuple[int, bytes, int, int, str | None]] = [
                (folder, os.fsencode(name), *stamp, mark) for (folder, name), (stamp, mark) in self._taken.items()
            ]
            rows += [(folder, os.fsencode(name), *stamp, None) for (folder, name), stamp in self._done.items()]
            self._transact(insert, rows)
        except (sqlite3.Error, OSError) as error:
            if not self._is_failing:
                self._is_failing = True
                why = describe_error(error) if isinstance(error, sqlite3.Error) else error.strerror or str(error)
                self._tell(f"warning: {self.path} cannot be written ({why}): after a crash, files may be decided again")
            return
        self._is_failing = False
        self._taken.clear()
        self._done.clear()

    def _transact(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        db = self._db
        assert db is not None
        db.execute("BEGIN IMMEDIATE")
        try:
            db.executemany(statement, rows)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise


class FolderHistory:
    """What a folder's source remembers."""

    def __init__(self, memory: FileHistory, folder: int) -> None:
        self._memory = memory
        self._folder = folder

    def done(self) -> dict[str, Stamp]:
        """Files that were decided, as they were then. Asked once, before any is taken.

        Raises:
            OSError: what one sink has and another lacks cannot be written there.
        """
        return self._memory.done(self._folder)

    def take(self, stamps: Mapping[str, Stamp]) -> None:
        """These are about to be decided."""
        self._memory.take(self._folder, stamps)

    def finish(self, name: str, stamp: Stamp) -> None:
        """Its outcome is in the sinks. On any thread."""
        self._memory.finish(self._folder, name, stamp)

    def forget(self, names: Collection[str]) -> None:
        """They have been gone for long."""
        self._memory.forget(self._folder, names)
