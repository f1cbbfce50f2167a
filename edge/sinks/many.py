"""Several sinks as one; one that fails does not stop the others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from .base import Event, Outcome, Record, Writer
from .outlet import Direct, Facts, Outlet, SinkStatus
from .queued import Queued
from .records import as_record, event_record


class Sinks:
    """Each outcome and event as a record, to every writer.

    A writer that fails is told of once, on `tell` and to the other writers as an event "sink", and tried again with
    the next record; what it did not take is counted, and said when it is back. Where all writers that are not queued
    fail, so does `write`: a device whose decisions go nowhere is no success.

    Args:
        writers: quick ones, and `Queued` ones.
    """

    def __init__(
        self, writers: Sequence[Writer], labels: tuple[str, ...], tell: Callable[[str], None] = lambda line: None
    ) -> None:
        self.writers = tuple(writers)
        self.labels = labels
        self._tell = tell
        self._outlets: list[Queued | Direct] = [
            writer if isinstance(writer, Queued) else _direct(writer) for writer in self.writers
        ]
        self._n_direct = sum(isinstance(outlet, Direct) for outlet in self._outlets)
        self._lock = threading.RLock()  # the news of a writer's own thread goes to the others, too
        for outlet in self._outlets:
            outlet.news = self._spread

    def write(self, outcome: Outcome) -> None:
        """Raises OSError: every writer that is not queued failed."""
        self._hand_out(as_record(outcome, self.labels))

    def tell(self, event: Event) -> None:
        """Raises OSError: as `write`."""
        self._hand_out(event_record(event))

    def status(self) -> list[SinkStatus]:
        """Of each writer, in the config's order."""
        return [outlet.status() for outlet in self._outlets]

    @contextmanager
    def still(self) -> Iterator[None]:
        """No record is written while the block runs; it must not take long."""
        with self._lock:
            yield

    def close(self) -> None:
        """Queued writers have their time to deliver what waits, all at once."""
        queued = [writer for writer in self.writers if isinstance(writer, Queued)]
        for writer in queued:
            writer.begin_close()
        for writer in queued:
            writer.close()
        for outlet in self._outlets:
            if isinstance(outlet, Direct):
                outlet.writer.close()

    def _hand_out(self, record: Record) -> None:
        failure: OSError | None = None
        n_failed = 0
        with self._lock:
            for outlet in self._outlets:
                if isinstance(outlet, Queued):
                    outlet.write(record)
                elif (error := outlet.take(record)) is not None:
                    failure = failure or error
                    n_failed += 1
        if failure is not None and n_failed == self._n_direct:
            raise failure

    def _spread(self, source: Outlet, facts: Facts) -> None:
        """Tell of a writer that fails, or works again; to itself there is no need."""
        if self._outlets == [source] and self._n_direct:
            return  # its error is the agent's own last word
        self._tell(_line(facts))
        with self._lock:
            record = event_record(Event("sink", facts))
            for outlet in self._outlets:
                if outlet is source:
                    continue
                if isinstance(outlet, Queued):
                    outlet.write(record)
                elif outlet.failing_since is None:
                    outlet.take(record)


def _direct(writer: Writer) -> Direct:
    return Direct(writer, getattr(writer, "name", ""), getattr(writer, "kind", ""))


def _line(facts: Facts) -> str:
    """What a user is told, in a line."""
    where = f"{facts['kind']} {facts['sink']}"
    dropped = facts.get("dropped", 0)
    lost = f"{dropped} record{'s' if dropped > 1 else ''}"
    if facts["state"] == "failing":
        return f"warning: sink {where} fails: {facts['error']}"
    if facts["state"] == "full":
        return f"warning: sink {where}: {facts['queue']} records wait, and the oldest are dropped"
    if facts["state"] == "closed":
        return f"warning: sink {where}: {lost} not delivered"
    return f"sink {where} works again, after {facts['away_s']:.1f} s" + (f"; {lost} lost to it" if dropped else "")
