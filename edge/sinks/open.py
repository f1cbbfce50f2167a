"""Opens the configured sinks as one; a sink that fails does not stop the others."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial

from coe.cascade.errors import ConfigError

from .base import Event, Grouping, Outcome, Record, Rereadable, Writer, as_record, event_record
from .config import SinkConfig
from .delivery import BufferedSink, DirectSink, Facts, GroupCommit, LateWriter, Outbox, SinkHealth
from .jsonlines import JsonLinesFile, JsonLinesStream

log = logging.getLogger(__name__)


class Sinks:
    """Writes each outcome and event as a record to every writer.

    A writer that fails is reported once, in the log and to the other writers as an event "sink", and tried again with
    the next record; records it did not take are counted, and reported when it works again. Where all direct writers
    fail and there is no outbox, `write` tries again as long as `waits_after` says so, then fails: a device whose
    decisions are kept nowhere must not seem to work.

    Args:
        writers: quick ones, and `BufferedSink` ones.
        commit_s, commit_count: longest time, and most records, until writers that group records write them.
    """

    def __init__(
        self, writers: Sequence[Writer], labels: tuple[str, ...], *, commit_s: float = 0.0, commit_count: int = 1
    ) -> None:
        self.writers = tuple(writers)
        self.labels = labels
        self._sinks: list[BufferedSink | DirectSink] = [
            writer if isinstance(writer, BufferedSink) else DirectSink(writer) for writer in self.writers
        ]
        self._is_grouping = any(isinstance(writer, Grouping) for writer in self.writers)
        self._n_direct = sum(isinstance(sink, DirectSink) for sink in self._sinks)
        self._has_outbox = any(isinstance(sink, BufferedSink) and sink.outbox is not None for sink in self._sinks)
        self._committing: list[Callable[[], None]] = []
        self._group = GroupCommit(self.commit, commit_s, commit_count)
        self.waits_after: Callable[[OSError], bool] | None = None  # pauses; False: it is not worth waiting for
        self._lock = threading.RLock()  # a change that a writer's own thread reports is written to the others
        for sink in self._sinks:
            sink.on_change = self._report
            if isinstance(sink, BufferedSink):
                sink.on_done = self.touch

    def write(self, outcome: Outcome) -> None:
        """Raises OSError: every direct writer failed, and there is no outbox."""
        self.write_record(as_record(outcome, self.labels))

    def write_event(self, event: Event) -> None:
        """Raises OSError: as `write`."""
        self.write_record(event_record(event))

    def health(self) -> Sequence[SinkHealth]:
        """The state of each writer, in the config's order."""
        return self._sinks

    def on_commit(self, record: Callable[[], None]) -> None:
        """Call `record` whenever a group is committed: it records what is known to be in the sinks, after `sync`."""
        self._committing.append(record)

    def commit(self) -> None:
        """Have the writers write what they keep, and then what was registered be recorded."""
        self.flush()
        for record in self._committing:
            record()

    def flush(self) -> None:
        """Have the writers write what they keep; what has not arrived at the others is in the outbox then."""
        for sink in self._sinks:
            sink.commit()

    def touch(self) -> None:
        """There is something to commit."""
        self._group.add()

    def mark(self) -> str:
        """The position of the next record of each writer, as JSON."""
        with self._lock:
            return json.dumps([writer.mark() if isinstance(writer, Rereadable) else "" for writer in self.writers])

    def sync(self) -> None:
        """Flush to the disk what was written, for the writers that can.

        Raises:
            OSError: it failed for all of them.
        """
        writers = [writer for writer in self.writers if isinstance(writer, Rereadable)]
        failed: list[OSError] = []
        for writer in writers:
            try:
                try:
                    writer.sync()
                except OSError:  # it may be about to change its file
                    with self._lock:
                        writer.sync()
            except OSError as error:
                failed.append(error)
        if failed and len(failed) == len(writers):
            raise failed[0]

    def close(self) -> None:
        """Close all writers; buffered ones have their `flush_s`, at the same time, to deliver what waits."""
        self._committing.clear()
        self._group.close()
        for sink in self._sinks:
            if isinstance(sink, BufferedSink):
                sink.begin_close()
        for writer in sorted(self.writers, key=lambda writer: not isinstance(writer, BufferedSink)):
            writer.close()  # buffered ones first: what they drop is reported to the others

    def write_record(self, record: Record) -> None:
        """Raises OSError: as `write`."""
        while True:
            failed: list[tuple[DirectSink, OSError]] = []
            with self._lock:
                for sink in self._sinks:
                    if isinstance(sink, BufferedSink):
                        sink.write(record)
                    elif (error := sink.take(record)) is not None:
                        failed.append((sink, error))
            is_nowhere = bool(failed) and len(failed) == self._n_direct and not self._has_outbox
            if not is_nowhere or self.waits_after is None or not self.waits_after(failed[0][1]):
                break
        for direct, _ in failed:
            direct.dropped += 1
        if is_nowhere:
            raise failed[0][1]
        if self._committing or self._is_grouping:
            self._group.add()

    def _report(self, source: SinkHealth, facts: Facts) -> None:
        """Log that a writer fails, or works again, and write it to the others."""
        ends = self.waits_after is None or getattr(self.writers[0], "is_lost", False)
        if self._sinks == [source] and self._n_direct and ends:
            return  # its error ends the agent, and is reported then
        log.log(logging.INFO if facts["state"] in ("back", "waits") else logging.WARNING, _status_line(facts))
        with self._lock:
            record = event_record(Event("sink", facts))
            for sink in self._sinks:
                if sink is source:
                    continue
                if isinstance(sink, BufferedSink):
                    sink.write(record)
                elif sink.failing_since is None and sink.take(record) is not None:
                    sink.dropped += 1


def _status_line(facts: Facts) -> str:
    """The log line about a change of a sink's health."""
    where = f"{facts['kind']} {facts['sink']}"
    dropped = facts.get("dropped", 0)
    lost = f"{dropped} record{'s' if dropped > 1 else ''}"
    if facts["state"] == "failing":
        return f"sink {where} fails: {facts['error']}"
    if facts["state"] == "full":
        return f"sink {where}: {facts['queue']} records wait, and the {facts['drops']} are dropped"
    if facts["state"] == "waits":
        return f"sink {where}: {facts['queue']} not delivered yet; the next start sends them"
    if facts["state"] == "closed":
        return f"sink {where}: {lost} not delivered"
    return f"sink {where} works again, after {facts['away_s']:.1f} s" + (f"; {lost} lost to it" if dropped else "")


def open_sinks(
    configs: Sequence[SinkConfig],
    labels: tuple[str, ...],
    *,
    commit_s: float = 0.0,
    commit_count: int = 1,
    outbox: Outbox | None = None,
) -> Sinks:
    """The configured sinks, as one.

    Args:
        commit_s, commit_count: as `Sinks` takes them.
        outbox: where records of sinks that acknowledge wait; None: in memory.

    Raises:
        ConfigError: one can never be opened; those opened before are closed.
        OSError: none can be opened now.
        RuntimeMissing: what one needs is not installed.
    """
    writers: list[Writer] = []
    try:
        for config, name in zip(configs, outbox_names(configs), strict=True):
            writers.append(_open_or_later(config, outbox, name))
        late = [writer for writer in writers if isinstance(writer, LateWriter)]
        if late and len(late) == len(writers):
            raise late[0].error
    except BaseException:
        for writer in writers:
            writer.close()
        raise
    sinks = Sinks(writers, labels, commit_s=commit_s, commit_count=commit_count)
    for sink in sinks.health():
        if isinstance(sink, DirectSink) and isinstance(sink.writer, LateWriter):
            sink.fails(sink.writer.error)
    return sinks


def _open_or_later(config: SinkConfig, outbox: Outbox | None, name: str) -> Writer:
    try:
        return open_writer(config, outbox, name)
    except OSError as error:
        return LateWriter(lambda: open_writer(config), str(config.path), config.kind, error)


def outbox_names(configs: Sequence[SinkConfig]) -> list[str]:
    """The name of each sink in the outbox: it stays as it is where a sink has another address now."""
    kinds = [config.kind for config in configs]
    return [f"{kind}-{kinds[:place].count(kind) + 1}" for place, kind in enumerate(kinds)]


def open_writer(config: SinkConfig, outbox: Outbox | None = None, name: str = "") -> Writer:
    """The writer of one sink; its module is imported only then.

    Raises:
        OSError: its file cannot be opened now.
    """
    queue = partial(
        BufferedSink,
        max_queued=config.max_queued,
        drop=config.drop,
        flush_s=config.flush_s,
        outbox=outbox,
        outbox_name=name,
    )
    if config.mqtt is not None:
        from .mqtt import MqttTransport

        transport = MqttTransport(config.mqtt)  # it waits for its connection by itself
        return queue(transport, most_wait_s=1.0)
    if config.webhook is not None:
        from .webhook import WebhookTransport

        return queue(WebhookTransport(config.webhook))
    if config.path is None:
        if sys.stdout is None:
            raise ConfigError(["sink: standard output is closed (set sink.path to a file)"])
        return JsonLinesStream(sys.stdout)
    if config.kind == "sqlite":
        from .sqlite import SqliteWriter

        return SqliteWriter(config.path, config.max_rows, is_grouped=True)
    return JsonLinesFile(config.path, config.rotation)
