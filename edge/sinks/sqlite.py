"""Decisions in an SQLite database that other programs may read while the agent runs.

`decisions` has a row for each example, in the order they were decided. A late answer replaces the columns of the row
it corrects; `first` keeps the record as it was. `record` is the whole record as JSON. `events` has the agent's events.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import sqlite3
import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from coe.cascade.errors import ConfigError
from edge.sqlite_file import is_damaged, set_aside

from .base import Record

log = logging.getLogger(__name__)

VERSION = 1
WAIT_S = 0.2  # for another program that writes; readers do not block the writer
PRUNE_EVERY = 256  # rows
COLUMNS = ("label", "name", "exit_tier", "vote", "score", "degraded", "error", "truth", "latency_s", "trace")
MARK_LEN = 20
PAGE = 1000  # rows read at once
MOST_INTEGER = 2**63 - 1

SCHEMA = """
CREATE TABLE decisions (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, at REAL,
    label INTEGER, name TEXT, exit_tier INTEGER, vote REAL, score REAL, degraded TEXT, error TEXT, truth INTEGER,
    latency_s REAL, trace TEXT, spooled TEXT, corrects TEXT UNIQUE, corrected_at REAL,
    record TEXT NOT NULL, first TEXT);
CREATE INDEX decisions_by_id ON decisions (id);
CREATE INDEX decisions_that_wait ON decisions (spooled) WHERE spooled IS NOT NULL;
CREATE TABLE events (seq INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, at REAL, record TEXT NOT NULL);
"""


class SqliteWriter:
    """A row for each decision and each event.

    Args:
        max_rows: of each table; the oldest are deleted. None: it grows.
        is_grouped: records wait for `commit`, and a crash takes them; False: each is committed by itself.
    Raises:
        ConfigError: the file is another program's.
        OSError: it cannot be opened.
    """

    kind = "sqlite"

    def __init__(self, path: Path, max_rows: int | None = None, *, is_grouped: bool = False) -> None:
        self.path = path
        self.name = str(path)
        self.max_rows = max_rows
        self._n_since_prune = 0
        self._group: list[Record] = []  # not committed yet
        self._commits_each = not is_grouped
        self._is_failing = False  # the last group could not be committed
        self._lock = threading.RLock()
        self._open()

    def write(self, record: Record) -> None:
        with self._lock:
            self._group.append(record)
            if self._commits_each or self._is_failing:
                try:
                    self.commit()
                except OSError:
                    self._group.pop()
                    raise

    def commit(self) -> None:
        with self._lock:
            if not self._group:
                return
            self._is_failing = True
            try:
                with self._db:
                    self._db.execute("BEGIN IMMEDIATE")
                    for record in self._group:
                        self._put(record)
                    self._n_since_prune += len(self._group)
                    if self._n_since_prune >= PRUNE_EVERY:
                        self._prune()
            except sqlite3.Error as error:
                if is_damaged(error):
                    self._db.close()
                    self._open()  # another one, for the next call
                raise _as_os_error(error, self.name) from None
            self._is_failing = False
            self._group.clear()

    def missing(self, keys: Collection[str]) -> Collection[str]:
        query = "SELECT 1 FROM decisions WHERE corrects = ?"
        return {key for key in keys if not self._all(query, key)}

    def mark(self) -> str:
        """The number of the last row."""
        return str(self._all("SELECT coalesce(max(seq), 0) FROM decisions")[0][0])

    def since(self, mark: str) -> Iterator[Record]:
        last = int(mark) if mark.isdecimal() and len(mark) < MARK_LEN else 0
        while rows := self._all(
            f"SELECT seq, first, record FROM decisions WHERE seq > ? ORDER BY seq LIMIT {PAGE}", last
        ):
            for seq, first, record in rows:
                last = seq
                if first is not None:
                    yield json.loads(first)
                yield json.loads(record)

    def _all(self, query: str, *values: object) -> list[Any]:
        self.commit()
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise _as_os_error(error, self.name) from None

    def sync(self) -> None:
        self.commit()
        for path in (f"{self.path}-wal", self.path):  # what was committed since the last checkpoint is in the log alone
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def close(self) -> None:
        try:
            self.commit()
        finally:
            self._db.close()

    def _open(self) -> None:
        """Open the database; one that is damaged is set aside, and a new one begun."""
        for is_last in (False, True):
            try:
                self._db = sqlite3.connect(self.path, timeout=WAIT_S, isolation_level=None, check_same_thread=False)
                try:
                    self._prepare()
                except BaseException:
                    self._db.close()
                    raise
                return
            except sqlite3.Error as error:
                if is_last or not is_damaged(error):
                    raise _as_os_error(error, self.name) from None
                log.warning(
                    "%s was damaged: a new one is begun, the old one is now %s", self.path, set_aside(self.path)
                )

    def _prepare(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        n_tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]  # fails where it is damaged
        if version not in (0, VERSION) or (version == 0 and n_tables):
            what = "it is a database of another program, or of another version (set another path)"
            raise ConfigError([f"sink.path: {self.path} cannot be written: {what}"])
        self._db.execute("PRAGMA journal_mode = WAL").fetchall()  # readers and the writer do not block each other
        self._db.execute("PRAGMA synchronous = NORMAL")
        if version == 0:
            self._db.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")

    def _put(self, record: Record) -> None:
        text = json.dumps(record)
        if "event" in record:
            row = (record["event"], record.get("at"), text)
            self._db.execute("INSERT INTO events (kind, at, record) VALUES (?, ?, ?)", row)
            return
        values = [_storable(record.get(column)) for column in COLUMNS]
        corrects = record.get("corrects")
        if corrects is not None and self._correct(corrects, values, record, text):
            return
        names = ("id", "at", *COLUMNS, "spooled", "corrects", "record")
        row = (_storable(record["id"]), record.get("at"), *values, record.get("spooled"), corrects, text)
        self._db.execute(
            f"INSERT OR IGNORE INTO decisions ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})", row
        )

    def _correct(self, corrects: str, values: list[object], record: Record, text: str) -> bool:
        """True if the row that the record corrects is here; a row is corrected only once."""
        given = [(column, value) for column, value in zip(COLUMNS, values, strict=True) if column != "truth"]
        sets = ", ".join(f"{column} = ?" for column, _ in given)
        done = self._db.execute(
            f"UPDATE decisions SET {sets}, corrects = ?, corrected_at = ?, first = record, record = ? "
            "WHERE spooled = ? AND corrects IS NULL",
            (*(value for _, value in given), corrects, record.get("at"), text, corrects),
        )
        return done.rowcount > 0

    def _prune(self) -> None:
        self._n_since_prune = 0
        if self.max_rows is not None:
            for table in ("decisions", "events"):
                self._db.execute(
                    f"DELETE FROM {table} WHERE seq <= (SELECT max(seq) FROM {table}) - ?", (self.max_rows,)
                )


def _storable(value: Any) -> Any:
    """A column's value as SQLite takes it: undecodable bytes of a name as \\udcff, a number beyond 64 bits as text.

    The column `record` has both as they are.
    """
    if isinstance(value, int) and not -MOST_INTEGER - 1 <= value <= MOST_INTEGER:
        return str(value)
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    return value


def _as_os_error(error: sqlite3.Error, name: str) -> OSError:
    code = getattr(error, "sqlite_errorcode", None)
    number = errno.ENOSPC if code == sqlite3.SQLITE_FULL else errno.EIO
    return OSError(number, str(error), name)
