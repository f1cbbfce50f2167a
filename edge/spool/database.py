"""The spool's SQLite file: its rows, and the limit on its size.

Three quarters of `max_bytes` are the file's, which SQLite itself keeps (`max_page_count`). Three sixteenths are the
log's: it is moved into the file when it has grown to a sixteenth (4 MB at most), and no payload is over an eighth. The
last sixteenth (4 MB at most) is ballast, deleted when the disk is full: that frees enough to move the log, and from
then on new rows can replace older ones without more of the disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import secrets
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from coe.cascade.types import Array, CallCost, Decision
from edge.field.harvest import as_file
from edge.sinks import Outcome, Record, as_record
from edge.sources import Example
from edge.sqlite_file import PAGE_BYTES, DatabaseFormat, log_of

from .config import SpoolConfig


def ballast_of(path: Path) -> Path:
    """A file of zeros that is deleted when the disk is full, so that what must be written still fits."""
    return path.with_name(path.name + ".ballast")


def size_of(path: Path) -> int:
    """Bytes of the file, its log and its ballast together."""
    total = 0
    for part in (path, log_of(path), ballast_of(path)):
        with contextlib.suppress(FileNotFoundError):
            total += part.stat().st_size
    return total


@dataclass(frozen=True, slots=True)
class SpoolRow:
    """An example in the spool.

    Args:
        key: its name in the sinks' records; no other example ever has the same.
        local: its outcome on the device; `spooled` is the key.
        answer: the outcome that corrects it, once there is one.
        mark: the sinks' mark before `local` was written.
        age_s: time since it was put, as the spool counts it.
        attempts: how often it was sent without an answer.
    """

    seq: int
    key: str
    kind: str
    payload: bytes
    local: Outcome
    answer: Outcome | None
    mark: str
    age_s: float
    attempts: int

    @property
    def example(self) -> Example:
        return Example(self.local.id, unpack(self.kind, self.payload), self.local.truth)


def pack(value: bytes | Array) -> tuple[str, bytes]:
    """Kind and bytes of an example's value: "captured" for bytes as they came, "npy" for an array."""
    return "captured" if isinstance(value, bytes) else "npy", as_file(value)[0]


def unpack(kind: str, payload: bytes) -> bytes | Array:
    """The value that was packed.

    Raises:
        ValueError: this is not what `pack` returned.
    """
    if kind == "captured":
        return payload
    array: Array = np.load(io.BytesIO(payload), allow_pickle=False)
    return array


def digest_of(name: str, kind: str, payload: bytes) -> bytes:
    """Digest of an example's id and content."""
    digest = hashlib.sha256(f"{len(name)} {kind} ".encode())
    digest.update(name.encode("utf-8", "surrogatepass"))
    digest.update(payload)
    return digest.digest()[:16]


def to_json(outcome: Outcome) -> str:
    content = asdict(replace(outcome, decisions=None)) | {"call": outcome.call.to_dict()}
    if outcome.decision is not None:
        content["decision"]["call"] = outcome.decision.call.to_dict()
    return json.dumps(content)


def from_json(text: str) -> Outcome:
    """The outcome; fields that only a newer agent knows are left out.

    Raises:
        ValueError, TypeError: this is not what `to_json` returned.
    """
    content = json.loads(text)
    decision = content.pop("decision")
    return Outcome(
        decision=None if decision is None else Decision(**_known(Decision, decision)), **_known(Outcome, content)
    )


def _known(kind: type[Any], content: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    known = {key: tuple(own) if isinstance(own, list) else own for key, own in content.items() if key in names}
    return known | {"call": CallCost.from_dict(content.get("call", {}))}


def as_row(columns: tuple[Any, ...], key: str, now: float) -> SpoolRow:
    """A row from its columns, checked against its digest.

    Raises:
        ValueError, TypeError, KeyError: the columns are not what was written.
    """
    seq, digest, kind, payload, local, answer, mark, put_at, attempts = columns
    outcome = from_json(local)
    if digest_of(outcome.id, kind, payload) != digest:
        raise ValueError("the content is not what was put")
    return SpoolRow(
        seq=seq,
        key=key,
        kind=kind,
        payload=payload,
        local=replace(outcome, spooled=key),
        answer=None if answer is None else from_json(answer),
        mark=mark,
        age_s=now - put_at,
        attempts=attempts,
    )


DROPPED = "dropped: "  # first part of a count's name, followed by the cause
T = TypeVar("T")
Counts = Counter[str]
Work = Callable[[sqlite3.Connection, Counts], T]  # called with the open file, and counts to add to
Claim = Work[bool]

SPOOL = DatabaseFormat(
    field="spool.path",
    version=2,
    upgrade="ALTER TABLE rows RENAME COLUMN told TO confirmed;",
    schema="""
CREATE TABLE rows (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    digest BLOB NOT NULL UNIQUE,
    confirmed INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    put_at REAL NOT NULL,
    answer TEXT,
    mark TEXT NOT NULL,
    local TEXT NOT NULL,
    kind TEXT NOT NULL,
    payload BLOB NOT NULL
);
CREATE INDEX unsure ON rows (seq) WHERE confirmed = 0;
CREATE INDEX answered ON rows (seq) WHERE answer IS NOT NULL;
CREATE TABLE facts (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
""",
)
# Beside `rows`, and unknown to agents of before: going back a version leaves what waits here for the next one.
OUTBOX = """
CREATE TABLE IF NOT EXISTS outbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    sink TEXT NOT NULL,  -- "" for all of them
    record TEXT NOT NULL,
    corrects TEXT,
    counts TEXT  -- what its example counts as once it is acknowledged by all sinks
);
CREATE INDEX IF NOT EXISTS outbox_sinks ON outbox (sink, seq);
CREATE INDEX IF NOT EXISTS outbox_corrections ON outbox (corrects) WHERE corrects IS NOT NULL;
"""
DELIVERING = "delivering"  # corrections that are out of `rows`, and not acknowledged by all sinks
COLUMNS = "seq, digest, kind, payload, local, answer, mark, put_at, attempts"

SLACK_PAGES = 32  # left free, so that an answer always fits
AT_ONCE = 16  # rows dropped in one transaction, which bounds the log
SPARE_PAGES = 256  # free pages that are kept in the file


class SpoolTable:
    """For one thread at a time. Every method may raise sqlite3.Error.

    Args:
        db: open, of the kind SPOOL.
        clock: seconds that only go forward; the table's own clock continues with it from its last value.
    """

    def __init__(self, db: sqlite3.Connection, config: SpoolConfig, clock: Callable[[], float]) -> None:
        self.db = db
        self.config = config
        self.pending: Counts = Counter()  # not written by a transaction yet
        self.notes = {"state": "ok", "last_error": "", "policy": ""}  # written with each transaction
        self.max_payload = config.max_bytes // 8
        self.max_log = config.max_bytes * 3 // 16
        self._least_log = min(config.max_bytes // 16, 4_000_000)
        self._max_pages = config.max_bytes * 3 // 4 // PAGE_BYTES
        db.execute("PRAGMA wal_autocheckpoint = 0")
        db.execute(f"PRAGMA journal_size_limit = {self._least_log}")
        facts = dict(db.execute("SELECT name, value FROM facts"))
        self.notes["policy"] = facts.get("policy", "")
        self.on_counted: Callable[[Counts], None] = lambda n: None  # called after each transaction
        self._clock = clock
        self._clock_base = float(facts.get("clock", 0.0)) - clock()
        self._counts: Counts = Counter({name: n for name, n in facts.items() if isinstance(n, int)})
        self._id = str(facts.get("id") or secrets.token_hex(3))
        self.unsure = {seq for (seq,) in db.execute("SELECT seq FROM rows WHERE confirmed = 0 AND answer IS NULL")}
        self._sure: set[int] = set()
        self._direction = "ASC" if config.order == "oldest" else "DESC"
        db.executescript(OUTBOX)
        turns = db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (f"turns_{config.order}",)).fetchone()
        if "id" not in facts or turns is None:
            self.transact(self._prepare)
        self.drop_while(lambda db, n: self.is_over(0), "bytes")
        while self.page_count > self._max_pages and self.reclaim(0):
            pass
        db.execute(f"PRAGMA max_page_count = {self._max_pages}").fetchall()
        self.lay_ballast()

    def _prepare(self, db: sqlite3.Connection, n: Counts) -> None:
        db.execute("INSERT OR IGNORE INTO facts VALUES ('id', ?)", (self._id,))
        db.execute(
            f"CREATE INDEX IF NOT EXISTS turns_{self.config.order} ON rows (attempts, seq {self._direction}) "
            "WHERE answer IS NULL"
        )

    @property
    def now(self) -> float:
        return self._clock_base + self._clock()

    def transact(self, work: Work[T]) -> T:
        """`work()` in a transaction, which also writes what it counts and all that is pending."""
        n: Counts = Counter()
        with self.db as db:
            db.execute("BEGIN IMMEDIATE")
            value = work(db, n)
            n.update(self.pending)
            sure = list(self._sure)
            db.executemany("UPDATE rows SET confirmed = 1 WHERE seq = ?", [(seq,) for seq in sure])
            facts = {name: self._counts[name] + added for name, added in n.items()}
            notes = {"clock": self.now, **self.notes}
            db.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", [*facts.items(), *notes.items()])
        self._counts.update(n)
        self.pending.clear()
        self._sure.difference_update(sure)
        self.on_counted(n)
        self.checkpoint(self._least_log)
        return value

    def insert(self, digest: bytes, kind: str, payload: bytes, local: str, mark: str) -> str:
        """Add a row; returns its key. It is `unsure` until `confirm`."""

        def work(db: sqlite3.Connection, n: Counts) -> int:
            n["offered"] += 1
            columns = "digest, put_at, mark, local, kind, payload"
            values = (digest, self.now, mark, local, kind, payload)
            done = db.execute(f"INSERT INTO rows ({columns}) VALUES (?, ?, ?, ?, ?, ?)", values)
            assert done.lastrowid is not None
            return done.lastrowid

        seq = self.transact(work)
        self.unsure.add(seq)
        return self._key(seq)

    def confirm(self, key: str) -> None:
        """Its first outcome is in the sinks; stored with the next transaction."""
        name, _, seq = key.rpartition("-")
        if name == self._id and int(seq) in self.unsure:
            self.unsure.discard(int(seq))
            self._sure.add(int(seq))

    def find(self, digest: bytes) -> tuple[str, bool] | None:
        """Key of the row with that digest, and True if it is answered; None: there is no such row."""
        found = self.db.execute("SELECT seq, answer IS NOT NULL FROM rows WHERE digest = ?", (digest,)).fetchone()
        return None if found is None else (self._key(found[0]), bool(found[1]))

    def next(self) -> SpoolRow | None:
        select = f"SELECT seq FROM rows WHERE answer IS NULL ORDER BY attempts, seq {self._direction} LIMIT ?"
        while True:
            turns = self.db.execute(select, (len(self.unsure) + 1,)).fetchall()
            seq = next((seq for (seq,) in turns if seq not in self.unsure), None)
            if seq is None:
                return None
            row = self._row(seq)
            if row is not None:
                return row

    def rows(self, where: str) -> list[SpoolRow]:
        seqs = self.db.execute(f"SELECT seq FROM rows WHERE {where} ORDER BY seq").fetchall()
        return [row for (seq,) in seqs if (row := self._row(seq)) is not None]

    def oldest_s(self) -> float | None:
        """Age of the oldest without an answer."""
        found = self.db.execute("SELECT put_at FROM rows WHERE answer IS NULL ORDER BY seq LIMIT 1").fetchone()
        return None if found is None else self.now - found[0]

    def n_rows(self, n: Counts) -> int:
        """The number of rows, by the counts and those to be added."""
        total = 0
        for counts in (self._counts, n):
            total += counts["offered"] - counts["corrected"] - counts["refused"] - counts[DELIVERING]
            total -= sum(count for name, count in counts.items() if name.startswith(DROPPED))
        return total

    def is_over(self, more_pages: int) -> bool:
        """True if that many pages more would be too many."""
        return self.page_count - self.free_pages + more_pages > self._max_pages - SLACK_PAGES

    def drop_while(self, claim: Claim, cause: str, *, answered: bool = False, most: float = math.inf) -> int:
        """Drop the oldest while `claim` holds, about `most` of them; returns how many.

        Args:
            answered: also those that have an answer.
        """
        total, last = 0, 1
        while last and total < most and claim(self.db, Counter()):
            last = self.transact(lambda db, n: self._drop_some(db, n, claim, cause, answered))
            total += last
        return total

    def _drop_some(self, db: sqlite3.Connection, n: Counts, claim: Claim, cause: str, answered: bool) -> int:
        where = "" if answered else "WHERE answer IS NULL"
        dropped = 0
        for (seq,) in db.execute(f"SELECT seq FROM rows {where} ORDER BY seq LIMIT {AT_ONCE}").fetchall():
            if not claim(db, n):
                break
            self._drop(db, n, seq, cause)
            dropped += 1
        return dropped

    def _drop(self, db: sqlite3.Connection, n: Counts, seq: int, cause: str) -> None:
        """Drop a row; a closing record, for all sinks, takes its place."""
        (local, put_at) = db.execute("SELECT local, put_at FROM rows WHERE seq = ?", (seq,)).fetchone()
        db.execute("DELETE FROM rows WHERE seq = ?", (seq,))
        self.unsure.discard(seq)
        n[DROPPED + cause] += 1
        try:
            outcome = from_json(local)
        except (ValueError, TypeError, KeyError):  # damaged: its id is not known
            return
        why, age_s = f"dropped: {cause}", max(self.now - put_at, 0.0)
        closing = Outcome(outcome.id, None, age_s, outcome.truth, why, trace=outcome.trace, corrects=self._key(seq))
        self.put_in_outbox(db, "", [as_record(closing, ())])

    def put_in_outbox(self, db: sqlite3.Connection, sink: str, records: Sequence[Record]) -> list[int]:
        """Numbers of the records, which are added for that sink."""
        insert = "INSERT INTO outbox (sink, record, corrects) VALUES (?, ?, ?)"
        seqs = []
        for record in records:
            done = db.execute(insert, (sink, json.dumps(record), record.get("corrects")))
            assert done.lastrowid is not None
            seqs.append(done.lastrowid)
        return seqs

    def take_from_outbox(self, db: sqlite3.Connection, n: Counts, seqs: Sequence[int]) -> None:
        """Remove records; an example whose correction all sinks have now is counted."""
        settled: dict[str, str] = {}
        for seq in seqs:
            found = db.execute("SELECT corrects, counts FROM outbox WHERE seq = ?", (seq,)).fetchone()
            db.execute("DELETE FROM outbox WHERE seq = ?", (seq,))
            if found is not None and found[1] is not None:
                settled[found[0]] = found[1]
        for key, what in settled.items():
            if db.execute("SELECT 1 FROM outbox WHERE corrects = ?", (key,)).fetchone() is None:
                n[DELIVERING] -= 1
                n[what] += 1

    def _row(self, seq: int) -> SpoolRow | None:
        """A row as it was put; None where it is damaged, which drops it."""
        found = self.db.execute(f"SELECT {COLUMNS} FROM rows WHERE seq = ?", (seq,)).fetchone()
        try:
            return as_row(found, self._key(seq), self.now)
        except (ValueError, TypeError, KeyError):
            self.transact(lambda db, n: self._drop(db, n, seq, "damaged"))
            return None

    def _key(self, seq: int) -> str:
        return f"{self._id}-{seq}"

    @property
    def page_count(self) -> int:
        return int(self.db.execute("PRAGMA page_count").fetchone()[0])

    @property
    def free_pages(self) -> int:
        """Unused pages of the file."""
        return int(self.db.execute("PRAGMA freelist_count").fetchone()[0])

    @property
    def log_bytes(self) -> int:
        try:
            return log_of(self.config.path).stat().st_size
        except FileNotFoundError:
            return 0

    def has_disk(self, n_bytes: int) -> bool:
        """True if the filesystem reports room for a payload and the ballast."""
        disk = os.statvfs(self.config.path.parent)
        return disk.f_bavail * disk.f_frsize > 2 * (self._least_log + n_bytes)

    def lay_ballast(self) -> None:
        """Create the ballast; where the disk is too full for it, there is none."""
        path = ballast_of(self.config.path)
        if self.config.drop == "newest":
            self.drop_ballast()
            return
        try:
            if path.exists() and path.stat().st_size == self._least_log:
                return
            with path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, self._least_log)
        except OSError:
            self.drop_ballast()

    def drop_ballast(self) -> None:
        ballast_of(self.config.path).unlink(missing_ok=True)

    def checkpoint(self, over_bytes: int, how: str = "RESTART") -> None:
        """Move the log into the file where it is longer than that; a reader, or a full disk, may prevent it.

        Args:
            how: "RESTART" keeps the log's disk space for the next writes, "TRUNCATE" frees it.
        """
        if self.log_bytes > over_bytes:
            with contextlib.suppress(sqlite3.OperationalError):  # the log is safe; the next write raises what is wrong
                self.db.execute(f"PRAGMA wal_checkpoint({how})").fetchall()

    def reclaim(self, spare: int = SPARE_PAGES, most: int = 512) -> bool:
        """Free some pages of the file, at most so many, where many are unused; True if it did."""
        free = self.free_pages
        if free <= max(spare, self.page_count // 4 if spare else 0):
            return False
        most = max(min(most, self._least_log // PAGE_BYTES // 2), 1)
        self.db.execute(f"PRAGMA incremental_vacuum({min(free - spare, most)})").fetchall()
        self.checkpoint(self._least_log)
        return self.free_pages < free
