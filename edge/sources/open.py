"""Opening the configured source."""

from __future__ import annotations

import sys

from coe.cascade.errors import ConfigError

from .base import Source
from .config import SourceConfig


def open_source(config: SourceConfig, once: bool = False) -> Source:
    """The configured source, its own module imported only then.

    Args:
        once: what is there now, and no watching.
    Raises:
        ConfigError: it cannot be opened.
    """
    if config.kind == "folder":
        from .folder import FolderSource

        assert config.path is not None
        return FolderSource(config.path, config.watch and not once)
    if config.kind == "stdin":
        from .jsonlines import JsonLinesSource

        if sys.stdin is None:
            raise ConfigError(["source: expected JSON lines on standard input, which is closed (pipe them in)"])
        return JsonLinesSource(sys.stdin.buffer)
    from .digits import DigitsSource

    return DigitsSource(config.repeat)
