"""How one writer of several fares: what it took, what it lost, and since when it fails."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .base import Record, Writer

Facts = dict[str, Any]
News = Callable[["Outlet", Facts], None]  # told once as an outlet begins to fail, and once as it works again, say


@dataclass(frozen=True, slots=True)
class SinkStatus:
    """One sink at one moment.

    Args:
        name: where it writes; kind: as the config calls it.
        written, dropped: records so far.
        failing_since: `time.monotonic()` second; None: it works.
        last_error: the latest one; "" where there was none.
        queued: records that wait for it.
    """

    name: str
    kind: str
    written: int
    dropped: int
    failing_since: float | None
    last_error: str
    queued: int


class Outlet:
    """A writer's state. Written by one thread at a time; a reader may see it mid-way."""

    def __init__(self, name: str, kind: str) -> None:
        self.name = name
        self.kind = kind
        self.written = self.dropped = 0
        self.failing_since: float | None = None
        self.last_error = ""
        self.news: News = lambda outlet, facts: None
        self._dropped_before = 0  # the present outage

    @property
    def queued(self) -> int:
        return 0

    def status(self) -> SinkStatus:
        return SinkStatus(
            self.name, self.kind, self.written, self.dropped, self.failing_since, self.last_error, self.queued
        )

    def works(self) -> None:
        """It took something."""
        if self.failing_since is not None:
            away_s = time.monotonic() - self.failing_since
            self.failing_since = None
            self._say("back", away_s=round(away_s, 3), dropped=self.dropped - self._dropped_before)

    def fails(self, error: Exception) -> None:
        """It did not."""
        self.last_error = told(error)
        if self.failing_since is None:
            self.failing_since = time.monotonic()
            self._dropped_before = self.dropped
            self._say("failing", error=self.last_error)

    def _say(self, state: str, **facts: Any) -> None:
        self.news(self, {"sink": self.name, "kind": self.kind, "state": state, **facts})


class Direct(Outlet):
    """A writer that is quick: it takes each record at once. One that it could not take is lost to it, and counted."""

    def __init__(self, writer: Writer, name: str = "", kind: str = "") -> None:
        super().__init__(name or type(writer).__name__, kind or type(writer).__name__)
        self.writer = writer

    def take(self, record: Record) -> OSError | None:
        """Why it was not taken; None: it was."""
        try:
            self.writer.write(record)
        except OSError as error:
            self.fails(error)
            self.dropped += 1
            return error
        self.written += 1
        if self.failing_since is not None:
            self.works()
        return None


def told(error: Exception) -> str:
    """An error in a line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return (str(error) or type(error).__name__).splitlines()[0]
