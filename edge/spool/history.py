"""Which files of watched folders were decided, over restarts; and what the sinks say of it after a crash."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from edge.sinks import Record, Rereadable, Sinks, Writer
from edge.sinks.delivery import BufferedSink
from edge.sqlite_file import DatabaseFormat, FileLock, connect_or_anew, describe_error, set_aside

log = logging.getLogger(__name__)


def decided_ids(sinks: Sinks, taken: Mapping[str, Sequence[str]]) -> set[str]:
    """Those of the ids that have an outcome in the sinks for each time they were taken (a mark each).

    Outcomes that one writer has and another lacks are copied. A writer that cannot be read back does not count; one
    that delivers later gets them all again.

    Raises:
        OSError: a writer cannot be written.
    """
    writers = sinks.writers
    places = [place for place, writer in enumerate(writers) if isinstance(writer, Rereadable)]
    done: set[str] = set()
    for mark in {marks[0] for marks in taken.values()}:
        ids = {name for name, marks in taken.items() if marks[0] == mark}
        found = [_first_outcomes(writers[place], mark_at(mark, place), ids) for place in places]
        for name in sorted(ids):
            known = max((records.get(name, []) for records in found), key=len, default=[])
            for place, records in zip(places, found, strict=True):
                for record in known[len(records.get(name, [])) :]:
                    writers[place].write(record)
            for writer in writers:
                if isinstance(writer, BufferedSink):
                    for record in known:
                        writer.write(record)
            if len(known) >= len(taken[name]):
                done.add(name)
    return done


def has_outcome(writer: Writer, mark: str, key: str) -> bool:
    """True if the outcome of the row with that key is among the writer's records."""
    return isinstance(writer, Rereadable) and any(record.get("spooled") == key for record in writer.since(mark))


def _first_outcomes(writer: Writer, mark: str, ids: Collection[str]) -> dict[str, list[Record]]:
    """The outcomes of each id from a mark on, without corrections."""
    found: dict[str, list[Record]] = {}
    assert isinstance(writer, Rereadable)
    for record in writer.since(mark):
        name = record.get("id")
        if name in ids and "corrects" not in record:
            found.setdefault(str(name), []).append(record)
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
Key = tuple[int, str]  # number of the folder, name of the file


class TakenFiles:
    """Files that were taken and are not recorded as done, each with the sinks' mark before: lines of a plain file.

    They are written as they come, and not flushed: they outlive the process. After a power cut some may be missing, and
    those files are decided again. An error of the disk is raised as OSError.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("a+b", buffering=0)
        self._mark: str | None = None  # of the lines that follow

    def read(self) -> dict[Key, list[tuple[Stamp, str]]]:
        """All of them, in the order in which they were taken."""
        found: dict[Key, list[tuple[Stamp, str]]] = {}
        self._file.seek(0)
        mark = ""
        for line in self._file.read().splitlines():
            try:
                content = json.loads(line)
                if isinstance(content, str):
                    mark = content
                    continue
                number, name, size, changed_ns = content
            except (ValueError, TypeError):
                continue  # torn by a crash
            found.setdefault((number, name), []).append(((size, changed_ns), mark))
        return found

    def add(self, key: Key, stamp: Stamp, mark: str) -> None:
        self._file.write(self._lines(key, stamp, mark))

    def reset(self, left: Mapping[Key, Sequence[tuple[Stamp, str]]]) -> None:
        """Those left alone, in place of the file at once: a kill leaves the old one or the new one."""
        beside = self._path.with_suffix(".new")
        file, self._mark = beside.open("w+b", buffering=0), None
        try:
            file.write(b"".join(self._lines(key, *entry) for key, entries in left.items() for entry in entries))
            beside.replace(self._path)
        except BaseException:
            file.close()
            self._mark = None
            raise
        self._file.close()
        self._file = file

    def _lines(self, key: Key, stamp: Stamp, mark: str) -> bytes:
        lines = [] if mark == self._mark else [json.dumps(mark)]
        lines.append(json.dumps([*key, *stamp]))
        self._mark = mark
        return "".join(f"{line}\n" for line in lines).encode()

    def close(self) -> None:
        self._file.close()


class FileHistory:
    """Which files of an agent's watched folders were decided, over restarts; opened with the first folder.

    A file is noted as taken before it is decided, and recorded as done, together with others, some time after its
    outcome is in the sinks. After a kill, the outcomes of files that were taken and not done are looked for in the
    sinks; one that has none is decided again.

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
        self._journal: TakenFiles | None = None
        self._taken: dict[Key, list[tuple[Stamp, str]]] = {}  # as in the journal
        self._mark: str | None = None  # of files that are taken from now on
        self._done: dict[Key, Stamp] = {}  # not recorded yet
        self._is_failing = False

    def attach(self, sinks: Sinks, known: Collection[str] = ()) -> None:
        """The agent's sinks, before it takes its first example; and ids whose outcome is known to be in them."""
        with self._lock:
            self._sinks, self._known, self._mark = sinks, known, None
        sinks.on_commit(self.commit)

    def detach(self) -> None:
        """The sinks are about to be closed."""
        with self._lock:
            self.commit()
            self._sinks, self._known, self._mark = None, (), None

    def add(self, folder: Path) -> None:
        """Remember this folder's files; the other methods take it as it is given here.

        Raises:
            ConfigError: the database is in use by another agent, or another program's.
            OSError: it cannot be opened now.
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
        try:
            self._journal = TakenFiles(self.path.with_name("folders.taken"))
            self._taken = self._journal.read()
        except OSError as error:
            self._complain(error)
        if aside is not None:
            log.warning(
                "%s cannot be used (now %s): which files were decided before is not known", self.path, aside.name
            )

    def _give_up(self, error: sqlite3.Error) -> None:
        """Work without the database, and create a new one at the next start."""
        assert self._db is not None
        self._db.close()
        self._db = None
        aside = set_aside(self.path)
        why = describe_error(error)
        log.warning("%s cannot be read (%s; now %s): nothing is remembered", self.path, why, aside.name)

    def done(self, folder: Path) -> Iterator[tuple[str, Stamp]]:
        """The folder's files that were decided, with their stamps then. Called once, before any is taken.

        Raises:
            OSError: an outcome that one sink has and another lacks cannot be written there.
        """
        try:
            with self._lock:
                number = self._numbers[folder]
                decided, doubtful = self._resolve(number)
            yield from decided.items()
            for name, stamp in self._rows(number):
                if name not in doubtful:
                    yield name, stamp
        except sqlite3.Error as error:
            with self._lock:
                self._give_up(error)

    def _resolve(self, number: int) -> tuple[dict[str, Stamp], set[str]]:
        """Of a folder's files that were taken before the process ended, those that the sinks have; and all of them."""
        if self._db is None:
            return {}, set()
        query = "SELECT name, size, changed_ns, mark FROM files WHERE folder = ? AND "
        rows = self._db.execute(query + "mark IS NOT NULL", (number,)).fetchall()  # by an older agent
        stamps = {os.fsdecode(name): (size, changed_ns) for name, size, changed_ns, _ in rows}
        taken = {os.fsdecode(name): [mark] for name, _, _, mark in rows}
        for (its_number, name), entries in self._taken.items():
            if its_number == number:
                row = self._db.execute(query + "name = ?", (number, os.fsencode(name))).fetchone()
                if row is None or row[1:3] != entries[-1][0]:
                    stamps[name], taken[name] = entries[-1][0], [mark for _, mark in entries]
        decided = set(self._known) & set(taken)
        if self._sinks is not None:
            decided |= decided_ids(self._sinks, taken)
        for name in taken:
            if name in decided:
                self._done[number, name] = stamps[name]
            else:
                self._taken.pop((number, name), None)  # it is taken again, with a new mark,
        if len(decided) < len(taken) and self._journal is not None:
            try:
                self._journal.reset(self._taken)  # and one outcome is enough then
            except OSError as error:
                self._complain(error)
        self.commit()
        return {name: stamps[name] for name in decided}, set(taken)

    def _rows(self, number: int) -> Iterator[tuple[str, Stamp]]:
        """A folder's rows by their names; some at a time, since all could be many."""
        rows: list[tuple[bytes, int, int]] = [(b"", 0, 0)]
        query = "SELECT name, size, changed_ns FROM files WHERE folder = ? AND name > ? ORDER BY name LIMIT 1024"
        while rows:
            with self._lock:
                rows = [] if self._db is None else self._db.execute(query, (number, rows[-1][0])).fetchall()
            yield from ((os.fsdecode(name), (size, changed_ns)) for name, size, changed_ns in rows)

    def take(self, folder: Path, name: str, stamp: Stamp) -> None:
        """The file is about to be decided."""
        with self._lock:
            if self._mark is None:
                self._mark = "" if self._sinks is None else self._sinks.mark()
            key = self._numbers[folder], name
            self._taken.setdefault(key, []).append((stamp, self._mark))
            try:
                if self._journal is not None:
                    self._journal.add(key, stamp, self._mark)
            except OSError as error:
                self._complain(error)

    def finish(self, folder: Path, name: str, stamp: Stamp, outcome: object = None) -> None:
        """The file's outcome is in the sinks. On any thread."""
        with self._lock:
            self._done[self._numbers[folder], name] = stamp
            if len(self._done) >= AT_ONCE:
                self.commit()

    def forget(self, folder: Path, is_gone: Callable[[str], bool]) -> None:
        """Those of the folder's files were deleted long ago."""
        number = self._numbers[folder]
        with self._lock, contextlib.suppress(sqlite3.Error):
            gone = ((number, os.fsencode(name)) for name, _ in self._rows(number) if is_gone(name))
            while some := list(itertools.islice(gone, AT_ONCE)):
                self._transact("DELETE FROM files WHERE folder = ? AND name = ?", some)

    def close(self) -> None:
        with self._lock:
            self.commit()
            for opened in (self._db, self._journal, self._file_lock):
                if opened is not None:
                    opened.close()
            self._db = self._journal = self._file_lock = None

    def commit(self) -> None:
        """Record what is done. A failure is logged once, and tried again with the next call."""
        with self._lock:
            if self._db is None or not self._done:
                return
            try:
                if self._sinks is not None:
                    self._sinks.flush()  # or a kill could take an outcome whose file is recorded as done,
                    self._sinks.sync()  # and a power cut one that was written
                insert = "INSERT OR REPLACE INTO files (folder, name, size, changed_ns, mark) VALUES (?, ?, ?, ?, NULL)"
                self._transact(insert, [(folder, os.fsencode(name), *at) for (folder, name), at in self._done.items()])
                for key, stamp in self._done.items():
                    left = [entry for entry in self._taken.pop(key, []) if entry[0] != stamp]
                    if left:
                        self._taken[key] = left
                if self._journal is not None:
                    self._journal.reset(self._taken)
            except (sqlite3.Error, OSError) as error:
                self._complain(error)
                return
            self._is_failing = False
            self._mark = None
            self._done.clear()

    def _complain(self, error: Exception) -> None:
        if not self._is_failing:
            self._is_failing = True
            why = describe_error(error)
            log.warning("%s cannot be written (%s): after a crash, files may be decided again", self.path, why)

    def _transact(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        assert self._db is not None
        with self._db as db:
            db.execute("BEGIN IMMEDIATE")
            db.executemany(statement, rows)
