"""Which files of watched folders were decided, over restarts; and what the sinks say of it after a crash."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sqlite3
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from edge.sinks import Record, Rereadable, Sinks, Writer
from edge.sqlite_file import DatabaseFormat, FileLock, connect_or_anew, describe_error, set_aside

log = logging.getLogger(__name__)


def decided_ids(sinks: Sinks, marks: Mapping[str, str]) -> set[str]:
    """Those of the ids (each with the mark set before it was taken) that have an outcome in the sinks.

    An outcome that one writer has and another lacks is copied; writers that cannot be read back do not count.

    Raises:
        OSError: a writer cannot be written.
    """
    writers = sinks.writers
    places = [place for place, writer in enumerate(writers) if isinstance(writer, Rereadable)]
    done: set[str] = set()
    for mark in set(marks.values()):
        ids = {name for name, its in marks.items() if its == mark}
        found = [_first_records(writers[place], mark_at(mark, place), ids) for place in places]
        for name in sorted(ids):
            record = next((records[name] for records in found if name in records), None)
            if record is None:
                continue
            for place, records in zip(places, found, strict=True):
                if name not in records:
                    writers[place].write(record)
            done.add(name)
    return done


def has_outcome(writer: Writer, mark: str, key: str) -> bool:
    """True if the outcome of the row with that key is among the writer's records."""
    return isinstance(writer, Rereadable) and any(record.get("spooled") == key for record in writer.since(mark))


def _first_records(writer: Writer, mark: str, ids: Iterable[str]) -> dict[str, Record]:
    """The first outcome of each id from a mark on, without corrections."""
    wanted = set(ids)
    found: dict[str, Record] = {}
    assert isinstance(writer, Rereadable)
    for record in writer.since(mark):
        name = record.get("id")
        if name in wanted and name not in found and "corrects" not in record:
            found[str(name)] = record
    return found


def mark_at(mark: str, place: int) -> str:
    """One writer's part of a mark; "" for a writer that did not exist then."""
    try:
        return str(json.loads(mark)[place])
    except (ValueError, LookupError, TypeError):
        return ""


Stamp = tuple[int, int]  # size in bytes, time of change in ns

HISTORY = DatabaseFormat(
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
AT_ONCE = 256  # files that are done, recorded together


class FileHistory:
    """Which files of an agent's watched folders were decided, over restarts; opened with the first folder.

    A file is recorded as taken before it is decided, with the sinks' mark, and as done some time after its outcome is
    in the sinks. After a kill, the outcomes of files that were taken and not done are looked for in the sinks.

    Args:
        state: the folder its database is in.
    """

    def __init__(self, state: Path) -> None:
        self.path = state / "folders.db"
        self._lock = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._file_lock: FileLock | None = None
        self._numbers: dict[Path, int] = {}  # of the folders in the database
        self._sinks: Sinks | None = None
        self._known: Collection[str] = ()
        self._taken: dict[tuple[int, str], tuple[Stamp, str]] = {}  # not recorded yet
        self._done: dict[tuple[int, str], Stamp] = {}
        self._is_failing = False

    def attach(self, sinks: Sinks, known: Collection[str] = ()) -> None:
        """The agent's sinks, before it takes its first example; and ids whose outcome is known to be in them."""
        with self._lock:
            self._sinks, self._known = sinks, known

    def detach(self) -> None:
        """The sinks are about to be closed."""
        with self._lock:
            self._write()
            self._sinks, self._known = None, ()

    def add(self, folder: Path) -> None:
        """Remember this folder's files; the other methods take it as it is given here.

        Raises:
            ConfigError: the database is in use by another agent, or cannot be opened.
        """
        with self._lock:
            if self._db is None:
                self._open()
            digest = hashlib.sha256(os.fsencode(folder.absolute())).digest()
            self._numbers[folder] = int.from_bytes(digest[:8], signed=True)

    def _open(self) -> None:
        lock = FileLock(self.path, HISTORY.field)
        try:
            self._db, aside = connect_or_anew(self.path, HISTORY, "normal")
        except BaseException:
            lock.close()
            raise
        self._file_lock = lock
        if aside is not None:
            log.warning("%s was damaged (now %s): which files were decided before is not known", self.path, aside.name)

    def _give_up(self, error: sqlite3.Error) -> None:
        """Work without the database, and create a new one at the next start."""
        assert self._db is not None
        self._db.close()
        self._db = None
        aside = set_aside(self.path)
        why = describe_error(error)
        log.warning("%s cannot be read (%s; now %s): nothing is remembered", self.path, why, aside.name)

    def done(self, folder: Path) -> dict[str, Stamp]:
        """The folder's files that were decided, with their stamps then. Called once, before any is taken.

        Raises:
            OSError: an outcome that one sink has and another lacks cannot be written there.
        """
        with self._lock:
            db, number = self._db, self._numbers[folder]
            if db is None:
                return {}
            columns = "name, size, changed_ns, mark"
            try:
                found = db.execute(f"SELECT {columns} FROM files WHERE folder = ?", (number,)).fetchall()
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
                    self._done[number, name] = stamps[name]
                else:
                    del stamps[name]  # it is taken again, with a new mark
            self._write()
            return stamps

    def take(self, folder: Path, stamps: Mapping[str, Stamp]) -> None:
        """These files are about to be decided."""
        with self._lock:
            number = self._numbers[folder]
            mark = "" if self._sinks is None else self._sinks.mark()
            for name, stamp in stamps.items():
                self._taken[number, name] = stamp, mark
                self._done.pop((number, name), None)
            self._write()

    def finish(self, folder: Path, name: str, stamp: Stamp, outcome: object = None) -> None:
        """The file's outcome is in the sinks. On any thread."""
        with self._lock:
            self._done[self._numbers[folder], name] = stamp
            if len(self._done) >= AT_ONCE:
                self._write()

    def forget(self, folder: Path, names: Collection[str]) -> None:
        """These files were deleted long ago."""
        with self._lock, contextlib.suppress(sqlite3.Error):
            if self._db is not None:
                rows = [(self._numbers[folder], os.fsencode(name)) for name in names]
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
        """Record what is pending. A failure is logged once, and tried again with the next call."""
        if self._db is None or not (self._taken or self._done):
            return
        try:
            if self._done and self._sinks is not None:
                self._sinks.sync()  # or a power cut could take an outcome whose file is recorded as done
            insert = "INSERT OR REPLACE INTO files (folder, name, size, changed_ns, mark) VALUES (?, ?, ?, ?, ?)"
            rows: list[tuple[int, bytes, int, int, str | None]] = [
                (folder, os.fsencode(name), *stamp, mark) for (folder, name), (stamp, mark) in self._taken.items()
            ]
            rows += [(folder, os.fsencode(name), *stamp, None) for (folder, name), stamp in self._done.items()]
            self._transact(insert, rows)
        except (sqlite3.Error, OSError) as error:
            if not self._is_failing:
                self._is_failing = True
                why = describe_error(error)
                log.warning("%s cannot be written (%s): after a crash, files may be decided again", self.path, why)
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
