"""Examples that wait for a later answer, in one SQLite file that is whole after a crash at any point.

An example is put, then answered (its correction is written down here), then gone (the correction is in the sinks).
Each step is one transaction. What leaves in any other way is counted by its cause, in the same transaction.

Ages are counted in seconds that an agent ran, since a device's wall clock may stand, or jump by years when the
network sets it: no step of it drops an example, or keeps one for good.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from coe.cascade.errors import ConfigError
from edge.sinks import Event, Outcome
from edge.sources import Example

from .config import SpoolConfig
from .database import (
    DISK_FULL,
    PAGE_BYTES,
    FileLock,
    ballast_of,
    connect,
    connect_or_anew,
    describe_error,
    is_damaged,
    is_full,
    set_aside,
)
from .table import (
    DROPPED,
    SPOOL,
    Claim,
    Counts,
    SpoolRow,
    SpoolStatus,
    SpoolTable,
    digest_of,
    from_json,
    pack,
    read_status,
    to_json,
)

T = TypeVar("T")

A_FEW = 32  # rows or pages, so that nobody waits long for the file


class SpoolStore:
    """One process's at a time, and any thread's. It never raises for its disk: it says what it could not do, and
    counts it.

    Args:
        tell: told what a user must know, on any thread.
        clock: seconds that only go forward.
    Raises:
        ConfigError: the file is in use by another agent, or cannot be opened.
    """

    def __init__(
        self, config: SpoolConfig, tell: Callable[[Event], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.config = config
        self._tell = tell
        self._clock = clock
        self._events: list[Event] = []
        self._lock = threading.RLock()
        self._is_dropping = False
        self._hopeless_bytes = 0  # dropping others made no room on the disk for that much
        self._table: SpoolTable | None = None
        self._file_lock = FileLock(config.path, SPOOL.field)
        try:
            try:
                db, aside = connect_or_anew(config.path, SPOOL, config.sync)
            except ConfigError:  # on a full disk, say: with more room it may be opened
                if not ballast_of(config.path).exists():
                    raise
                ballast_of(config.path).unlink()
                db, aside = connect_or_anew(config.path, SPOOL, config.sync)
            if aside is not None:
                self._events.append(Event("spool", {"state": "damaged", "set_aside": str(aside)}))
            self._table = self._opened(db)
        except BaseException:
            self._file_lock.close()
            raise
        self._guard(lambda: None, None)

    def put(self, example: Example, outcome: Outcome, mark: str = "") -> str:
        """Keep an example with its outcome so far: its key; "" where there is no room.

        An example that is here already (the same id, the same content) keeps its key.

        Args:
            mark: where the sinks' records stand now.
        """
        assert example.value is not None
        kind, payload = pack(example.value)
        digest, local = digest_of(example.id, kind, payload), to_json(outcome)
        with self._lock:
            for _ in range(2):  # twice, where the file turned out to be damaged, and is a new one now
                key = self._guard(lambda: self._put(digest, kind, payload, local, mark), None)
                if key is not None or self._table is None or self.state != "ok":
                    break
            if key is None:
                self._lose("disk")
        return key or ""

    def confirm(self, key: str) -> None:
        """The outcome an example was put with is in the sinks: it may be corrected from now on."""
        with self._lock:
            if self._table is not None:
                self._table.confirm(key)

    def next(self) -> SpoolRow | None:
        """Whose turn it is: of those asked about least often, the oldest (or the newest)."""
        return self._guard(lambda: self._open_table.next(), None)

    def put_off(self, row: SpoolRow, why: str) -> None:
        """It had no answer that counts: after the others, it is asked about again."""

        def work(db: sqlite3.Connection, n: Counts) -> None:
            self._open_table.notes["last_error"] = why
            db.execute("UPDATE rows SET attempts = attempts + 1 WHERE seq = ?", (row.seq,))

        self._guard(lambda: self._open_table.transact(work), None)

    def answer(self, row: SpoolRow, outcome: Outcome) -> bool:
        """Write its correction down. False: it is not here any more, or cannot be written."""
        text = to_json(outcome)

        def work(db: sqlite3.Connection, n: Counts) -> bool:
            done = db.execute("UPDATE rows SET answer = ? WHERE seq = ? AND answer IS NULL", (text, row.seq))
            return done.rowcount == 1

        return self._guard(lambda: self._open_table.transact(work), False)

    def gone(self, row: SpoolRow) -> bool:
        """Its correction is in the sinks. False: that cannot be written down now."""

        def work(db: sqlite3.Connection, n: Counts) -> bool:
            found = db.execute("SELECT answer FROM rows WHERE seq = ?", (row.seq,)).fetchone()
            if found is not None:
                db.execute("DELETE FROM rows WHERE seq = ?", (row.seq,))
                n["corrected" if from_json(found[0]).decision is not None else "refused"] += 1
            return True

        done = self._guard(lambda: self._open_table.transact(work), False)
        self._guard(lambda: self._open_table.reclaim(most=A_FEW), False)
        return done

    def answered(self) -> list[SpoolRow]:
        """Rows with a correction that is not known to be in the sinks."""
        return self._guard(lambda: self._open_table.rows("answer IS NOT NULL"), [])

    def unsure(self) -> list[SpoolRow]:
        """Rows whose first outcome is not known to be in the sinks."""
        with self._lock:
            seqs = set() if self._table is None else set(self._table.unsure)
            rows: list[SpoolRow] = self._guard(lambda: self._open_table.rows("answer IS NULL AND told = 0"), [])
        return [row for row in rows if row.seq in seqs]

    def tidy(self) -> None:
        """Drop what is over the age, give back what the file does not need, and see whether a bad disk is well again.

        To be called now and then.
        """
        while self._guard(lambda: self._expire(A_FEW), 0):  # a few at a time: examples are put in between
            pass
        self._guard(self._tidy, None)
        while self._guard(lambda: self._open_table.reclaim(), False):
            pass

    def apply_policy(self, policy: str) -> None:
        """What was kept while other examples might leave the device is not sent under this policy: it is dropped.

        Args:
            policy: in words; "" for one that lets all go.
        Raises:
            ConfigError: it cannot be dropped now, the disk being full, say: nothing of it may be sent.
        """

        def hold() -> bool:
            table = self._open_table
            if policy == table.notes["policy"]:
                return True
            if policy:
                table.drop_while(lambda db, n: True, "policy")
            table.notes["policy"] = policy
            table.transact(lambda db, n: None)
            return True

        is_held = self._guard(hold, False) or self._guard(hold, False)  # once more on a file that was damaged
        if policy and not is_held:
            what = "what it holds may no longer leave, and cannot be dropped"
            raise ConfigError(
                [f"{SPOOL.field}: {self.config.path}: {what} ({self.state}; make room, or remove the file)"]
            )

    def clear(self) -> int:
        """Drop all; how many."""
        n = self._guard(lambda: self._open_table.drop_while(lambda db, n: True, "cleared", answered=True), 0)
        self.tidy()
        return n

    @property
    def state(self) -> str:
        """ "ok", "disk full", or what else is wrong with the disk."""
        table = self._table
        return "closed" if table is None else table.notes["state"]

    def status(self) -> SpoolStatus | None:
        """None where it cannot be read now."""
        with self._lock:
            read = self._guard(lambda: read_status(self._open_table.db, self.config.path, self._open_table.now), None)
            if read is None or self._table is None:
                return None
            pending = self._table.pending
            dropped = Counter(read.dropped)
            dropped.update({name.removeprefix(DROPPED): n for name, n in pending.items() if name.startswith(DROPPED)})
            return replace(read, n_offered=read.n_offered + pending["offered"], dropped=dropped, state=self.state)

    def close(self) -> None:
        """Write down what is pending, and let go of the file."""
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
        """`work()`; where the file or its disk fails, `otherwise`, and what is to be said is said."""
        with self._lock:
            try:
                return work()
            except sqlite3.Error as error:
                if self._table is not None:
                    self._fail(error)
                return otherwise
            finally:
                events, self._events = self._events, []
                for event in events:
                    self._tell(event)

    def _fail(self, error: sqlite3.Error) -> None:
        if is_damaged(error):
            self._start_anew()
        elif isinstance(error, sqlite3.OperationalError):  # the disk is full, or fails
            if self.state == "ok":
                self._events.append(Event("spool", {"state": describe_error(error)}))
            self._open_table.notes["state"] = describe_error(error)
        else:
            raise error

    def _opened(self, db: sqlite3.Connection) -> SpoolTable:
        try:
            return SpoolTable(db, self.config, self._clock)
        except sqlite3.Error as error:
            db.close()
            if not is_damaged(error):
                raise ConfigError(
                    [f"{SPOOL.field}: {self.config.path} cannot be used: {describe_error(error)}"]
                ) from None
        aside = set_aside(self.config.path)
        self._events.append(Event("spool", {"state": "damaged", "set_aside": str(aside)}))
        return SpoolTable(connect(self.config.path, SPOOL, self.config.sync), self.config, self._clock)

    def _start_anew(self) -> None:
        """Set the damaged file aside: what was in it nobody can count."""
        self._open_table.db.close()
        self._table = None
        try:
            aside = set_aside(self.config.path)
            self._table = SpoolTable(connect(self.config.path, SPOOL, self.config.sync), self.config, self._clock)
        except (OSError, sqlite3.Error, ConfigError) as error:
            self._events.append(Event("spool", {"state": f"damaged, and cannot be begun anew: {error}"}))
            return
        self._events.append(Event("spool", {"state": "damaged", "set_aside": str(aside)}))

    def _put(self, digest: bytes, kind: str, payload: bytes, local: str, mark: str) -> str:
        table = self._open_table
        found = table.find(digest)
        if found is not None:
            key, is_answered = found
            return "" if is_answered else key
        self._expire(A_FEW)
        need = (len(payload) + len(local) + len(mark)) // (PAGE_BYTES - 4) + 9
        if not self._has_room(need, len(payload)):
            try:
                table.transact(lambda db, n: None)  # that it is lost is counted, whatever happens next
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
                self._work_again()
                return key
        if self.config.drop == "newest" or 0 < self._hopeless_bytes <= len(payload):
            self._lose("disk")
            return ""
        try:  # in the place of others, whose pages are on the disk already
            table.drop_ballast()
            table.checkpoint(0)
            table.drop_while(lambda db, n: table.free_pages < need, "disk")
            return table.insert(digest, kind, payload, local, mark)
        except sqlite3.OperationalError:
            self._hopeless_bytes = len(payload)  # or every example from now on would cost others, for nothing
            raise

    def _has_room(self, need: int, n_bytes: int) -> bool:
        """Whether so many pages fit within the bounds, once those are dropped whose place may be taken."""
        table = self._open_table
        if n_bytes > table.max_payload:
            return self._lose("large")
        if table.log_bytes + n_bytes > table.max_log * 3 // 4:
            table.checkpoint(0, "TRUNCATE")
            if table.log_bytes + n_bytes > table.max_log:  # one who reads prevents it
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
        """Count one that is not kept."""
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
            self._work_again()
        if self._is_dropping and table.n_rows(Counter()) == 0:
            self._is_dropping = False

    def _work_again(self) -> None:
        """The disk takes what it is given."""
        if self.state != "ok":
            self._open_table.notes["state"], self._hopeless_bytes = "ok", 0
            self._open_table.lay_ballast()
            self._events.append(Event("spool", {"state": "ok"}))
