"""Several sinks as one."""

from __future__ import annotations

from collections.abc import Sequence

from .base import Event, Outcome, Record, Writer
from .records import as_record, event_record


class Sinks:
    """Each outcome and event as a record, to every writer."""

    def __init__(self, writers: Sequence[Writer], labels: tuple[str, ...]) -> None:
        self.writers = tuple(writers)
        self.labels = labels

    def write(self, outcome: Outcome) -> None:
        self._hand_out(as_record(outcome, self.labels))

    def tell(self, event: Event) -> None:
        self._hand_out(event_record(event))

    def _hand_out(self, record: Record) -> None:
        for writer in self.writers:
            writer.write(record)

    def close(self) -> None:
        for writer in self.writers:
            writer.close()
