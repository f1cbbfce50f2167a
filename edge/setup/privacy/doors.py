"""Who can ask this device, or look at it."""

from __future__ import annotations

from collections.abc import Iterator

from ...config import AgentConfig
from .statement import Statement


def doors(config: AgentConfig) -> Iterator[Statement]:
    for source in config.source.parts or (config.source,):
        if source.door is not None:
            text = f"Programs on this device can ask the cascade at {source.door.address}, unencrypted; no other "
            yield Statement("open", "source", f"{text}machine can.")
        if source.camera is not None and isinstance(source.camera.device, str) and "://" in source.camera.device:
            text = "Frames come over the network from the stream that the source names"
            plain = "" if source.camera.device.startswith(("rtsps:", "https:")) else ", unencrypted"
            yield Statement("open", "source", f"{text}{plain}.")
    watch = config.watch
    if watch is not None:
        text = f"http://{watch.host}:{watch.port}/ shows counts, recent decisions and the link, "
        but = ", but of none that may not leave" if config.field.never_send or config.field.hook else ""
        text += f"with small pictures of recent examples{but}, " if watch.thumbnails else "without pictures, "
        text += "to everybody who can reach that address; there is no password."
        yield Statement("open", "watch", text)
    if watch is None and not any(source.door for source in config.source.parts or (config.source,)):
        yield Statement("open", "", "Nobody: no port is open.")
