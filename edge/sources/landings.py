"""Being told of files that are whole, through `watchdog`: closed after writing, or moved in."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

from coe.cascade.errors import RuntimeMissing
from coe.models.base import import_runtime

POLL_S = 0.2
SETTLE_S = 0.015  # what copies a file often sets its time right after it closed it
KINDS = ("FileClosedEvent", "FileMovedEvent")
# Filesystems where another machine may write, of which this one's system does not tell.
ELSEWHERE = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "virtiofs", "vboxsf")


class Landings:
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
            for _ in KINDS:
                self._observers.append(observers.InotifyObserver(generate_full_events=True))  # of moves from elsewhere
                self._observers[-1].start()
            self.look_again()
        except BaseException:
            self.close()
            raise

    def look_again(self) -> None:
        """Watch the folder that is there now, should the one watched before be gone."""
        identity = _identity(self.path)
        emitters = [
            emitter for observer in self._observers for emitter in observer.emitters
        ]  # they end with the folder
        is_watched = len(emitters) == len(KINDS) and all(emitter.is_alive() for emitter in emitters)
        if identity is not None and identity == self._identity and is_watched:
            return
        self._identity = identity
        for observer, kind in zip(self._observers, KINDS, strict=True):
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
                self._turn.wait(min(left, POLL_S))
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

    def __init__(self, landings: Landings) -> None:
        self._landings = landings

    def dispatch(self, event: Any) -> None:
        self._landings.dispatch(event)


def cannot_be_told(path: Path) -> str:
    """Why the system may not tell of every new file in that folder; "" where it does."""
    kind = filesystem_of(path)
    if kind in ELSEWHERE or kind.startswith("fuse."):
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
