"""Where examples come from, as configured."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from coe.config import Fields
from coe.config.manifest import Task
from coe.config.settings import REQUIRED, read_settings, setting
from coe.protocol.channel import fix_of_address, split
from coe.protocol.credentials import is_loopback

KINDS: dict[str, tuple[str, ...]] = {"digits": ("repeat",)}  # and their settings
KINDS |= {"folder": ("path", "watch", "poll", "recursive")}
KINDS |= {"csv": ("path", "columns", "label", "window", "hop"), "arrays": ("path",)}
KINDS |= dict.fromkeys(("stdin", "camera", "grpc"), ())
STREAMS = ("rtsp", "rtsps", "http", "https", "rtmp", "udp", "tcp", "srt")
MOST_UNIX_PATH = 107  # bytes: the operating system's own limit


@dataclass(frozen=True)
class CameraConfig:
    """What is looked at, and how often.

    `device` None: the source's `path` is a video. `channels`: of a frame as the task takes it, 1 or 3 (RGB).
    """

    device: int | str | None = setting(
        REQUIRED, "The camera: a number, `/dev/video0`, a URL or a video file.", usual="0"
    )
    every_s: float = setting(
        0,
        "Least time between two frames; for a video that is not skipped, in its own time.",
        unit="ms",
        high=86_400_000,
    )
    skip: bool = setting(True, "Decide only the newest frame of a video, as of a camera.", usual="`false`")
    loop: bool = setting(False, "Start a video again at its end.")
    channels: int = 3


@dataclass(frozen=True)
class GrpcSourceConfig:
    """A server for programs on this device, at `host` and `port`, or at the Unix socket `path` (`host` is "" then).

    `n_tiers`: of the cascade, as far as its config says.
    """

    task: Task
    port: int
    path: Path | None
    host: str = setting(
        REQUIRED,
        "Where it listens: a loopback address (port 0: a free one) or `unix:PATH`.",
        key="address",
        usual="127.0.0.1:8002",
    )
    model: str = setting(REQUIRED, "Name under which callers ask for the cascade.", usual="the task's name")
    n_tiers: int = 1
    max_queued: int = setting(256, "Most examples that wait; more are refused.", low=1, high=65536)
    max_rows: int = setting(256, "Most rows of one call, and no more than `max_queued`.", low=1, high=65536)
    max_message_bytes: int = setting(64, "Largest call in MiB.", unit="MiB", low=0.01, high=2047)

    @property
    def address(self) -> str:
        return f"unix:{self.path}" if self.path else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class SourceConfig:
    """Where examples come from: one of KINDS, or "several" `parts`."""

    kind: str = setting(REQUIRED, "Kind; the other settings follow from it.", choices=tuple(KINDS))
    path: Path | None = setting(None, "The folder or file.", usual="required")
    watch: bool = setting(False, "Wait for files that come later.")
    poll: bool = setting(False, "Look through the folder now and then, whatever the system tells of new files.")
    recursive: bool = setting(False, "Take the files in its folders, too; with `watch`, these are scanned.")
    remember: bool = setting(False, "Skip files that were decided before a restart.", usual="true with `state`")
    repeat: int = setting(1, "Number of passes over them.", low=1)
    columns: tuple[str, ...] = setting((), "Columns of numbers in the model's order.", usual="all but label and id")
    label: str = setting("", "The column of labels.", usual="label, class, target or y, if there")
    window: int = setting(0, "Rows that are one example.", usual="as many as the input's shape takes", high=1_000_000)
    hop: int = setting(0, "Rows from one window's begin to the next one's.", usual="`window`", high=1_000_000)
    interval_s: float = setting(0, "Least time between two examples.", unit="ms", high=86_400_000)
    camera: CameraConfig | None = None
    server: GrpcSourceConfig | None = None
    parts: tuple[SourceConfig, ...] = ()
    task: Task | None = field(default=None, compare=False)

    @property
    def is_standard_input(self) -> bool:
        return self.kind == "stdin" or (self.kind == "csv" and self.path is None)

    @property
    def each(self) -> tuple[SourceConfig, ...]:
        """The parts of several sources, or this one alone."""
        return self.parts or (self,)


def read_sources(fields: Fields, folder: Path, task: Task, n_tiers: int = 1) -> SourceConfig:
    """`source:` (one) or `sources:` (a list) of an agent's whole config; standard input where neither is there.

    Relative paths start at `folder`; `task` and `n_tiers` are the cascade's.
    """
    remembers = fields.has("state") or "STATE_DIRECTORY" in os.environ
    is_list = fields.has("sources")
    if is_list and fields.has("source"):
        fields.wrong("source", "expected `source:` or `sources:`, got both (leave one out)")
    entries = fields.sections("sources") if is_list else [fields.section("source", {"kind": "stdin"})]
    parts = tuple(_read_source(entry, folder, task, n_tiers, remembers) for entry in entries)
    if not parts:
        fields.wrong("sources", "expected at least one source, got none (add one, or leave `sources:` out)")
    elif sum(part.is_standard_input for part in parts) > 1:
        fields.wrong("sources", "expected standard input once, got it twice (leave one out)")
    return parts[0] if len(parts) == 1 else SourceConfig("several", parts=parts)


def _read_source(fields: Fields, folder: Path, task: Task, n_tiers: int, remembers: bool) -> SourceConfig:
    """One of them. `remembers`: the default of a watched folder."""
    n_findings = len(fields.report.findings)
    kind = fields.choice("kind", tuple(KINDS))
    if len(fields.report.findings) > n_findings:  # of what kind the other settings are is not known
        return SourceConfig(kind)
    given: dict[str, Any] = {"kind": kind, "task": task}
    if kind == "csv" and fields.raw("path", "-") == "-":
        given["path"] = None
    elif kind == "arrays":
        fields.text("path")
        if task.input_spec.kind == "text":
            fields.wrong("kind", "expected a task of numbers or images for arrays, got one of texts")
    elif kind == "folder":
        fields.text("path")
        watch = fields.flag("watch", False)
        if fields.has("remember") and not watch:
            fields.wrong("remember", "expected it with `watch: true` alone (leave it out)")
        given["remember"] = fields.flag("remember", watch and remembers)
    elif kind == "camera":
        given["camera"], given["path"] = _read_camera(fields, folder, task)
    elif kind == "grpc":
        given["server"] = _read_server(fields, folder, task, n_tiers)
    return read_settings(SourceConfig, fields, folder, only=(*KINDS[kind], "interval_s"), **given)


def _read_camera(fields: Fields, folder: Path, task: Task) -> tuple[CameraConfig, Path | None]:
    is_image = task.input_spec.kind == "image"
    if not is_image:
        fields.wrong("kind", f"expected a task of images for a camera, got one of {task.input_spec.kind}s")
    device, path = _read_device(fields, folder)
    if path is None:
        for key in ("skip", "loop"):
            if fields.raw(key, None) is not None:
                fields.wrong(key, "expected it with a video file alone (leave it out)")
    skip = path is None or fields.flag("skip", False)
    channels = task.input_spec.shape[-1] if is_image else 3
    return read_settings(CameraConfig, fields, finish=False, device=device, skip=skip, channels=channels), path


def _read_device(fields: Fields, folder: Path) -> tuple[int | str | None, Path | None]:
    """A camera's number or a stream's URL; or the path of a video, or of a camera such as /dev/video0."""
    device = fields.raw("device", 0)
    if isinstance(device, int) and not isinstance(device, bool) and 0 <= device < 1000:
        return device, None
    if not isinstance(device, str) or not device:
        fields.wrong("device", f"expected a camera's number, a video file or a URL such as rtsp://..., got {device!r}")
        return 0, None
    if "://" in device and (scheme := urlsplit(device).scheme) not in STREAMS:
        fields.wrong("device", f"expected a URL of {', '.join(STREAMS)}, got {scheme}:// (a file needs no scheme)")
    if "://" in device or device.startswith("/dev/"):
        return device, None
    return None, folder / Path(device).expanduser()


def _read_server(fields: Fields, folder: Path, task: Task, n_tiers: int) -> GrpcSourceConfig:
    address = fields.text("address", "127.0.0.1:8002")
    host, port, path = "", "0", None
    if address.startswith("unix:"):
        path = (folder / Path(address.removeprefix("unix:")).expanduser()).absolute()
        if len(str(path).encode()) > MOST_UNIX_PATH:
            fields.wrong("address", f"expected a path of at most {MOST_UNIX_PATH} bytes, got {path} (choose a shorter)")
    elif fix := fix_of_address(address, "write 127.0.0.1:8002", lowest_port=0):
        fields.wrong("address", f'expected 127.0.0.1:PORT or unix:PATH, got "{address}" ({fix})')
    else:
        host, port = split(address)
        if not is_loopback(host):
            fix = "write 127.0.0.1 or a Unix socket; other machines ask coe-cloud"
            fields.wrong("address", f"expected an address of this device alone, got {host} ({fix})")
    given: dict[str, Any] = {"host": host, "port": int(port), "path": path, "task": task, "n_tiers": n_tiers}
    server = read_settings(GrpcSourceConfig, fields, finish=False, defaults={"model": task.name}, **given)
    return replace(server, max_rows=min(server.max_rows, server.max_queued))
