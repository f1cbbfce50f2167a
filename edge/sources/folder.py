"""A folder of PNG and JPEG files: those there now, or watched for new ones."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from coe.cascade.errors import ConfigError

from .base import Example

SUFFIXES = (".png", ".jpg", ".jpeg")

Stamp = tuple[int, int]  # size in bytes, time of change in ns


class FolderSource:
    """Files in name order. A watched file is taken once it has stopped growing.

    Args:
        path: the folder; files directly in it.
        watch: go on looking every `poll_s` seconds after the first pass.
    Raises:
        ConfigError: there is no such folder.
    """

    def __init__(self, path: Path, watch: bool = False, poll_s: float = 0.5) -> None:
        if not path.is_dir():
            raise ConfigError([f"source.path: expected a folder, got {path} (create it, or mend the path)"])
        self.path = path
        self.watch = watch
        self.poll_s = poll_s

    def examples(self, stop: threading.Event) -> Iterator[Example]:
        done: dict[str, Stamp] = {}
        seen = self._scan()
        if not self.watch:
            yield from self._read(sorted(seen), stop)
            return
        before: dict[str, Stamp] = {}
        while not stop.is_set():
            settled = [name for name, stamp in seen.items() if done.get(name) != stamp and before.get(name) == stamp]
            for name in settled:
                done[name] = seen[name]
            yield from self._read(sorted(settled), stop)
            stop.wait(self.poll_s)
            before, seen = seen, self._scan()

    def _scan(self) -> dict[str, Stamp]:
        found = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self.path) as entries:  # no folder: nothing in it now
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # this file went away meanwhile; the others are there
                    if entry.name.lower().endswith(SUFFIXES) and entry.is_file():
                        status = entry.stat()
                        found[entry.name] = (status.st_size, status.st_mtime_ns)
        return found

    def _read(self, names: list[str], stop: threading.Event) -> Iterator[Example]:
        for name in names:
            if stop.is_set():
                return
            try:
                yield Example(name, (self.path / name).read_bytes())
            except OSError as error:
                yield Example(name, None, error=f"cannot be read: {error.strerror}")
