"""Old records, set aside: decisions.jsonl becomes decisions.jsonl.1 before it grows beyond its bound, and so on."""

from __future__ import annotations

import gzip
import os
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Rotation:
    """How long a file may grow, and what is kept of it.

    Args:
        max_bytes: of one file. A record is never split, so one that is larger by itself has a file of its own.
        keep: old files, `.1` being the latest.
        compress: old ones, with gzip.
    """

    max_bytes: int
    keep: int = 5
    compress: bool = False


class Shelf:
    """The old files of `path`. To be asked by one thread at a time; compressing has a thread of its own."""

    def __init__(self, path: Path, rotation: Rotation) -> None:
        self.path = path
        self.rotation = rotation
        self._packing: threading.Thread | None = None

    @property
    def is_busy(self) -> bool:
        """A file is being compressed: names must stay as they are."""
        return self._packing is not None and self._packing.is_alive()

    def put(self) -> None:
        """Set the file aside as the latest of the old ones; the oldest goes.

        Raises:
            OSError: a file cannot be renamed. What was renamed before has its new name.
        """
        self.close()
        number = 1
        while number < self.rotation.keep and self._is_there(number):
            number += 1
        for suffix in ("", ".gz"):
            self._old(number, suffix).unlink(missing_ok=True)  # the oldest, where as many are kept as may be
        for older in range(number, 1, -1):
            for suffix in ("", ".gz"):
                if self._old(older - 1, suffix).exists():
                    self._old(older - 1, suffix).replace(self._old(older, suffix))
        latest = self._old(1)
        self.path.replace(latest)
        if self.rotation.compress:
            self._packing = threading.Thread(target=_pack, args=(latest,), name="coe-pack", daemon=True)
            self._packing.start()

    def close(self) -> None:
        """Wait for the compressing."""
        if self._packing is not None:
            self._packing.join()
            self._packing = None

    def _is_there(self, number: int) -> bool:
        return self._old(number).exists() or self._old(number, ".gz").exists()

    def _old(self, number: int, suffix: str = "") -> Path:
        return self.path.with_name(f"{self.path.name}.{number}{suffix}")


def _pack(path: Path) -> None:
    """`path` as `path`.gz, with the same time. On a full disk it stays as it is."""
    part = path.with_name(f".{path.name}.gz.part")  # a name that nobody takes for a file of records
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
