"""Opening the configured sinks."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from coe.cascade.errors import ConfigError

from .base import Writer
from .config import SinkConfig
from .jsonlines import JsonLines
from .many import Sinks


def open_sinks(configs: Sequence[SinkConfig], labels: tuple[str, ...]) -> Sinks:
    """The configured sinks, as one.

    Raises:
        ConfigError: one cannot be opened; those opened before are closed.
    """
    writers: list[Writer] = []
    try:
        for config in configs:
            writers.append(open_writer(config))
    except BaseException:
        for writer in writers:
            writer.close()
        raise
    return Sinks(writers, labels)


def open_writer(config: SinkConfig) -> Writer:
    """One of them."""
    if config.path is None:
        if sys.stdout is None:
            raise ConfigError(["sink: standard output is closed (set sink.path to a file)"])
        return JsonLines(sys.stdout, owns_stream=False)
    try:
        stream = config.path.open("a", encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"sink.path: {config.path} cannot be written: {error.strerror}"]) from None
    return JsonLines(stream, owns_stream=True)
