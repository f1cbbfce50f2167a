"""Opening the configured sink."""

from __future__ import annotations

import sys

from coe.cascade.errors import ConfigError

from ..config import SinkConfig
from .base import Sink
from .jsonlines import JsonLinesSink


def open_sink(config: SinkConfig, labels: tuple[str, ...]) -> Sink:
    """The configured sink.

    Raises:
        ConfigError: its file cannot be opened.
    """
    if config.path is None:
        if sys.stdout is None:
            raise ConfigError(["sink: standard output is closed (set sink.path to a file)"])
        return JsonLinesSink(sys.stdout, labels, owns_stream=False)
    try:
        stream = config.path.open("a", encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"sink.path: {config.path} cannot be written: {error.strerror}"]) from None
    return JsonLinesSink(stream, labels, owns_stream=True)
