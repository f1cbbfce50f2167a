"""How full a spool is, what became of what was in it, and whether its disk holds."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .database import size_of

DROPPED = "dropped: "  # begins the names of counts of what was dropped, its cause behind


@dataclass(frozen=True, slots=True)
class SpoolStatus:
    """A spool at one moment. Counts are since the file was made; offered = waiting + answered + corrected + refused
    + dropped.

    Args:
        n_waiting: examples that wait for an answer.
        n_answered: that have one which is not known to be in the sinks yet.
        n_offered: examples that came to be kept.
        n_corrected: answered late, and written.
        n_refused: that no server takes, which was written.
        dropped: by cause: "age", "count", "bytes" (to stay within bounds), "large" (one by itself), "disk" (full, or
            failing), "damaged", "policy" (kept before more was held back), "cleared".
        n_bytes: of the file and its log.
        oldest_s: age of the oldest that waits, in seconds an agent ran; None where none waits.
        state: "ok", "disk full", or the disk's error in words.
        last_error: why the latest example asked about had no answer; "" for none.
    """

    path: Path
    n_waiting: int
    n_answered: int
    n_offered: int
    n_corrected: int
    n_refused: int
    dropped: Mapping[str, int]
    n_bytes: int
    oldest_s: float | None
    state: str
    last_error: str

    @property
    def n_dropped(self) -> int:
        return sum(self.dropped.values())


def read_status(db: sqlite3.Connection, path: Path, now: float | None = None) -> SpoolStatus:
    """The status of an open spool.

    Args:
        now: second of the spool's clock; None: the last it wrote down.
    Raises:
        sqlite3.Error: it cannot be read.
    """
    facts: dict[str, Any] = dict(db.execute("SELECT name, value FROM facts"))
    n_waiting = db.execute("SELECT count(*) FROM rows WHERE answer IS NULL").fetchone()[0]
    n_answered = db.execute("SELECT count(*) FROM rows WHERE answer IS NOT NULL").fetchone()[0]
    oldest = db.execute("SELECT put_at FROM rows WHERE answer IS NULL ORDER BY seq LIMIT 1").fetchone()
    if now is None:
        now = facts.get("clock", 0.0)
    return SpoolStatus(
        path=path,
        n_waiting=n_waiting,
        n_answered=n_answered,
        n_offered=facts.get("offered", 0),
        n_corrected=facts.get("corrected", 0),
        n_refused=facts.get("refused", 0),
        dropped={name.removeprefix(DROPPED): n for name, n in sorted(facts.items()) if name.startswith(DROPPED)},
        n_bytes=size_of(path),
        oldest_s=None if oldest is None else max(now - oldest[0], 0.0),
        state=facts.get("state", "ok"),
        last_error=facts.get("last_error", ""),
    )


def as_facts(status: SpoolStatus) -> dict[str, Any]:
    """A status as plain data. `error`: what is wrong with the disk; "" for nothing."""
    return {
        "waiting": status.n_waiting,
        "answered": status.n_answered,
        "offered": status.n_offered,
        "corrected": status.n_corrected,
        "refused": status.n_refused,
        "dropped": dict(status.dropped),
        "bytes": status.n_bytes,
        "oldest_s": status.oldest_s,
        "error": "" if status.state == "ok" else status.state,
        "last_error": status.last_error,
    }
