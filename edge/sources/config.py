"""Where examples come from, as configured."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from coe.config import Fields
from coe.config.manifest import Task
from coe.protocol.credentials import is_loopback

KINDS = ("digits", "folder", "stdin", "camera", "grpc")
MOST_UNIX_PATH = 107  # bytes: the operating system's own limit


@dataclass(frozen=True)
class CameraConfig:
    """What is looked at, and how often.

    Args:
        device: the number of a camera of this device, or the URL of a stream; None: the source's `path` is a video.
        every_s: least time between two frames; in a video that is decided whole, of its own time.
        skip: only the newest frame is decided, and older ones are dropped. Always so but in a video.
        loop: a video begins again at its end.
        channels: of a frame as the task takes it: 1 or 3 (RGB).
    """

    device: int | str | None
    every_s: float = 0.0
    skip: bool = True
    loop: bool = False
    channels: int = 3


@dataclass(frozen=True)
class GrpcSourceConfig:
    """A door for programs on this device.

    Args:
        host, port: loopback; port 0: any free one. Or
        path: a Unix socket, and `host` is "".
        model: what callers call the cascade.
        task: what is decided.
        n_tiers: of the cascade, as far as its config says.
        max_queued: examples that wait for the agent; beyond that a call is refused.
        max_rows, max_message_bytes: of one call.
    """

    host: str
    port: int
    path: Path | None
    model: str
    task: Task
    n_tiers: int = 1
    max_queued: int = 256
    max_rows: int = 256
    max_message_bytes: int = 64 * 2**20

    @property
    def address(self) -> str:
        return f"unix:{self.path}" if self.path else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class SourceConfig:
    """kind "digits" (bundled), "folder" (`path`, `watch`), "stdin" (JSON lines), "camera", "grpc", or "several".

    Args:
        poll: a watched folder is looked through now and then, even where the system would tell of new files.
        remember: what was done of a watched folder is not done again after a restart.
        interval_s: least time between two examples.
        parts: of "several".
    """

    kind: str
    path: Path | None = None
    watch: bool = False
    poll: bool = False
    remember: bool = False
    repeat: int = 1
    interval_s: float = 0.0
    camera: CameraConfig | None = None
    server: GrpcSourceConfig | None = None
    parts: tuple[SourceConfig, ...] = ()


def read_sources(fields: Fields, folder: Path, task: Task, n_tiers: int = 1) -> SourceConfig:
    """`source:` (one) or `sources:` (a list) of an agent's config; standard input where neither is there.

    Args:
        fields: of the whole file.
        folder: relative paths start here.
        task, n_tiers: of the cascade.
    """
    remembers = fields.has("state") or "STATE_DIRECTORY" in os.environ
    if not fields.has("sources"):
        return read_source(fields.section("source", {"kind": "stdin"}), folder, task, n_tiers, remembers)
    if fields.has("source"):
        fields.wrong("source", "expected `source:` or `sources:`, got both (leave one out)")
    parts = tuple(read_source(entry, folder, task, n_tiers, remembers) for entry in fields.sections("sources"))
    if not parts:
        fields.wrong("sources", "expected at least one source, got none (add one, or leave `sources:` out)")
    elif sum(part.kind == "stdin" for part in parts) > 1:
        fields.wrong("sources", "expected standard input once, got it twice (leave one out)")
    return parts[0] if len(parts) == 1 else SourceConfig("several", parts=parts)


def read_source(fields: Fields, folder: Path, task: Task, n_tiers: int = 1, remembers: bool = False) -> SourceConfig:
    """One of them. `remembers`: a watched folder does, if not told otherwise."""
    n_findings = len(fields.report.findings)
    kind = fields.choice("kind", KINDS)
    if len(fields.report.findings) > n_findings:  # of what kind the other settings are is not known
        return SourceConfig(kind)
    source = SourceConfig(kind)
    if kind == "digits":
        source = SourceConfig(kind, repeat=fields.integer("repeat", 1, 1))
    elif kind == "folder":
        path = folder / Path(fields.text("path")).expanduser()
        source = _read_folder(fields, path, remembers)
    elif kind == "camera":
        source = _read_camera(fields, folder, task)
    elif kind == "grpc":
        source = SourceConfig(kind, server=_read_door(fields, folder, task, n_tiers))
    source = replace(source, interval_s=fields.number("interval_ms", 0.0, high=86_400_000) / 1000)
    fields.finish()
    return source


def _read_folder(fields: Fields, path: Path, remembers: bool) -> SourceConfig:
    watch = fields.flag("watch", False)
    if fields.has("remember") and not watch:
        fields.wrong("remember", "expected it with `watch: true` alone (leave it out)")
    remember = fields.flag("remember", watch and remembers)
    return SourceConfig("folder", path, watch=watch, poll=fields.flag("poll", False), remember=remember)


def _read_camera(fields: Fields, folder: Path, task: Task) -> SourceConfig:
    if task.input_spec.kind != "image":
        fields.wrong("kind", f"expected a task of images for a camera, got one of {task.input_spec.kind}s")
    device, path = _read_device(fields, folder)
    if path is None:
        for key in ("skip", "loop"):
            if fields.raw(key, None) is not None:
                fields.wrong(key, "expected it with a video file alone (leave it out)")
    camera = CameraConfig(
        device,
        every_s=fields.number("every_ms", 0.0, high=86_400_000) / 1000,
        skip=path is None or fields.flag("skip", False),
        loop=path is not None and fields.flag("loop", False),
        channels=task.input_spec.shape[-1] if task.input_spec.kind == "image" else 3,
    )
    return SourceConfig("camera", path, camera=camera)


def _read_device(fields: Fields, folder: Path) -> tuple[int | str | None, Path | None]:
    """A camera's number or a stream's URL; or the path of a video, or of a camera such as /dev/video0."""
    device = fields.raw("device", 0)
    if isinstance(device, int) and not isinstance(device, bool) and 0 <= device < 1000:
        return device, None
    if not isinstance(device, str) or not device:
        fields.wrong("device", f"expected a camera's number, a video file or a URL such as rtsp://..., got {device!r}")
        return 0, None
    if "://" in device:
        schemes = ("rtsp", "rtsps", "http", "https", "rtmp", "udp", "tcp", "srt")
        scheme = urlsplit(device).scheme
        if scheme not in schemes:
            fields.wrong("device", f"expected a URL of {', '.join(schemes)}, got {scheme}:// (a file needs no scheme)")
        return device, None
    if device.startswith("/dev/"):
        return device, None
    return None, folder / Path(device).expanduser()


def _read_door(fields: Fields, folder: Path, task: Task, n_tiers: int) -> GrpcSourceConfig:
    address = fields.text("address", "127.0.0.1:8002")
    host, port, path = "", 0, None
    if address.startswith("unix:"):
        path = (folder / Path(address.removeprefix("unix:")).expanduser()).absolute()
        if len(str(path).encode()) > MOST_UNIX_PATH:
            fields.wrong("address", f"expected a path of at most {MOST_UNIX_PATH} bytes, got {path} (choose a shorter)")
    else:
        host, port = _read_loopback(fields, address)
    max_queued = fields.integer("max_queued", 256, 1, 65536)
    return GrpcSourceConfig(
        host,
        port,
        path,
        model=fields.text("model", task.name),
        task=task,
        n_tiers=n_tiers,
        max_queued=max_queued,
        max_rows=min(fields.integer("max_rows", 256, 1, 65536), max_queued),
        max_message_bytes=int(fields.number("max_message_mb", 64, 0.01, 2047) * 2**20),
    )


def _read_loopback(fields: Fields, address: str) -> tuple[str, int]:
    host, _, number = address.rpartition(":")
    if not host or not number.isdecimal() or int(number) > 65535:
        fields.wrong("address", f'expected 127.0.0.1:PORT or unix:PATH, got "{address}"')
        return "127.0.0.1", 0
    if not is_loopback(host):
        fix = "write 127.0.0.1 or a Unix socket; other machines ask coe-cloud"
        fields.wrong("address", f"expected an address of this device alone, got {host} ({fix})")
    return host, int(number)
