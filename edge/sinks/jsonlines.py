"""Decisions as JSON lines: on a stream, or in a file that is rotated, repaired and read back after a crash."""

from __future__ import annotations

import contextlib
import errno
import glob
import gzip
import json
import os
import shutil
import stat
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TextIO, cast

from coe.config.settings import REQUIRED, setting

from .base import Record


@dataclass(frozen=True)
class Rotation:
    """How long a file may grow, and what is kept of it. A record that is larger by itself has a file of its own."""

    max_bytes: int = setting(
        REQUIRED, "Size in MiB at which a new file begins.", usual="it grows", unit="MiB", low=0.001, high=1_000_000
    )
    keep: int = setting(5, "Old files to keep, `.1` being the latest.", low=1, high=1000)
    compress: bool = setting(False, "Compress old files with gzip.", key="gzip")


class RotatedFiles:
    """The old files of `path`. For one thread at a time; compressing has a thread of its own."""

    def __init__(self, path: Path, rotation: Rotation) -> None:
        self.path = path
        self.rotation = rotation
        self._compressing: threading.Thread | None = None

    @property
    def is_busy(self) -> bool:
        """True while a file is being compressed: no file may be renamed then."""
        return self._compressing is not None and self._compressing.is_alive()

    def put(self) -> None:
        """Rename the file as the latest of the old ones; the oldest is deleted.

        Raises:
            OSError: a file cannot be renamed. What was renamed before has its new name.
        """
        self.close()
        number = 1
        while number < self.rotation.keep and any(self._old(number, suffix).exists() for suffix in ("", ".gz")):
            number += 1
        for suffix in ("", ".gz"):
            self._old(number, suffix).unlink(missing_ok=True)  # the oldest, where `keep` are kept
        for older in range(number, 1, -1):
            for suffix in ("", ".gz"):
                if self._old(older - 1, suffix).exists():
                    self._old(older - 1, suffix).replace(self._old(older, suffix))
        latest = self._old(1)
        self.path.replace(latest)
        if self.rotation.compress:
            self._compressing = threading.Thread(target=_compress, args=(latest,), name="coe-pack", daemon=True)
            self._compressing.start()

    def close(self) -> None:
        """Wait until compressing has ended."""
        if self._compressing is not None:
            self._compressing.join()
            self._compressing = None

    def _old(self, number: int, suffix: str = "") -> Path:
        return self.path.with_name(f"{self.path.name}.{number}{suffix}")


def _compress(path: Path) -> None:
    """`path` as `path`.gz, with the same time. On a full disk it stays as it is."""
    part = path.with_name(f".{path.name}.gz.part")  # a name that no reader takes for a file of records
    try:
        status = path.stat()
        with path.open("rb") as source, part.open("wb") as target:
            with gzip.GzipFile(path.name, "wb", fileobj=target, mtime=status.st_mtime) as packed:
                shutil.copyfileobj(source, packed, 2**16)
            target.flush()
            os.fsync(target.fileno())
        os.utime(part, ns=(status.st_atime_ns, status.st_mtime_ns))
        part.replace(path.with_name(f"{path.name}.gz"))
        path.unlink()
    except OSError:
        part.unlink(missing_ok=True)


CHUNK_BYTES = 2**16
SEARCH_BYTES = 64 * 2**20  # how far back corrections are looked for: those in doubt are the last ones written


def repair_last_line(path: Path) -> int:
    """The bytes cut off: those of a last line that was not written whole. A whole line gets the end it lacks.

    Raises:
        OSError: the file cannot be read or written.
    """
    if not is_regular(path):
        return 0
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        torn = next(_split_backwards(file, size))
        if not torn:
            return 0
        if _parse_record(torn) is not None:
            file.seek(size)
            file.write(b"\n")
            return 0
        file.truncate(size - len(torn))
        return len(torn)


def is_regular(path: Path) -> bool:
    """True if it is a file that can be read back, and not a pipe or a terminal."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def missing_from(path: Path, keys: Collection[str], field: str = "corrects") -> set[str]:
    """Those of `keys` that no record near the end of the file, or of its rotated files, has in `field`."""
    left = set(keys)
    most = SEARCH_BYTES
    for part in reversed(parts_of(path)):
        for line in _backwards(part):
            if not left or most <= 0:
                return left
            most -= len(line)
            left.discard(str((_parse_record(line) or {}).get(field, "")))
    return left


def mark_of(path: Path) -> str:
    """The position of the file's end, which is found again after a rotation, too; "" where there is no such file."""
    if not is_regular(path):
        return ""
    status = path.stat()
    return f"{status.st_ino}:{status.st_size}"


def since(path: Path, mark: str) -> Iterator[Record]:
    """Records from `mark` (of `mark_of`) on; all of them where it is not found."""
    inode, _, offset = mark.partition(":")
    parts = parts_of(path)
    inodes = [str(part.stat().st_ino) for part in parts]
    start = 0
    if inode in inodes:
        first = inodes.index(inode)
        parts, start = parts[first:], int(offset)
    for part in parts:
        with _open_part(part) as file:
            file.seek(max(start - 1, 0))
            if start and file.read(1) != b"\n":
                file.readline()  # another thread wrote this line while the mark was set
            start = 0
            for line in file:
                record = _parse_record(line)
                if record is not None:
                    yield record


def parts_of(path: Path) -> list[Path]:
    """A file and its rotated files (`NAME.1`, `NAME.2.gz`, ...), the oldest first."""
    named = [path, *path.parent.glob(f"{glob.escape(path.name)}.*")]
    return sorted(
        (part for part in named if is_regular(part)), key=lambda part: (part == path, part.stat().st_mtime_ns)
    )


def _open_part(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _backwards(path: Path) -> Iterator[bytes]:
    """Lines of a file, the last first; the first is what follows the last line end: empty in a whole file."""
    with _open_part(path) as file:
        if path.suffix == ".gz":  # which cannot be read from its end
            yield from reversed(file.read().split(b"\n"))
        else:
            yield from _split_backwards(file, file.seek(0, os.SEEK_END))


def _split_backwards(file: IO[bytes], end: int) -> Iterator[bytes]:
    """The pieces between line ends, from `end` back."""
    tail: list[bytes] = []  # parts of the piece whose start is not found yet, the last first
    while end > 0:
        start = max(end - CHUNK_BYTES, 0)
        file.seek(start)
        *rest, last = file.read(end - start).split(b"\n")
        end = start
        tail.append(last)
        while rest:
            yield b"".join(reversed(tail))
            tail = [rest.pop()]
    yield b"".join(reversed(tail))


def _parse_record(line: bytes) -> Record | None:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


class JsonLinesStream:
    """One line per record, flushed at once: the reader of a pipe sees a decision when it is made."""

    kind = "jsonlines"
    name = "standard output"

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.is_lost = False  # its reader has ended

    def write(self, record: Record) -> None:
        try:
            if not self.is_lost:
                self.stream.write(json.dumps(record) + "\n")
                self.stream.flush()
        except BrokenPipeError:
            self.is_lost = True
            with open(os.devnull, "w") as nowhere:  # or what is in the buffer fails once more at the end
                os.dup2(nowhere.fileno(), self.stream.fileno())
        if self.is_lost:  # not as BrokenPipeError, which ends a program as if its work were done
            raise OSError(errno.EIO, "the program that read it has ended", self.name)

    def missing(self, keys: Collection[str]) -> Collection[str]:
        return keys

    def close(self) -> None:
        """Nothing: the stream's owner closes it."""


FOLLOW_S = 0.5  # how soon it is noticed that another program moved the file away, as logrotate does


class JsonLinesFile:
    """One line per record, written whole or not at all.

    Args:
        path: created where it is missing. One that is not a regular file (a pipe) is neither rotated nor read back.
        rotation: None: it grows.
    Raises:
        OSError: it cannot be opened.
    """

    kind = "jsonlines"

    def __init__(self, path: Path, rotation: Rotation | None = None) -> None:
        self.path = path
        self.name = str(path)
        self.n_rotations = 0
        repair_last_line(path)  # which a killed agent may have left incomplete
        self._descriptor = -1
        self._open()
        self._rotated = RotatedFiles(path, rotation) if rotation is not None and self._is_regular else None
        self._looked_at = time.monotonic()

    def write(self, record: Record) -> None:
        line = (json.dumps(record) + "\n").encode()
        try:
            if self._is_regular:
                self._make_room(len(line))
            self._append(line)
        except BrokenPipeError:  # which would end the program as if its work were done
            raise OSError(errno.EIO, "no program reads it", self.name) from None
        except OSError as error:  # such as a full disk: the operating system does not name the file
            raise OSError(error.errno, error.strerror, self.name) from None

    def missing(self, keys: Collection[str]) -> Collection[str]:
        return missing_from(self.path, keys) if self._is_regular else keys

    def mark(self) -> str:
        return mark_of(self.path) if self._is_regular else ""

    def since(self, mark: str) -> Iterator[Record]:
        return since(self.path, mark) if self._is_regular else iter(())

    def sync(self) -> None:
        if self._is_regular:
            os.fsync(self._descriptor)

    def close(self) -> None:
        if self._rotated is not None:
            self._rotated.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = descriptor
        status = os.fstat(descriptor)
        self._is_regular = stat.S_ISREG(status.st_mode)
        self._identity = status.st_dev, status.st_ino
        self._size = status.st_size

    def _make_room(self, n_bytes: int) -> None:
        """Continue in the file that has our path now, and in a new one where this line would not fit."""
        now = time.monotonic()
        if now - self._looked_at >= FOLLOW_S:
            self._looked_at = now
            self._follow()
        rotated = self._rotated
        if rotated is None or not self._size or self._size + n_bytes <= rotated.rotation.max_bytes or rotated.is_busy:
            return
        os.fsync(self._descriptor)  # `sync` flushes only the new one
        try:
            rotated.put()
        finally:  # after a rename that failed it is the same file
            self._open()
        self.n_rotations += 1

    def _follow(self) -> None:
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            self._open()
            return
        if (status.st_dev, status.st_ino) != self._identity:
            self._open()
        else:
            self._size = status.st_size  # another program may have truncated it

    def _append(self, line: bytes) -> None:
        left = memoryview(line)
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError:
            if self._is_regular and len(left) < len(line):  # half a line would make the next one unreadable, too
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - (len(line) - len(left)))
            raise
        self._size += len(line)
