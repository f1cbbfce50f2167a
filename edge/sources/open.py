"""Opening the configured source."""

from __future__ import annotations

import sys
from collections.abc import Callable

from coe.cascade.errors import ConfigError

from .base import Memory, Source
from .config import SourceConfig

Tell = Callable[[str], None]


def open_source(
    config: SourceConfig, once: bool = False, tell: Tell = lambda line: None, memory: Memory | None = None
) -> Source:
    """The configured source, its own module imported only then.

    Args:
        once: what is there now, and no watching.
        tell: told what a user must know of it while it runs.
        memory: of watched folders; None: nothing is remembered.
    Raises:
        ConfigError: it cannot be opened.
        RuntimeMissing: what it needs is not installed.
    """
    if config.kind == "several":
        from .several import SeveralSources

        parts = [open_source(part, once, tell, memory) for part in config.parts]
        return SeveralSources(parts, [part.interval_s for part in config.parts])
    if config.kind == "folder":
        return _folder(config, once, tell, memory)
    if config.kind == "stdin":
        from .jsonlines import JsonLinesSource

        if sys.stdin is None:
            raise ConfigError(["source: expected JSON lines on standard input, which is closed (pipe them in)"])
        return JsonLinesSource(sys.stdin.buffer)
    if config.kind == "camera":
        from .camera import CameraSource

        assert config.camera is not None
        return CameraSource(config.camera, config.path, once=once, tell=tell)
    if config.kind == "door":
        from .door import DoorSource

        assert config.door is not None
        return DoorSource(config.door, once=once, tell=tell)
    from .digits import DigitsSource

    return DigitsSource(config.repeat)


def _folder(config: SourceConfig, once: bool, tell: Tell, memory: Memory | None) -> Source:
    from .folder import FolderSource

    assert config.path is not None
    watch = config.watch and not once
    why_not = ""
    if watch and not config.poll:
        from .landings import cannot_be_told

        why_not = cannot_be_told(config.path)
        if why_not:
            tell(f"warning: {why_not}: looked through twice a second (poll: true says that it is meant)")
    is_told = watch and not config.poll and not why_not
    remembered = memory.of(config.path) if memory is not None and watch and config.remember else None
    return FolderSource(config.path, watch, is_told=is_told, tell=tell, memory=remembered)
