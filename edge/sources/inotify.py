"""What Linux reports of files: which were closed or moved into a folder, and which are still open to be written."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import signal
import struct
import threading
import time
from pathlib import Path

STOP_POLL_S = 0.2
SETTLE_S = 0.015  # a program that copies a file often sets its time right after it closed it
CLOSED, MOVED_IN, CREATED = 0x8, 0x80, 0x100
GONE = 0x400 | 0x800 | 0x2000 | 0x8000  # the folder was deleted, moved or unmounted, or is watched no longer
OVERFLOW, ONLY_FOLDERS = 0x4000, 0x1000000
EVENT = struct.Struct("iIII")
MOST_BYTES = 2**20  # of events, read together
# Filesystems where another machine may write, of which this one's kernel reports nothing.
NETWORK_FILESYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "virtiofs")


class FileWatcher:
    """The files that come into a folder, through inotify.

    `is_gone`: the folder has been replaced, or its disk unmounted. `missed`: some events were not reported.

    Raises:
        OSError: the folder cannot be watched, such as when too many are watched already.
    """

    def __init__(self, path: Path) -> None:
        self.is_gone = self.missed = False
        libc = ctypes.CDLL(None, use_errno=True)
        if not hasattr(libc, "inotify_init1"):
            raise OSError(errno.ENOSYS, "this system has none")
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        mask = CLOSED | MOVED_IN | CREATED | GONE | ONLY_FOLDERS
        if self._descriptor < 0 or libc.inotify_add_watch(self._descriptor, os.fsencode(path), mask) < 0:
            number = ctypes.get_errno()
            self.close()
            limits = {errno.ENOSPC: "max_user_watches", errno.EMFILE: "max_user_instances"}
            why = f"fs.inotify.{limits[number]} is used up" if number in limits else os.strerror(number)
            raise OSError(number, why)
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLIN)

    def wait(self, stop: threading.Event, seconds: float) -> dict[str, bool]:
        """Names of new files, once there are any: True for one that is closed, or moved in, False for one that is
        created alone. Empty after `seconds`, or soon after `stop`.
        """
        end = time.monotonic() + seconds
        while not stop.is_set() and (left := end - time.monotonic()) > 0:
            if self._poll.poll(1000 * min(left, STOP_POLL_S)):
                time.sleep(SETTLE_S)
                return self._read()
        return {}

    def _read(self) -> dict[str, bool]:
        names: dict[str, bool] = {}
        try:
            data = os.read(self._descriptor, MOST_BYTES)
        except BlockingIOError:
            return names
        at = 0
        while at < len(data):
            _, mask, _, n_bytes = EVENT.unpack_from(data, at)
            at += EVENT.size + n_bytes
            name = os.fsdecode(data[at - n_bytes : at].rstrip(b"\0"))
            if name:
                names[name] = names.get(name, False) or not mask & CREATED
            self.is_gone = self.is_gone or bool(mask & GONE)
            self.missed = self.missed or bool(mask & OVERFLOW)
        return names

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def is_open_to_write(descriptor: int) -> bool | None:
    """True while a program has that file open to write it; None where the kernel does not say: another user's file.

    A lease for reading is granted where nobody writes, and given back at once.
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)  # for a writer that comes meanwhile; SIGIO would end us
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except (OSError, AttributeError):
        return None
    return False


def why_not_watched(path: Path) -> str:
    """Why the kernel may not report every new file in that folder; "" where it does."""
    kind = filesystem_of(path)
    if kind in NETWORK_FILESYSTEMS or kind == "vboxsf" or kind.startswith("fuse."):
        return f"{path} is on {kind}, where other machines may write"
    return ""


def filesystem_of(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The kind of filesystem a folder is on, as Linux names it; "" where that is not known."""
    found = (-1, "")
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        where = path.resolve()
    except (OSError, RuntimeError):  # Python 3.11 and 3.12 raise the latter for a loop of links
        return ""
    for line in lines:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        at = Path(fields[1].replace("\\040", " "))
        if where.is_relative_to(at) and len(at.parts) >= found[0]:  # the last one mounted there is in use
            found = (len(at.parts), fields[2])
    return found[1]
