"""Opens the configured sinks as one; a sink that fails does not stop the others."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from coe.cascade.errors import ConfigError

from .base import Event, Outcome, Record, Writer, as_record, event_record
from .config import SinkConfig
from .delivery import BufferedSink, DirectSink, Facts, SinkHealth, SinkStatus
from .jsonlines import JsonLinesFile, JsonLinesStream


class Sinks:
    """Each outcome and event as a record, to every writer.

    A writer that fails is told of once, on `tell` and to the other writers as an event "sink", and tried again with
    the next record; what it did not take is counted, and said when it is back. Where all writers that are not queued
    fail, so does `write`: a device whose decisions go nowhere is no success.

    Args:
        writers: quick ones, and `BufferedSink` ones.
    """

    def __init__(
        self, writers: Sequence[Writer], labels: tuple[str, ...], tell: Callable[[str], None] = lambda line: None
    ) -> None:
        self.writers = tuple(writers)
        self.labels = labels
        self._tell = tell
        self._outlets: list[BufferedSink | DirectSink] = [
            writer if isinstance(writer, BufferedSink) else _direct(writer) for writer in self.writers
        ]
        self._n_direct = sum(isinstance(outlet, DirectSink) for outlet in self._outlets)
        self._lock = threading.RLock()  # the news of a writer's own thread goes to the others, too
        for outlet in self._outlets:
            outlet.on_change = self._spread

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
        """BufferedSink writers have their time to deliver what waits, all at once."""
        queued = [writer for writer in self.writers if isinstance(writer, BufferedSink)]
        for writer in queued:
            writer.begin_close()
        for writer in queued:
            writer.close()
        for outlet in self._outlets:
            if isinstance(outlet, DirectSink):
                outlet.writer.close()

    def _hand_out(self, record: Record) -> None:
        failure: OSError | None = None
        n_failed = 0
        with self._lock:
            for outlet in self._outlets:
                if isinstance(outlet, BufferedSink):
                    outlet.write(record)
                elif (error := outlet.take(record)) is not None:
                    failure = failure or error
                    n_failed += 1
        if failure is not None and n_failed == self._n_direct:
            raise failure

    def _spread(self, source: SinkHealth, facts: Facts) -> None:
        """Tell of a writer that fails, or works again; to itself there is no need."""
        if self._outlets == [source] and self._n_direct:
            return  # its error is the agent's own last word
        self._tell(_status_line(facts))
        with self._lock:
            record = event_record(Event("sink", facts))
            for outlet in self._outlets:
                if outlet is source:
                    continue
                if isinstance(outlet, BufferedSink):
                    outlet.write(record)
                elif outlet.failing_since is None:
                    outlet.take(record)


def _direct(writer: Writer) -> DirectSink:
    return DirectSink(writer, getattr(writer, "name", ""), getattr(writer, "kind", ""))


def _status_line(facts: Facts) -> str:
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


def open_sinks(
    configs: Sequence[SinkConfig], labels: tuple[str, ...], tell: Callable[[str], None] = lambda line: None
) -> Sinks:
    """The configured sinks, as one.

    Args:
        tell: told where one fails, and when it is back.
    Raises:
        ConfigError: one cannot be opened; those opened before are closed.
        RuntimeMissing: what one needs is not installed.
    """
    writers: list[Writer] = []
    try:
        for config in configs:
            writers.append(open_writer(config))
    except BaseException:
        for writer in writers:
            writer.close()
        raise
    return Sinks(writers, labels, tell)


def open_writer(config: SinkConfig) -> Writer:
    """One of them; its module is imported only then."""
    if config.mqtt is not None:
        from .mqtt import MqttTransport

        transport = MqttTransport(config.mqtt)  # it waits for its connection by itself
        return BufferedSink(transport, max_queued=config.max_queued, flush_s=config.flush_s, most_wait_s=1.0)
    if config.webhook is not None:
        from .webhook import WebhookTransport

        return BufferedSink(WebhookTransport(config.webhook), max_queued=config.max_queued, flush_s=config.flush_s)
    if config.path is None:
        if sys.stdout is None:
            raise ConfigError(["sink: standard output is closed (set sink.path to a file)"])
        return JsonLinesStream(sys.stdout)
    try:
        if config.kind == "sqlite":
            from .sqlite import SqliteWriter

            return SqliteWriter(config.path, config.max_rows)
        return JsonLinesFile(config.path, config.rotation)
    except OSError as error:
        raise ConfigError([f"sink.path: {config.path} cannot be written: {error.strerror}"]) from None
