"""Opening the configured sinks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from coe.cascade.errors import ConfigError

from .base import Writer
from .config import SinkConfig
from .file import FileLines
from .jsonlines import JsonLines
from .many import Sinks
from .queued import Queued


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
        from .mqtt import Broker

        broker = Broker(config.mqtt)  # it waits for its connection by itself
        return Queued(broker, max_queued=config.max_queued, flush_s=config.flush_s, most_wait_s=1.0)
    if config.webhook is not None:
        from .webhook import Webhook

        return Queued(Webhook(config.webhook), max_queued=config.max_queued, flush_s=config.flush_s)
    if config.path is None:
        if sys.stdout is None:
            raise ConfigError(["sink: standard output is closed (set sink.path to a file)"])
        return JsonLines(sys.stdout)
    try:
        if config.kind == "sqlite":
            from .sqlite import Database

            return Database(config.path, config.max_rows)
        return FileLines(config.path, config.rotation)
    except OSError as error:
        raise ConfigError([f"sink.path: {config.path} cannot be written: {error.strerror}"]) from None
