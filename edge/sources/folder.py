"""A folder of image files: those there now, or watched for new ones through inotify or polling.

A file of a watched folder is taken once, when it is whole: when the kernel reports that it was closed or moved in, or
says that no program has it open to write. Where it cannot say, on a network or of another user's file, one is whole
that stays as it is and ends as an image ends, or stays as it is for long.
"""

from __future__ import annotations

import bisect
import contextlib
import heapq
import logging
import os
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from coe.cascade.errors import ConfigError, describe_error
from coe.cascade.types import Array
from coe.link import Backoff
from coe.models.inputs import SUFFIXES

from .base import Example
from .inotify import SETTLE_S, FileWatcher, is_open_to_write, why_not_watched

if TYPE_CHECKING:
    from edge.spool.history import FileHistory

log = logging.getLogger(__name__)

ENDS = (b"IEND\xaeB`\x82", b"\xff\xd9")  # of a PNG, of a JPEG

MOST_FILE_BYTES = 64 * 2**20
MOST_GONE = 10_000  # names of deleted files that are remembered all the same
MOST_FOUND = 8192  # names that one scan gives; in a folder with more new files the next one follows
CHECK_S = 1.0  # how soon it is noticed that a folder was replaced
SCAN_S = 60.0  # between two scans of a folder of which the kernel reports
SCAN_SHARE, NAMES_SHARE = 1 / 400, 1 / 20  # most of a core that scans of a large folder take: idle, and as files come
COARSE_S = 2.0  # a folder's time of change may stay the same for so long, although files come
QUIET_S = 10.0  # a file that does not change for so long is whole, where nothing better is known
OLD_S = 3600.0  # one on another machine, whose clock may be wrong, by its time of change
EMPTY_S = 60.0  # an empty file that nobody fills is given as it is
FIRST_WAIT_S, MOST_WAIT_S = 0.5, 30.0  # before a folder that cannot be read is looked for again

Stamp = tuple[int, int]  # size in bytes, time of change in ns; of a file that cannot be read: minus the error's number


class FolderSource:
    """Files in name order; with `watch`, then those that come.

    Args:
        path: the folder; files directly in it.
        recursive: those in its folders, too; these are scanned, not watched.
        watch: after the first scan, go on with new files. A folder that cannot be read is waited for.
        poll_s: between two looks without inotify, and at a file that is not whole.
        uses_inotify: False: poll alone.
        history: which files were decided before; it has this folder. None: none were.
    Raises:
        ConfigError: there is no such folder, and it is not watched.
    """

    def __init__(
        self,
        path: Path,
        watch: bool = False,
        poll_s: float = 0.5,
        *,
        uses_inotify: bool = False,
        recursive: bool = False,
        history: FileHistory | None = None,
    ) -> None:
        if not watch and not os.path.isdir(path):
            raise ConfigError([f"source.path: expected a folder, got {path} (create it, or correct the path)"])
        self.path = path
        self.watch = watch
        self.poll_s = poll_s
        self.uses_inotify = uses_inotify and not recursive
        self.recursive = recursive
        self.history = history

    def examples(self, stop: threading.Event) -> Iterator[Example]:
        if self.watch:
            yield from _Watch(self).examples(stop)
            return
        for name in sorted(name for name, _ in _images_in(self.path, self.recursive)):
            if stop.is_set():
                return
            value, error = _bytes_of(os.path.join(self.path, name))
            yield Example(name, value, error=error)


class _Watch:
    """A watched folder's state while its examples are taken."""

    def __init__(self, source: FolderSource) -> None:
        self._path, self._poll_s, self._history = source.path, source.poll_s, source.history
        self._uses_inotify, self._recursive = source.uses_inotify, source.recursive
        self._watcher: FileWatcher | None = None
        self._is_local = False  # only this machine writes there
        self._seen = SeenFiles()
        self._not_whole: dict[str, tuple[Stamp, float]] = {}  # and since when they are as they are
        self._identity: tuple[int, int] | None = None  # of the folder
        self._failing_since: float | None = None
        self._backoff = Backoff(min(source.poll_s, FIRST_WAIT_S), MOST_WAIT_S)
        self._changed_ns = 0  # the folder's own time of change
        self._changed_at = self._scanned_at = self._next_scan_at = self._next_names_at = 0.0  # `time.monotonic()`

    def examples(self, stop: threading.Event) -> Iterator[Example]:
        if self._history is not None:
            for name, stamp in self._history.done(self._path):
                self._seen.add(name, stamp)
        try:
            while not stop.is_set():
                try:
                    names = self._find()
                except OSError as error:
                    self._fails(error)
                    stop.wait(self._backoff.next_s())
                    continue
                yield from self._take(dict.fromkeys(names, False), stop)
                yield from self._take(self._wait(stop), stop)
        finally:
            self._close_watcher()

    def _wait(self, stop: threading.Event) -> Mapping[str, bool]:
        """Names of files that are reported until it is time for the next look."""
        if self._next_scan_at and self._watcher is None:
            stop.wait(self._poll_s)
        elif self._next_scan_at and self._watcher is not None:
            return self._watcher.wait(stop, self._poll_s if self._not_whole else CHECK_S)
        return {}

    def _find(self) -> Iterable[str]:
        """Names of the files that may be new, from a scan if it is time for one, and those not whole before.

        Raises:
            OSError: the folder cannot be read.
        """
        status = os.stat(self._path)
        if (status.st_dev, status.st_ino) != self._identity or (self._watcher is not None and self._watcher.is_gone):
            self._attach(status)
        now = time.monotonic()
        if status.st_mtime_ns != self._changed_ns:
            self._changed_ns, self._changed_at = status.st_mtime_ns, now
        found = list(self._not_whole)
        watcher = self._watcher
        if now >= self._next_scan_at or (watcher is not None and watcher.missed):
            if watcher is not None:
                watcher.missed = False
            found += self._scan()
            self._scanned_at, took_s = now, time.monotonic() - now
            least_s = self._poll_s if watcher is None else SCAN_S
            is_all = len(found) < MOST_FOUND
            self._next_scan_at = time.monotonic() + max(0.9 * least_s, took_s / SCAN_SHARE) if is_all else 0.0
        elif watcher is None and self._scanned_at < self._changed_at + COARSE_S and now >= self._next_names_at:
            names = (name for name, _ in _images_in(self._path, self._recursive) if self._seen.get(name) is None)
            found += heapq.nsmallest(MOST_FOUND, names)
            self._scanned_at, took_s = now, time.monotonic() - now
            self._next_names_at = time.monotonic() + took_s / NAMES_SHARE
        if self._failing_since is not None:
            log.info("%s can be read again, after %.1f s", self._path, time.monotonic() - self._failing_since)
            self._failing_since = None
        self._backoff.reset()
        return found

    def _attach(self, status: os.stat_result) -> None:
        """Watch the folder that has the path now; raises OSError where it cannot be read."""
        os.scandir(self._path).close()
        self._close_watcher()
        reason = why_not_watched(self._path)
        self._is_local = not reason
        if self._uses_inotify and not reason:
            try:
                self._watcher = FileWatcher(self._path)  # before the scan, so that no file is missed between the two
            except OSError as error:  # such as when too many folders are watched on this device
                reason = f"{self._path} cannot be watched through inotify ({describe_error(error)})"
        if self._uses_inotify and reason:
            log.warning("%s: it is scanned twice a second (`poll: true` says that this is meant)", reason)
        self._identity = status.st_dev, status.st_ino
        self._next_scan_at = 0.0

    def _close_watcher(self) -> None:
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None

    def _fails(self, error: OSError) -> None:
        self._identity = None
        self._close_watcher()
        if self._failing_since is None:
            self._failing_since = time.monotonic()
            log.warning("%s cannot be read (%s): it is looked for until it can", self._path, describe_error(error))

    def _scan(self) -> list[str]:
        """The first names of files that are not seen, or have changed; deleted ones are forgotten, once they are many.

        An empty folder may be one whose disk is not mounted: nothing is forgotten then.
        """
        seen, n_entries = self._seen, 0
        there = seen.mark()

        def new_names() -> Iterator[str]:
            nonlocal n_entries
            for name, entry in _images_in(self._path, self._recursive):
                n_entries += 1
                known = seen.get(name, there)
                if known is None:
                    yield name
                    continue
                with contextlib.suppress(OSError):
                    status = entry.stat()
                    if known != hash((status.st_size, status.st_mtime_ns)):
                        yield name

        found = heapq.nsmallest(MOST_FOUND, new_names())
        if n_entries and len(seen) >= 2 * n_entries + MOST_GONE:
            seen.keep(there)
            if self._history is not None:
                self._history.forget(self._path, lambda name: seen.get(name) is None)
        return found

    def _take(self, names: Mapping[str, bool], stop: threading.Event) -> Iterator[Example]:
        """Examples of the files that are whole. `names`: True for those that the kernel reported as closed."""
        for name in sorted(name for name in names if name.lower().endswith(SUFFIXES)):
            if stop.is_set():
                return
            stamp = self._look(name, names[name])
            if stamp is None:
                continue
            self._seen.add(name, stamp)
            done = None
            if self._history is not None:
                self._history.take(self._path, name, stamp)
                done = partial(self._history.finish, self._path, name, stamp)
            value, error = _bytes_of(os.path.join(self._path, name))
            yield Example(name, value, error=error, answered=done)

    def _look(self, name: str, is_reported: bool) -> Stamp | None:
        """The stamp of a file that is whole and not seen; None: there is none, or not yet."""
        now = time.monotonic()
        before, since = self._not_whole.pop(name, (None, now))
        path = os.path.join(self._path, name)
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would show at its other end
                return None
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                is_written = is_open_to_write(descriptor) if self._is_local else None
                status = os.fstat(descriptor)  # after the kernel's word, or it could change in between
                stamp = status.st_size, status.st_mtime_ns
                if self._seen.get(name) == hash(stamp):
                    return None
                since = since if stamp == before else now
                if is_reported and is_written is not True and stamp[0] > 0:
                    return stamp
                if not is_written and self._is_whole(descriptor, status, is_written, now - since):
                    return stamp
            finally:
                os.close(descriptor)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:  # given with its reason, once
            stamp = -(error.errno or 1), 0
            return None if self._seen.get(name) == hash(stamp) else stamp
        self._not_whole[name] = stamp, since
        return None

    def _is_whole(self, descriptor: int, status: os.stat_result, is_written: bool | None, same_s: float) -> bool:
        """Whether a file that was not reported is whole; `is_written` False: the kernel says that nobody writes it."""
        size, is_same = status.st_size, same_s >= 0.9 * self._poll_s
        if size == 0:  # created, and perhaps to be filled
            return same_s >= EMPTY_S
        age_s = time.time() - max(status.st_mtime, status.st_ctime)
        if is_written is False:
            return is_same or age_s > SETTLE_S
        if age_s > (QUIET_S if self._is_local else OLD_S) or same_s >= QUIET_S:
            return True
        return is_same and os.pread(descriptor, 16, max(size - 16, 0)).endswith(ENDS)


class SeenFiles:
    """Which files were taken, and with which stamps: 8-byte hashes of both, since a folder may hold many."""

    def __init__(self) -> None:
        self._names = self._stamps = _view(np.empty(0, np.int64))  # by the names' hashes
        self._newer: dict[int, int] = {}  # not among them yet

    def __len__(self) -> int:
        return len(self._names) + len(self._newer)

    def add(self, name: str, stamp: Stamp) -> None:
        self._newer[hash(name)] = hash(stamp)
        if len(self._newer) >= max(1024, len(self._names) // 16):
            self._merge()

    def get(self, name: str, there: bytearray | None = None) -> int | None:
        """The hash of that file's stamp; None: it was not taken. `there`: marks from `mark`, where it is noted."""
        key = hash(name)
        newer = self._newer.get(key)
        if newer is not None:
            return newer
        at = bisect.bisect_left(self._names, key)
        if at == len(self._names) or self._names[at] != key:
            return None
        if there is not None:
            there[at] = 1
        return int(self._stamps[at])

    def mark(self) -> bytearray:
        """A mark for each file, to be set by `get`; valid until the next `add`."""
        self._merge()
        return bytearray(len(self._names))

    def keep(self, there: bytearray) -> None:
        """Forget the files without a mark."""
        is_there = np.frombuffer(there, dtype=bool)
        self._names, self._stamps = _view(np.asarray(self._names)[is_there]), _view(np.asarray(self._stamps)[is_there])

    def _merge(self) -> None:
        newer = np.array([*self._newer.items()], dtype=np.int64).reshape(-1, 2)
        names, at = np.unique(np.concatenate([newer[:, 0], self._names]), return_index=True)  # the first of equal ones
        stamps = np.concatenate([newer[:, 1], self._stamps])[at]
        self._names, self._stamps = _view(names), _view(stamps)
        self._newer.clear()


def _view(numbers: Array) -> memoryview:
    """Whose items are Python's whole numbers, which `bisect` compares faster than NumPy's."""
    return memoryview(numbers)  # type: ignore[arg-type]


def holds_images(folder: Path) -> bool:
    return next(_images_in(folder), None) is not None


def _images_in(folder: Path | str, recursive: bool = False, above: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
    """A folder's files of an image's name; of what is no link, without asking the disk for each."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if recursive and entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(OSError):  # it may be gone by now
                    yield from _images_in(entry.path, recursive, f"{above}{entry.name}/")
            elif entry.name.lower().endswith(SUFFIXES):
                is_file = True
                with contextlib.suppress(OSError):  # such as a loop of links: reading it says why
                    is_file = entry.is_file()
                if is_file:
                    yield above + entry.name, entry


def _bytes_of(path: str) -> tuple[bytes | None, str | None]:
    """A file's content, or why it cannot be read; one that is too large is not read into memory."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            if size > MOST_FILE_BYTES:
                return None, f"cannot be read: expected at most {MOST_FILE_BYTES:,} bytes, got {size:,}"
            data = os.read(descriptor, size)
            while len(data) < size and (more := os.read(descriptor, size - len(data))):
                data += more
            return data, None
        finally:
            os.close(descriptor)
    except OSError as failure:
        return None, f"cannot be read: {describe_error(failure)}"
