"""The end of a file of JSON lines: mended after a crash, and read back.

After a crash an agent asks its sinks what they have (`Rereadable`): only what they lack is written again.
"""

from __future__ import annotations

import gzip
import json
import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Protocol, cast, runtime_checkable

from .base import Record

CHUNK_BYTES = 2**16
SEARCH_BYTES = 64 * 2**20  # how far back corrections are looked for: those in doubt are the last ones written


@runtime_checkable
class Rereadable(Protocol):
    """A writer whose records can be read back."""

    def mark(self) -> str:
        """Where the next record will stand; "" where that cannot be said."""
        ...

    def since(self, mark: str) -> Iterator[Record]:
        """The records from a mark on, in order; all there are where the mark is not found any more."""
        ...

    def sync(self) -> None:
        """Whatever was written stays, should the power fail now. On any thread, also while another writes.

        Raises:
            OSError: the disk fails, or it is about to go on in another file: to be asked again while nobody writes.
        """
        ...


def mend(path: Path) -> int:
    """Cut off a last line that was not written whole; how many bytes. A whole line gets the end it lacks.

    Raises:
        OSError: the file cannot be read or written.
    """
    if not is_regular(path):
        return 0
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        torn = next(_pieces(file, size))
        if not torn:
            return 0
        if _record(torn) is not None:
            file.seek(size)
            file.write(b"\n")
            return 0
        file.truncate(size - len(torn))
        return len(torn)


def is_regular(path: Path) -> bool:
    """Whether it is a file that can be read back, and not a pipe or a terminal."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def missing_from(path: Path, keys: Collection[str], field: str = "corrects") -> set[str]:
    """Of `keys`, those no record near the end of the file, or of those rotated away from it, has in `field`."""
    left = set(keys)
    most = SEARCH_BYTES
    for part in reversed(parts_of(path)):
        for line in _backwards(part):
            if not left or most <= 0:
                return left
            most -= len(line)
            left.discard(str((_record(line) or {}).get(field, "")))
    return left


def mark_of(path: Path) -> str:
    """The file's end, so that it is found again after a rotation, too; "" for no such file."""
    if not is_regular(path):
        return ""
    status = path.stat()
    return f"{status.st_ino}:{status.st_size}"


def since(path: Path, mark: str) -> Iterator[Record]:
    """Records from `mark` (of `mark_of`) on; all there are where it is not found."""
    inode, _, offset = mark.partition(":")
    parts = parts_of(path)
    inodes = [str(part.stat().st_ino) for part in parts]
    start = 0
    if inode in inodes:
        first = inodes.index(inode)
        parts, start = parts[first:], int(offset)
    for part in parts:
        with _open(part) as file:
            file.seek(max(start - 1, 0))
            if start and file.read(1) != b"\n":
                file.readline()  # the mark was set while another thread wrote this line
            start = 0
            for line in file:
                record = _record(line)
                if record is not None:
                    yield record


def parts_of(path: Path) -> list[Path]:
    """A file and what rotation left of it (`NAME.1`, `NAME.2.gz`, ...), the oldest first."""
    named = [path, *path.parent.glob(f"{_escaped(path.name)}.*")]
    return sorted(
        (part for part in named if is_regular(part)), key=lambda part: (part == path, part.stat().st_mtime_ns)
    )


def _escaped(name: str) -> str:
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in name)


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _backwards(path: Path) -> Iterator[bytes]:
    """Lines of a file, the last first; the first is what follows the last line end: nothing in a whole file."""
    with _open(path) as file:
        if path.suffix == ".gz":  # cannot be read from its end
            yield from reversed(file.read().split(b"\n"))
        else:
            yield from _pieces(file, file.seek(0, os.SEEK_END))


def _pieces(file: IO[bytes], end: int) -> Iterator[bytes]:
    """What stands between line ends, from `end` back."""
    tail: list[bytes] = []  # of the piece whose start is still to be found, the last first
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


def _record(line: bytes) -> Record | None:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
