"""A folder of PNG and JPEG files: those there now, or watched for new ones through inotify or polling.

With inotify, a file is taken as soon as it is closed, or moved in; the folder is scanned now and then all the same.
With polling, a file is taken once two scans in a row found it the same.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coe.cascade.errors import ConfigError, RuntimeMissing, describe_error
from coe.models.loading import import_runtime

from .base import Example

if TYPE_CHECKING:
    from edge.spool.history import FileHistory

log = logging.getLogger(__name__)

STOP_POLL_S = 0.2
SETTLE_S = 0.015  # a program that copies a file often sets its time right after it closed it
EVENT_TYPES = ("FileClosedEvent", "FileMovedEvent")
# Filesystems where another machine may write, which inotify does not report.
NETWORK_FILESYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "virtiofs")


def _watchdog_module(name: str) -> Any:
    return import_runtime(f"watchdog.{name}", "watchdog", "pip install 'coe-cascade[edge]'")


class FileWatcher:
    """The names of files that were closed in a folder, or moved into it, through inotify.

    Raises:
        RuntimeMissing: watchdog is not installed.
        OSError: the folder cannot be watched, such as when too many are watched already.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        observers = _watchdog_module("observers.inotify")
        self._events = _watchdog_module("events")
        self._changed = threading.Condition()
        self._names: set[str] = set()
        self._identity: tuple[int, int] | None = None  # of the folder that is watched
        self._observers: list[Any] = []  # one each: watchdog delays the events after a file is moved away
        try:
            for _ in EVENT_TYPES:
                self._observers.append(observers.InotifyObserver(generate_full_events=True))  # also moves from outside
                self._observers[-1].start()
            self.refresh()
        except BaseException:
            self.close()
            raise

    def refresh(self) -> None:
        """Watch the folder that has the path now, should the one watched before be gone."""
        identity = _identity(self.path)
        emitters = [emitter for observer in self._observers for emitter in observer.emitters]  # they end with a folder
        is_watched = len(emitters) == len(EVENT_TYPES) and all(emitter.is_alive() for emitter in emitters)
        if identity is not None and identity == self._identity and is_watched:
            return
        self._identity = identity
        for observer, kind in zip(self._observers, EVENT_TYPES, strict=True):
            observer.unschedule_all()
            if identity is not None:
                observer.schedule(self, str(self.path), event_filter=[getattr(self._events, kind)])

    def dispatch(self, event: Any) -> None:
        """Called by watchdog, on a thread of its own."""
        new_path = event.dest_path if isinstance(event, self._events.FileMovedEvent) else event.src_path
        folder, name = os.path.split(os.fsdecode(new_path or ""))
        if name and Path(folder) == self.path:
            with self._changed:
                self._names.add(name)
                self._changed.notify()

    def wait(self, stop: threading.Event, seconds: float) -> set[str]:
        """Names of new files since the last call, once there are any; empty after `seconds`, or soon after `stop`."""
        end = time.monotonic() + seconds
        with self._changed:
            while not self._names and not stop.is_set() and (left := end - time.monotonic()) > 0:
                self._changed.wait(min(left, STOP_POLL_S))
            is_any = bool(self._names)
        if is_any:
            time.sleep(SETTLE_S)
        with self._changed:
            names, self._names = self._names, set()
            return names

    def close(self) -> None:
        logging.getLogger("watchdog").setLevel(logging.CRITICAL)  # it logs errors as it is stopped
        for observer in self._observers:
            observer.stop()
        for observer in self._observers:
            if observer.is_alive():
                observer.join()


def why_not_watched(path: Path) -> str:
    """Why inotify may not report every new file in that folder; "" where it does."""
    kind = filesystem_of(path)
    if kind in NETWORK_FILESYSTEMS or kind == "vboxsf" or kind.startswith("fuse."):
        return f"{path} is on {kind}, where other machines may write"
    try:
        _watchdog_module("observers.inotify")
    except RuntimeMissing as error:
        return str(error)
    return ""


def filesystem_of(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The kind of filesystem a folder is on, as Linux names it; "" where that is not known."""
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
        if where.is_relative_to(at) and len(at.parts) >= found[0]:  # the last one mounted there is in use
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
MOST_GONE = 10_000  # names of deleted files that are remembered all the same
SCAN_S = 1.0  # between two scans of a folder that is watched through inotify

Stamp = tuple[int, int]  # size in bytes, time of change in ns


class FolderSource:
    """Files in name order. A watched file is taken once it has stopped growing.

    Args:
        path: the folder; files directly in it.
        watch: after the first scan, go on with new files.
        poll_s: between two scans without inotify.
        uses_inotify: False: poll alone.
        history: which files were decided before; it has this folder. None: none were.
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
        history: FileHistory | None = None,
    ) -> None:
        if not path.is_dir():
            raise ConfigError([f"source.path: expected a folder, got {path} (create it, or correct the path)"])
        self.path = path
        self.watch = watch
        self.poll_s = poll_s
        self.uses_inotify = uses_inotify
        self.history = history

    def examples(self, stop: threading.Event) -> Iterator[Example]:
        watcher = self._open_watcher()  # before the first scan, so that no file is missed between the two
        seen = self._scan()
        if not self.watch:
            yield from self._read(seen, stop)
            return
        done: dict[str, Stamp] = {} if self.history is None else self.history.done(self.path)
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
                    scan_s = self.poll_s if len(fresh) > len(settled) or not self.path.is_dir() else SCAN_S
                    yield from self._watched_examples(watcher, scan_s, done, stop)
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
        except OSError as error:  # such as when too many folders are watched on this device
            log.warning("%s cannot be watched through inotify (%s): it is scanned", self.path, describe_error(error))
            return None

    def _watched_examples(
        self, watcher: FileWatcher, seconds: float, done: dict[str, Stamp], stop: threading.Event
    ) -> Iterator[Example]:
        """Files that inotify reports within `seconds`."""
        end = time.monotonic() + seconds
        while not stop.is_set() and (left := end - time.monotonic()) > 0:
            for name in sorted(watcher.wait(stop, left)):
                stamp = self._stamp(name)
                if stamp is not None and stamp[0] > 0 and done.get(name) != stamp:  # an empty one may still be filled
                    yield from self._take({name: stamp}, done, stop)

    def _stamp(self, name: str) -> Stamp | None:
        """The stamp of one file; None where it is not an image, or is gone."""
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
                with contextlib.suppress(FileNotFoundError):  # this file was deleted meanwhile
                    if entry.name.lower().endswith(SUFFIXES) and entry.is_file():
                        status = entry.stat()
                        found[entry.name] = (status.st_size, status.st_mtime_ns)
        return found

    def _take(self, stamps: dict[str, Stamp], done: dict[str, Stamp], stop: threading.Event) -> Iterator[Example]:
        """Examples of files that are complete."""
        done.update(stamps)
        yield from self._read(stamps, stop)

    def _forget(self, done: dict[str, Stamp], seen: dict[str, Stamp]) -> None:
        """Forget deleted files, once they are many; an empty folder may be one whose disk is not mounted."""
        if not seen or len(done) < 2 * len(seen) + MOST_GONE:
            return
        gone = done.keys() - seen.keys()
        for name in gone:
            del done[name]
        if self.history is not None:
            self.history.forget(self.path, gone)

    def _read(self, stamps: dict[str, Stamp], stop: threading.Event) -> Iterator[Example]:
        for name in sorted(stamps):
            if stop.is_set():
                return
            answered = None
            if self.history is not None:
                self.history.take(self.path, name, stamps[name])
                answered = partial(self.history.finish, self.path, name, stamps[name])
            value, error = _bytes_of(self.path / name, stamps[name][0])
            yield Example(name, value, error=error, answered=answered)


def _bytes_of(path: Path, size: int) -> tuple[bytes | None, str | None]:
    """A file's content, or why it cannot be read; one that is too large is not read into memory."""
    if size > MOST_FILE_BYTES:
        return None, f"cannot be read: expected at most {MOST_FILE_BYTES:,} bytes, got {size:,}"
    try:
        return path.read_bytes(), None
    except OSError as failure:
        return None, f"cannot be read: {describe_error(failure)}"
