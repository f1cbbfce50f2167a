"""Which examples are being decided on this device, in a file that outlives the process.

A member that crashes the process (a fault of memory, the kernel's killer of processes that take too much of it, a
watchdog that found it hanging) would do so again at each start. What the file names at a start was under way when the
process ended: it is tried once more, and passed over if the process ends on it a second time.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
from pathlib import Path

log = logging.getLogger(__name__)

N_SLOTS = 16
SLOT_BYTES = 256  # crashes before, length of the name, the name
MOST_CRASHES = 2


class CrashJournal:
    """Names of examples under way, one a slot of a small file. Thread-safe.

    Nothing is flushed: the file outlives the process, not the machine. Where it cannot be written the agent goes on
    without it, which is logged once.

    Args:
        path: of the file; its folder is made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()  # over all below
        self._file: int | None = None
        self._free = list(range(N_SLOTS))
        self._suspects: dict[bytes, tuple[int, int]] = {}  # name -> slot, and how often the process ended on it
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            content = os.pread(self._file, N_SLOTS * SLOT_BYTES, 0)
            os.pwrite(self._file, content.ljust(N_SLOTS * SLOT_BYTES, b"\0"), 0)
        except OSError as error:
            self._give_up(error)
            return
        for slot in range(len(content) // SLOT_BYTES):
            crashes, length = content[slot * SLOT_BYTES : slot * SLOT_BYTES + 2]
            name = content[slot * SLOT_BYTES + 2 :][:length]
            if not length:
                continue
            self._free.remove(slot)
            self._suspects[name] = (slot, crashes + 1)
            then = "it is tried once more" if crashes + 1 < MOST_CRASHES else "it is passed over"
            shown = name.decode("utf-8", "replace")
            log.warning("the process ended while example %s was being decided; %s", shown, then)

    def is_given_up(self, name: str) -> bool:
        """True if the process ended too often while that example was being decided."""
        return bool(self._suspects) and self._suspects.get(_key(name), (0, 0))[1] >= MOST_CRASHES

    def begin(self, name: str) -> int:
        """Record that an example is being decided. Returns its slot, for `end`."""
        key = _key(name)
        crashes = 0
        with self._lock:
            if key in self._suspects:
                slot, crashes = self._suspects.pop(key)
            elif self._free:
                slot = self._free.pop()
            elif self._suspects:  # those that did not come again make room
                slot, _ = self._suspects.pop(next(iter(self._suspects)))
            else:
                return -1
        self._write(slot, bytes((crashes, len(key))) + key)
        return slot

    def end(self, slot: int) -> None:
        """Record that it is decided."""
        if slot >= 0:
            self._write(slot, b"\0\0")
            self._free.append(slot)

    def close(self) -> None:
        with self._lock:
            file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                os.close(file)

    def _write(self, slot: int, content: bytes) -> None:
        if self._file is None:
            return
        try:
            os.pwrite(self._file, content, slot * SLOT_BYTES)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        why = error.strerror or str(error)
        log.warning("%s: %s; an example that crashes the process is not passed over", self.path, why)
        self.close()


def _key(name: str) -> bytes:
    key = name.encode("utf-8", "surrogateescape")
    return key if 0 < len(key) <= SLOT_BYTES - 2 else hashlib.sha256(key).hexdigest().encode()
