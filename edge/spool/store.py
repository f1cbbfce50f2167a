"""Examples that wait for a later answer, in one SQLite file that is consistent after a crash at any point.

An example is put, then answered (its correction is stored here), then gone (the correction is in the sinks). Each step
is one transaction. An example that leaves in any other way is counted by the cause, in the same transaction.

Ages are counted in seconds that an agent ran, since a device's wall clock may stand still, or jump by years when the
network sets it: such a jump drops no example, and keeps none for ever.
"""

from __future__ import annotations

import errno
import json
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from coe.cascade.errors import ConfigError, NotUsableNow
from edge.sinks import Event, Outcome, Record
from edge.sources import Example
from edge.sqlite_file import (
    DISK_FULL,
    PAGE_BYTES,
    FileLock,
    connect,
    connect_or_anew,
    describe_error,
    is_damaged,
    is_full,
    set_aside,
)

from .config import SpoolConfig
from .database import (
    DELIVERING,
    DROPPED,
    SPOOL,
    Claim,
    Counts,
    SpoolRow,
    SpoolTable,
    ballast_of,
    digest_of,
    from_json,
    pack,
    size_of,
    to_json,
)


@dataclass(frozen=True, slots=True)
class SpoolStatus:
    """A spool at one moment. Counts are since the file was created; offered = waiting + answered + delivering
    + corrected + refused + dropped.

    Args:
        n_waiting: examples that wait for an answer.
        n_answered: those with an answer that is not known to be in the sinks yet.
        n_offered: examples that were to be kept.
        n_corrected: answered late, and written.
        n_refused: refused by the servers, and written so.
        n_delivering: answered late, and not acknowledged yet by a sink that acknowledges.
        n_outbox: records that wait for a sink.
        dropped: by cause: "age", "count", "bytes" (to stay within the limits), "large" (by itself), "disk" (full, or
            failing), "damaged", "policy" (kept before more was held back), "cleared".
        n_bytes: of the file, its log and its ballast.
        oldest_s: age of the oldest that waits, in seconds an agent ran; None where none waits.
        state: "ok", "disk full", or the disk's error in words.
        last_error: why the latest call had no answer; "" for none.
    """

    n_waiting: int
    n_answered: int
    n_offered: int
    n_corrected: int
    n_refused: int
    n_delivering: int
    n_outbox: int
    dropped: Mapping[str, int]
    n_bytes: int
    oldest_s: float | None
    state: str
    last_error: str

    @property
    def n_dropped(self) -> int:
        return sum(self.dropped.values())

    def facts(self) -> dict[str, Any]:
        """The status as plain data. `error`: what is wrong with the disk; "" for nothing."""
        facts = {name.removeprefix("n_"): value for name, value in asdict(self).items()}
        state = facts.pop("state")
        return {**facts, "error": "" if state == "ok" else state}


def read_status(db: sqlite3.Connection, path: Path, now: float | None = None) -> SpoolStatus:
    """The status of an open spool.

    Args:
        now: second of the spool's clock; None: the last one stored.
    Raises:
        sqlite3.Error: it cannot be read.
    """
    facts: dict[str, Any] = dict(db.execute("SELECT name, value FROM facts"))
    n_waiting = db.execute("SELECT count(*) FROM rows WHERE answer IS NULL").fetchone()[0]
    n_answered = db.execute("SELECT count(*) FROM rows WHERE answer IS NOT NULL").fetchone()[0]
    has_outbox = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'outbox'").fetchone()
    n_outbox = db.execute("SELECT count(*) FROM outbox").fetchone()[0] if has_outbox else 0
    oldest = db.execute("SELECT put_at FROM rows WHERE answer IS NULL ORDER BY seq LIMIT 1").fetchone()
    if now is None:
        now = facts.get("clock", 0.0)
    return SpoolStatus(
        n_waiting=n_waiting,
        n_answered=n_answered,
        n_offered=facts.get("offered", 0),
        n_corrected=facts.get("corrected", 0),
        n_refused=facts.get("refused", 0),
        n_delivering=facts.get(DELIVERING, 0),
        n_outbox=n_outbox,
        dropped={name.removeprefix(DROPPED): n for name, n in sorted(facts.items()) if name.startswith(DROPPED)},
        n_bytes=size_of(path),
        oldest_s=None if oldest is None else max(now - oldest[0], 0.0),
        state=facts.get("state", "ok"),
        last_error=facts.get("last_error", ""),
    )


T = TypeVar("T")

A_FEW = 32  # rows or pages, so that no thread waits long for the file


class SpoolStore:
    """For one process at a time, and any of its threads. An error of the disk is not raised: the methods return what
    they could not do, and count it.

    Args:
        on_event: called with each event of the spool, on any thread; None: they wait until it is set.
        clock: seconds that only go forward.
    Raises:
        ConfigError: the file is in use by another agent, or another program's.
        OSError: it cannot be opened now.
    """

    def __init__(
        self, config: SpoolConfig, on_event: Callable[[Event], None] | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.config = config
        self.on_event = on_event
        self.on_corrected: Callable[[int], None] = lambda n: None  # called with how many are known to be delivered
        self._clock = clock
        self._events: list[Event] = []
        self._lock = threading.RLock()
        self._depth = 0
        self._is_dropping = False
        self._hopeless_bytes = 0  # dropping others did not free that much of the disk
        self._table: SpoolTable | None = None
        self._file_lock = FileLock(config.path, SPOOL.field)
        try:
            try:
                db, aside = connect_or_anew(config.path, SPOOL, config.sync)
            except OSError:  # such as on a full disk: with more room it may be opened
                if not ballast_of(config.path).exists():
                    raise
                ballast_of(config.path).unlink()
                db, aside = connect_or_anew(config.path, SPOOL, config.sync)
            if aside is not None:
                state = "newer" if ".format-" in aside.name else "damaged"
                self._events.append(Event("spool", {"state": state, "set_aside": str(aside)}))
            self._table = self._opened(db)
        except BaseException:
            self._file_lock.close()
            raise
        self._guard(lambda: None, None)

    def put(self, example: Example, outcome: Outcome, mark: str = "") -> str:
        """Keep an example with its outcome so far; returns its key, "" where there is no room.

        An example that is here already (the same id, the same content) keeps its key.

        Args:
            mark: the sinks' mark now.
        """
        assert example.value is not None
        kind, payload = pack(example.value)
        digest, local = digest_of(example.id, kind, payload), to_json(outcome)
        with self._locked():
            for _ in range(2):  # twice, where the file was damaged, and was replaced
                key = self._guard(lambda: self._put(digest, kind, payload, local, mark), None)
                if key is not None or self._table is None or self.state != "ok":
                    break
            if key is None:
                self._lose("disk")
        return key or ""

    def confirm(self, key: str) -> None:
        """The outcome that an example was put with is in the sinks: it may be corrected from now on."""
        with self._lock:
            if self._table is not None:
                self._table.confirm(key)

    def next(self) -> SpoolRow | None:
        """The next row to send: of those with the fewest attempts, the oldest (or the newest)."""
        return self._guard(lambda: self._open_table.next(), None)

    def put_off(self, row: SpoolRow, why: str) -> None:
        """It had no answer: it is sent again after the others."""

        def work(db: sqlite3.Connection, n: Counts) -> None:
            self._open_table.notes["last_error"] = why
            db.execute("UPDATE rows SET attempts = attempts + 1 WHERE seq = ?", (row.seq,))

        self._guard(lambda: self._open_table.transact(work), None)

    def answer(self, row: SpoolRow, outcome: Outcome) -> bool:
        """Store its correction. False: the row is not here any more, or cannot be written."""
        text = to_json(outcome)

        def work(db: sqlite3.Connection, n: Counts) -> bool:
            done = db.execute("UPDATE rows SET answer = ? WHERE seq = ? AND answer IS NULL", (text, row.seq))
            return done.rowcount == 1

        return self._guard(lambda: self._open_table.transact(work), False)

    def gone(self, row: SpoolRow) -> bool:
        """Its correction is in the sinks, or in the outbox for them: remove it. False: that cannot be written now."""

        def work(db: sqlite3.Connection, n: Counts) -> bool:
            found = db.execute("SELECT answer FROM rows WHERE seq = ?", (row.seq,)).fetchone()
            if found is not None:
                db.execute("DELETE FROM rows WHERE seq = ?", (row.seq,))
                counts = "corrected" if from_json(found[0]).decision is not None else "refused"
                its = db.execute("UPDATE outbox SET counts = ? WHERE corrects = ?", (counts, row.key))
                n[DELIVERING if its.rowcount else counts] += 1
            return True

        done = self._guard(lambda: self._open_table.transact(work), False)
        self._guard(lambda: self._open_table.reclaim(most=A_FEW), False)
        return done

    def outbox(self, sink: str, after: int = 0, most: int = A_FEW) -> list[tuple[int, Record]] | None:
        """Records that wait for a sink ("": for all of them), each after its number; None where it cannot be read."""
        query = "SELECT seq, record FROM outbox WHERE sink = ? AND seq > ? ORDER BY seq LIMIT ?"

        def work() -> list[tuple[int, Record]]:
            found = self._open_table.db.execute(query, (sink, after, most)).fetchall()
            return [(seq, json.loads(text)) for seq, text in found]

        return self._guard(work, None)

    def outbox_count(self, sink: str) -> int:
        query = "SELECT count(*) FROM outbox WHERE sink = ?"
        return int(self._guard(lambda: self._open_table.db.execute(query, (sink,)).fetchone()[0], 0))

    def outbox_holds(self, sink: str, key: str) -> bool:
        """True if the correction of the example with that key waits for the sink."""
        query = "SELECT 1 FROM outbox WHERE sink = ? AND corrects = ?"
        return self._guard(lambda: self._open_table.db.execute(query, (sink, key)).fetchone() is not None, False)

    def update_outbox(self, sink: str, done: Sequence[int], new: Sequence[Record]) -> list[int] | None:
        """Remove the records that are done, by number, and add new ones; returns their numbers.

        None: it cannot be written, or has no room, now.
        """

        def work(db: sqlite3.Connection, n: Counts) -> list[int]:
            self._open_table.take_from_outbox(db, n, done)
            return self._open_table.put_in_outbox(db, sink, new)

        def update() -> list[int] | None:
            table = self._open_table
            need = len(new) // 2 + 4 if new else 0  # pages, for records of up to 2 kB
            table.drop_while(lambda db, n: need > 0 and table.is_over(need), "bytes")
            return None if need and table.is_over(need) else table.transact(work)

        return self._guard(update, None)

    def keep_outboxes(self, sinks: Collection[str]) -> int:
        """Drop what waits for other sinks than these; returns how much."""
        names = ("", *sinks)
        query = f"SELECT seq FROM outbox WHERE sink NOT IN ({', '.join('?' * len(names))})"

        def work() -> int:
            seqs = [seq for (seq,) in self._open_table.db.execute(query, names)]
            if seqs:
                self._open_table.transact(lambda db, n: self._open_table.take_from_outbox(db, n, seqs))
            return len(seqs)

        return self._guard(work, 0)

    def answered(self) -> list[SpoolRow]:
        """Rows with a correction that is not known to be in the sinks."""
        return self._guard(lambda: self._open_table.rows("answer IS NOT NULL"), [])

    def unsure(self) -> list[SpoolRow]:
        """Rows whose first outcome is not known to be in the sinks."""
        with self._lock:
            seqs = set() if self._table is None else set(self._table.unsure)
            rows: list[SpoolRow] = self._guard(lambda: self._open_table.rows("answer IS NULL AND confirmed = 0"), [])
        return [row for row in rows if row.seq in seqs]

    def tidy(self) -> None:
        """Drop what is over the age, free what the file does not need, and check whether a failing disk works again.

        Call it now and then.
        """
        while self._guard(lambda: self._expire(A_FEW), 0):  # a few at a time: examples are put in between
            pass
        self._guard(self._tidy, None)
        while self._guard(lambda: self._open_table.reclaim(), False):
            pass

    def apply_policy(self, policy: str) -> None:
        """Drop the examples that were kept under another policy, since this one may not let them leave the device.

        Args:
            policy: in words; "" for one that lets every example leave.
        Raises:
            ConfigError: they cannot be dropped now, such as on a full disk: none of them may be sent.
        """

        def apply() -> bool:
            table = self._open_table
            if policy == table.notes["policy"]:
                return True
            if policy:
                table.drop_while(lambda db, n: True, "policy")
            table.notes["policy"] = policy
            table.transact(lambda db, n: None)
            return True

        is_applied = self._guard(apply, False) or self._guard(apply, False)  # again on a file that was damaged
        if policy and not is_applied:
            what = "what it holds may no longer leave, and cannot be dropped"
            raise NotUsableNow(
                [f"{SPOOL.field}: {self.config.path}: {what} ({self.state}; make room, or remove the file)"]
            )

    def clear(self) -> int:
        """Drop all rows; returns how many."""
        n = self._guard(lambda: self._open_table.drop_while(lambda db, n: True, "cleared", answered=True), 0)
        self.tidy()
        return n

    @property
    def state(self) -> str:
        """ "ok", "disk full", "closed", or the disk's error in words."""
        table = self._table
        return "closed" if table is None else table.notes["state"]

    def status(self) -> SpoolStatus | None:
        """The spool's status; None where it cannot be read now."""
        with self._lock:
            read = self._guard(lambda: read_status(self._open_table.db, self.config.path, self._open_table.now), None)
            if read is None or self._table is None:
                return None
            pending = self._table.pending
            dropped = Counter(read.dropped)
            dropped.update({name.removeprefix(DROPPED): n for name, n in pending.items() if name.startswith(DROPPED)})
            return replace(read, n_offered=read.n_offered + pending["offered"], dropped=dict(dropped), state=self.state)

    def close(self) -> None:
        """Write what is pending, and close the file."""
        with self._lock:
            if self._table is not None:
                self._guard(lambda: self._open_table.transact(lambda db, n: None), None)
            if self._table is not None:
                self._table.db.close()
                self._table = None
            self._file_lock.close()

    @property
    def _open_table(self) -> SpoolTable:
        if self._table is None:
            raise sqlite3.ProgrammingError("closed")
        return self._table

    def _guard(self, work: Callable[[], T], otherwise: T) -> T:
        """`work()`; `otherwise` where the file or its disk fails. Then events that came up are reported."""
        with self._locked():
            try:
                return work()
            except sqlite3.Error as error:
                if self._table is not None:
                    self._fail(error)
                return otherwise

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The lock, while the block runs; what came up meanwhile is reported without it."""
        events: list[Event] = []
        try:
            with self._lock:
                self._depth += 1
                try:
                    yield
                finally:
                    self._depth -= 1
                    if not self._depth and self.on_event is not None:
                        events, self._events = self._events, []
        finally:
            for event in events:
                assert self.on_event is not None
                self.on_event(event)

    def _fail(self, error: sqlite3.Error) -> None:
        if is_damaged(error):
            self._open_table.db.close()
            self._table = None
            try:
                self._table = self._anew()
            except (OSError, sqlite3.Error, ConfigError) as failure:
                self._events.append(Event("spool", {"state": f"damaged, and cannot be replaced: {failure}"}))
        elif isinstance(error, sqlite3.OperationalError):  # the disk is full, or fails
            if self.state == "ok":
                self._events.append(Event("spool", {"state": describe_error(error)}))
            self._open_table.notes["state"] = describe_error(error)
        else:
            raise error

    def _opened(self, db: sqlite3.Connection) -> SpoolTable:
        try:
            return self._table_of(db)
        except sqlite3.Error as error:
            db.close()
            if not is_damaged(error):
                what = f"{SPOOL.field} cannot be used: {describe_error(error)}"
                raise OSError(errno.EIO, what, str(self.config.path)) from None
        return self._anew()

    def _anew(self) -> SpoolTable:
        """A new file in place of the damaged one, which is renamed; its rows cannot be counted."""
        aside = set_aside(self.config.path)
        table = self._table_of(connect(self.config.path, SPOOL, self.config.sync))
        self._events.append(Event("spool", {"state": "damaged", "set_aside": str(aside)}))
        return table

    def _table_of(self, db: sqlite3.Connection) -> SpoolTable:
        table = SpoolTable(db, self.config, self._clock)
        table.on_counted = self._counted
        return table

    def _counted(self, n: Counts) -> None:
        if n_corrected := n["corrected"] + n["refused"]:
            self.on_corrected(n_corrected)

    def _put(self, digest: bytes, kind: str, payload: bytes, local: str, mark: str) -> str:
        table = self._open_table
        if (found := table.find(digest)) is not None:
            key, is_answered = found
            return "" if is_answered else key
        self._expire(A_FEW)
        need = (len(payload) + len(local) + len(mark)) // (PAGE_BYTES - 4) + 9
        if not self._has_room(need, len(payload)):
            try:
                table.transact(lambda db, n: None)  # counts the loss, whatever happens next
            except sqlite3.OperationalError as error:
                self._fail(error)
            return ""
        if self.state != DISK_FULL or table.has_disk(len(payload)):
            try:
                key = table.insert(digest, kind, payload, local, mark)
            except sqlite3.OperationalError as error:
                self._fail(error)
                if not is_full(error):
                    raise
            else:
                self._mark_working()
                return key
        if self.config.drop == "newest" or 0 < self._hopeless_bytes <= len(payload):
            self._lose("disk")
            return ""
        try:  # replace others, whose pages are on the disk already
            table.drop_ballast()
            table.checkpoint(0)
            table.drop_while(lambda db, n: table.free_pages < need, "disk")
            return table.insert(digest, kind, payload, local, mark)
        except sqlite3.OperationalError:
            self._hopeless_bytes = len(payload)  # or every further example would drop others for nothing
            raise

    def _has_room(self, need: int, n_bytes: int) -> bool:
        """True if so many pages fit within the limits, after dropping the rows that may be dropped for them."""
        table = self._open_table
        if n_bytes > table.max_payload:
            return self._lose("large")
        if table.log_bytes + n_bytes > table.max_log * 3 // 4:
            table.checkpoint(0, "TRUNCATE")
            if table.log_bytes + n_bytes > table.max_log:  # a reader prevents it
                return self._lose("bytes")
        bounds: dict[str, Claim] = {
            "count": lambda db, n: table.n_rows(n) >= self.config.max_count,
            "bytes": lambda db, n: table.is_over(need),
        }
        for cause, is_over in bounds.items():
            if is_over(table.db, Counter()):
                if not self._is_dropping:
                    self._is_dropping = True
                    self._events.append(Event("spool", {"state": "full", "drops": self.config.drop}))
                if self.config.drop == "oldest":
                    table.drop_while(is_over, cause)
                if is_over(table.db, Counter()):
                    return self._lose(cause)
        return True

    def _lose(self, cause: str) -> bool:
        """False; counts an example that is not kept."""
        if self._table is not None:
            self._table.pending["offered"] += 1
            self._table.pending[DROPPED + cause] += 1
        return False

    def _expire(self, most: int) -> int:
        table = self._open_table
        return table.drop_while(lambda db, n: (table.oldest_s() or 0.0) > self.config.max_age_s, "age", most=most)

    def _tidy(self) -> None:
        table = self._open_table
        if self.state != "ok" and (self.state != DISK_FULL or table.has_disk(65536)):
            table.transact(lambda db, n: db.execute("INSERT OR REPLACE INTO facts VALUES ('probe', zeroblob(65536))"))
            table.transact(lambda db, n: db.execute("DELETE FROM facts WHERE name = 'probe'"))
            self._mark_working()
        if self._is_dropping and table.n_rows(Counter()) == 0:
            self._is_dropping = False

    def _mark_working(self) -> None:
        """A write succeeded: the disk works again if it did not."""
        if self.state != "ok":
            self._open_table.notes["state"], self._hopeless_bytes = "ok", 0
            self._open_table.lay_ballast()
            self._events.append(Event("spool", {"state": "ok"}))
