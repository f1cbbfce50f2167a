"""A folder of PNG and JPEG files: those there now, or watched for new ones.

Where the system tells of new files, each is taken as soon as it is closed, or moved in; now and then the folder is
looked through all the same. Where it does not, a file is taken once two looks in a row found it the same.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from coe.cascade.errors import ConfigError

from .base import Example, FolderMemory
from .landings import Landings

SUFFIXES = (".png", ".jpg", ".jpeg")

MOST_FILE_BYTES = 64 * 2**20
MOST_GONE = 10_000  # names of files that are gone which are remembered all the same
LOOK_S = 1.0  # between two looks at a folder of which the system tells

Tell = Callable[[str], None]
Stamp = tuple[int, int]  # size in bytes, time of change in ns


class FolderSource:
    """Files in name order. A watched file is taken once it has stopped growing.

    Args:
        path: the folder; files directly in it.
        watch: go on looking every `poll_s` seconds after the first pass.
        is_told: the system tells of new files; False: looking alone.
        tell: told where it cannot.
        memory: of what was done of a watched folder before; None: nothing was.
    Raises:
        ConfigError: there is no such folder.
    """

    def __init__(
        self,
        path: Path,
        watch: bool = False,
        poll_s: float = 0.5,
        *,
        is_told: bool = False,
        tell: Tell = lambda line: None,
        memory: FolderMemory | None = None,
    ) -> None:
        if not path.is_dir():
            raise ConfigError([f"source.path: expected a folder, got {path} (create it, or mend the path)"])
        self.path = path
        self.watch = watch
        self.poll_s = poll_s
        self.is_told = is_told
        self.tell = tell
        self.memory = memory

    def examples(self, stop: threading.Event) -> Iterator[Example]:
        landings = self._landings()  # before the first look, so that nothing falls between the two
        seen = self._scan()
        if not self.watch:
            yield from self._read(seen, stop)
            return
        done: dict[str, Stamp] = {} if self.memory is None else self.memory.done()
        before: dict[str, Stamp] = {}
        try:
            while not stop.is_set():
                fresh = {name: stamp for name, stamp in seen.items() if done.get(name) != stamp}
                settled = {name: stamp for name, stamp in fresh.items() if before.get(name) == stamp}
                self._forget(done, seen)
                yield from self._take(settled, done, stop)
                if landings is None:
                    stop.wait(self.poll_s)
                else:
                    look_s = self.poll_s if len(fresh) > len(settled) or not self.path.is_dir() else LOOK_S
                    yield from self._landed(landings, look_s, done, stop)
                    landings.look_again()
                before, seen = seen, self._scan()
        finally:
            if landings is not None:
                landings.close()

    def _landings(self) -> Landings | None:
        if not self.is_told:
            return None
        try:
            return Landings(self.path)
        except OSError as error:  # too many folders are watched on this device, say
            self.tell(f"warning: {self.path}: the system does not tell of new files ({error.strerror}): looked through")
            return None

    def _landed(
        self, landings: Landings, seconds: float, done: dict[str, Stamp], stop: threading.Event
    ) -> Iterator[Example]:
        """Files that the system tells of, for so long."""
        end = time.monotonic() + seconds
        while not stop.is_set() and (left := end - time.monotonic()) > 0:
            for name in sorted(landings.wait(stop, left)):
                stamp = self._stamp(name)
                if stamp is not None and stamp[0] > 0 and done.get(name) != stamp:  # an empty one may yet be filled
                    yield from self._take({name: stamp}, done, stop)

    def _stamp(self, name: str) -> Stamp | None:
        """Of one file; None where it is not an image, or is gone."""
        path = self.path / name
        if name.lower().endswith(SUFFIXES):
            with contextlib.suppress(OSError):
                if path.is_file():
                    status = path.stat()
                    return status.st_size, status.st_mtime_ns
        return None

    def _scan(self) -> dict[str, Stamp]:
        found = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self.path) as entries:  # no folder: nothing in it now
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # this file went away meanwhile; the others are there
                    if entry.name.lower().endswith(SUFFIXES) and entry.is_file():
                        status = entry.stat()
                        found[entry.name] = (status.st_size, status.st_mtime_ns)
        return found

    def _take(self, stamps: dict[str, Stamp], done: dict[str, Stamp], stop: threading.Event) -> Iterator[Example]:
        """Files that are whole, as they are now."""
        done.update(stamps)
        if self.memory is not None and stamps:
            self.memory.take(stamps)
        yield from self._read(stamps, stop)

    def _forget(self, done: dict[str, Stamp], seen: dict[str, Stamp]) -> None:
        """Files that are gone, once they are many; an empty folder may be one whose disk is not mounted."""
        if not seen or len(done) < 2 * len(seen) + MOST_GONE:
            return
        gone = done.keys() - seen.keys()
        for name in gone:
            del done[name]
        if self.memory is not None:
            self.memory.forget(gone)

    def _read(self, stamps: dict[str, Stamp], stop: threading.Event) -> Iterator[Example]:
        for name in sorted(stamps):
            if stop.is_set():
                return
            answered = None if self.memory is None else partial(self._finish, self.memory, name, stamps[name])
            value, error = _bytes_of(self.path / name, stamps[name][0])
            yield Example(name, value, error=error, answered=answered)

    @staticmethod
    def _finish(memory: FolderMemory, name: str, stamp: Stamp, outcome: object) -> None:
        memory.finish(name, stamp)


def _bytes_of(path: Path, size: int) -> tuple[bytes | None, str | None]:
    """What a file of that size holds, or why that cannot be had; one that is too large is not read into memory."""
    if size > MOST_FILE_BYTES:
        return None, f"cannot be read: expected at most {MOST_FILE_BYTES:,} bytes, got {size:,}"
    try:
        return path.read_bytes(), None
    except OSError as failure:
        return None, f"cannot be read: {failure.strerror}"
