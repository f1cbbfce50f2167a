"""One agent at a time: a lock beside a file, which its holder's end lets go of, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from coe.cascade.errors import ConfigError


class Lock:
    """The lock of `path`, a file of the setting `field`, from here to `close`.

    Raises:
        ConfigError: another process holds it, or the folder cannot be written.
    """

    def __init__(self, path: Path, field: str) -> None:
        self.path = path.with_name(path.name + ".lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(
                [f"{field}: {path.parent} cannot be written: {error.strerror} (set `state:` to a folder that can)"]
            ) from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._descriptor, 20, 0).decode(errors="replace").strip()
            os.close(self._descriptor)
            who = f"coe-edge, process {holder}" if holder else "coe-edge"
            raise ConfigError(
                [f"{field}: {path} is in use by another {who} (stop it, or set `state:` to another folder)"]
            ) from None
        with contextlib.suppress(OSError):  # a full disk: it holds all the same
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
