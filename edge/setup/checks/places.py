"""Where examples come from, where decisions go, and what the device keeps: there, writable, with room left."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from coe.cascade.errors import CascadeError

from ...sinks import SinkConfig
from ...sources import SourceConfig, open_source
from ..finding import Finding, fail, from_error, ok, warn
from ..system import size
from .patient import Patient

REACH_S = 3.0
FEW_BYTES, TOO_FEW_BYTES = 200e6, 5e6


def check_source(patient: Patient) -> Iterator[Finding]:
    source = patient.the_config.source
    for part in source.parts or (source,):
        what = f"source {part.kind}"
        told: list[str] = []
        try:
            open_source(part, tell=told.append)  # nothing is taken from it
        except CascadeError as error:
            yield from_error(what, error, "mend `source:`")
            continue
        if told:
            message, _, mend = told[0].removeprefix("warning: ").rpartition(" (")
            yield warn(what, message, mend.removesuffix(")")) if message else warn(what, mend, "mend `source:`")
        else:
            yield ok(what, _told_of(part))


def _told_of(source: SourceConfig) -> str:
    if source.path is None:
        return "there"
    if not source.path.is_dir():
        return f"{source.path} is there"
    return f"{source.path} is there, {'watched' if source.watch else 'read once'}"


def check_sinks(patient: Patient) -> Iterator[Finding]:
    for sink in patient.the_config.sinks:
        what = f"sink {sink.kind}"
        if sink.mqtt is not None or sink.webhook is not None:
            yield _reach(what, sink)
        elif sink.path is None:
            yield ok(what, "standard output")
        elif why := _why_not_writable(sink.path):
            yield fail(what, f"{sink.path}: {why}", f"mkdir -p {sink.path.parent}, and let this user write there")
        else:
            yield ok(what, f"{sink.path} can be written")


def _reach(what: str, sink: SinkConfig) -> Finding:
    """Whether somebody listens where a sink sends to; what it needs to be installed, too."""
    if sink.mqtt is not None:
        if importlib.util.find_spec("paho") is None:
            return fail(what, "the package paho-mqtt is not installed", "pip install 'coe-cascade[mqtt]'")
        host, port = sink.mqtt.host, sink.mqtt.port
    else:
        assert sink.webhook is not None
        parts = urlsplit(sink.webhook.url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((host, port), REACH_S).close()
    except OSError as error:
        kept = f"until it can be reached, the latest {sink.max_queued:,} records wait in memory"
        return warn(what, f"{host}:{port} cannot be reached: {error.strerror or error}", f"mend the address; {kept}")
    return ok(what, f"{host}:{port} can be reached")


def check_disk(patient: Patient) -> Iterator[Finding]:
    """Room where files grow."""
    for place in _growing(patient):
        there = _nearest(place)
        if there is None:
            continue
        free = shutil.disk_usage(there).free
        told = f"{size(free)} free at {there}"
        if free < TOO_FEW_BYTES:
            yield fail("disk", told, "make room: decisions could not be written")
        elif free < FEW_BYTES:
            yield warn("disk", told, "make room, or bound what is kept")
        else:
            yield ok("disk", told)


def _growing(patient: Patient) -> list[Path]:
    """Folders in which files grow, each disk once."""
    config = patient.the_config
    folders = [sink.path.parent for sink in config.sinks if sink.path is not None]
    folders += [config.state, *([config.spool.path.parent] if config.spool is not None else [])]
    folders += [config.field.harvest.path] if config.field.harvest is not None else []
    disks: dict[int, Path] = {}
    for folder in folders:
        there = _nearest(folder)
        if there is not None:
            disks.setdefault(there.stat().st_dev, folder)
    return list(disks.values())


def _nearest(path: Path) -> Path | None:
    """The folder, or the nearest above it that is there."""
    return next((folder for folder in (path, *path.absolute().parents) if folder.is_dir()), None)


def _why_not_writable(path: Path) -> str:
    """ "" where a file can be written; nothing is written to find out."""
    if path.is_dir():
        return "expected a file, got a folder"
    if path.exists():
        return "" if os.access(path, os.W_OK) else "this user may not write it"
    if not path.parent.is_dir():
        return "its folder is not there"
    return "" if os.access(path.parent, os.W_OK | os.X_OK) else "this user may not write in its folder"
