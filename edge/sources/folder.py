"""A folder of PNG and JPEG files: those there now, or watched for new ones through inotify or polling.

Where the system tells of new files, each is taken as soon as it is closed, or moved in; now and then the folder is
looked through all the same. Where it does not, a file is taken once two looks in a row found it the same.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from coe.cascade.errors import ConfigError, RuntimeMissing
from coe.models.loading import import_runtime

from .base import Example, FolderHistory

STOP_POLL_S = 0.2
SETTLE_S = 0.015  # what copies a file often sets its time right after it closed it
EVENT_TYPES = ("FileClosedEvent", "FileMovedEvent")
# Filesystems where another machine may write, of which this one's system does not tell.
NETWORK_FILESYSTEMS = (
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "afs",
    "ceph",
    "glusterfs",
    "lustre",
    "virtiofs",
    "vboxsf",
)


class FileWatcher:
    """The names of files that landed in a folder, as the operating system tells of them.

    Raises:
        RuntimeMissing: watchdog is not installed.
        OSError: the system cannot tell: too many are watched already, say.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        observers: Any = import_runtime("watchdog.observers.inotify", "watchdog", "pip install 'coe-cascade[edge]'")
        self._events: Any = import_runtime("watchdog.events", "watchdog", "pip install 'coe-cascade[edge]'")
        self._turn = threading.Condition()
        self._names: set[str] = set()
        self._identity: tuple[int, int] | None = None  # of the folder that is watched
        self._observers: list[Any] = []  # one each: watchdog holds back what comes after a file is moved away
        try:
            for _ in EVENT_TYPES:
                self._observers.append(observers.InotifyObserver(generate_full_events=True))  # of moves from elsewhere
                self._observers[-1].start()
            self.refresh()
        except BaseException:
            self.close()
            raise

    def refresh(self) -> None:
        """Watch the folder that is there now, should the one watched before be gone."""
        identity = _identity(self.path)
        emitters = [
            emitter for observer in self._observers for emitter in observer.emitters
        ]  # they end with the folder
        is_watched = len(emitters) == len(EVENT_TYPES) and all(emitter.is_alive() for emitter in emitters)
        if identity is not None and identity == self._identity and is_watched:
            return
        self._identity = identity
        for observer, kind in zip(self._observers, EVENT_TYPES, strict=True):
            observer.unschedule_all()
            if identity is not None:
                observer.schedule(_Handler(self), str(self.path), event_filter=[getattr(self._events, kind)])

    def dispatch(self, event: Any) -> None:
        """Called by watchdog, on a thread of its own."""
        landed = event.dest_path if isinstance(event, self._events.FileMovedEvent) else event.src_path
        folder, name = os.path.split(os.fsdecode(landed or ""))
        if name and Path(folder) == self.path:
            with self._turn:
                self._names.add(name)
                self._turn.notify()

    def wait(self, stop: threading.Event, seconds: float) -> set[str]:
        """Names that landed since last asked, once there are any; empty after `seconds`, or soon after `stop`."""
        end = time.monotonic() + seconds
        with self._turn:
            while not self._names and not stop.is_set() and (left := end - time.monotonic()) > 0:
                self._turn.wait(min(left, STOP_POLL_S))
            is_any = bool(self._names)
        if is_any:
            time.sleep(SETTLE_S)
        with self._turn:
            names, self._names = self._names, set()
            return names

    def close(self) -> None:
        logging.getLogger("watchdog").setLevel(logging.CRITICAL)  # it complains of its own end
        for observer in self._observers:
            observer.stop()
        for observer in self._observers:
            if observer.is_alive():
                observer.join()


class _Handler:
    """What watchdog calls."""

    def __init__(self, watcher: FileWatcher) -> None:
        self._watcher = watcher

    def dispatch(self, event: Any) -> None:
        self._watcher.dispatch(event)


def why_not_watched(path: Path) -> str:
    """Why the system may not tell of every new file in that folder; "" where it does."""
    kind = filesystem_of(path)
    if kind in NETWORK_FILESYSTEMS or kind.startswith("fuse."):
        return f"{path} is on {kind}, where other machines may write"
    try:
        import_runtime("watchdog.observers.inotify", "watchdog", "pip install 'coe-cascade[edge]'")
    except RuntimeMissing as error:
        return str(error)
    return ""


def filesystem_of(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The kind of filesystem a folder is on, as Linux names it; "" where it does not say."""
    found = (-1, "")
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    where = path.resolve()
    for line in lines:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        at = Path(fields[1].replace("\\040", " "))
        if where.is_relative_to(at) and len(at.parts) >= found[0]:  # the last one mounted there is what is seen
            found = (len(at.parts), fields[2])
    return found[1]


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


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
        uses_inotify: bool = False,
        tell: Tell = lambda line: None,
        memory: FolderHistory | None = None,
    ) -> None:
        if not path.is_dir():
            raise ConfigError([f"source.path: expected a folder, got {path} (create it, or mend the path)"])
        self.path = path
        self.watch = watch
        self.poll_s = poll_s
        self.uses_inotify = uses_inotify
        self.tell = tell
        self.memory = memory

    def examples(self, stop: threading.Event) -> Iterator[Example]:
        watcher = self._open_watcher()  # before the first look, so that nothing falls between the two
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
                if watcher is None:
                    stop.wait(self.poll_s)
                else:
                    look_s = self.poll_s if len(fresh) > len(settled) or not self.path.is_dir() else LOOK_S
                    yield from self._watched_examples(watcher, look_s, done, stop)
                    watcher.refresh()
                before, seen = seen, self._scan()
        finally:
            if watcher is not None:
                watcher.close()

    def _open_watcher(self) -> FileWatcher | None:
        if not self.uses_inotify:
            return None
        try:
            return FileWatcher(self.path)
        except OSError as error:  # too many folders are watched on this device, say
            self.tell(f"warning: {self.path}: the system does not tell of new files ({error.strerror}): looked through")
            return None

    def _watched_examples(
        self, watcher: FileWatcher, seconds: float, done: dict[str, Stamp], stop: threading.Event
    ) -> Iterator[Example]:
        """Files that the system tells of, for so long."""
        end = time.monotonic() + seconds
        while not stop.is_set() and (left := end - time.monotonic()) > 0:
            for name in sorted(watcher.wait(stop, left)):
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
    def _finish(memory: FolderHistory, name: str, stamp: Stamp, outcome: object) -> None:
        memory.finish(name, stamp)


def _bytes_of(path: Path, size: int) -> tuple[bytes | None, str | None]:
    """What a file of that size holds, or why that cannot be had; one that is too large is not read into memory."""
    if size > MOST_FILE_BYTES:
        return None, f"cannot be read: expected at most {MOST_FILE_BYTES:,} bytes, got {size:,}"
    try:
        return path.read_bytes(), None
    except OSError as failure:
        return None, f"cannot be read: {failure.strerror}"
