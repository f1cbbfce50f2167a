"""What systemd is told of a service, over the socket that it names (sd_notify(3)); nothing where it names none."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping


class Notifier:
    """Datagrams to a Unix socket. A service manager that has gone away is no matter of ours.

    Args:
        address: path of the socket, or "@" and a name in the abstract name space; "": nobody listens.
        watchdog_s: within which the manager wants to hear that we are alive, again and again; None: it does not ask.
    """

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        self.address = address
        self.watchdog_s = watchdog_s

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> Notifier:
        """As the manager's environment says: NOTIFY_SOCKET, and WATCHDOG_USEC where it is meant for this process."""
        address = environment.get("NOTIFY_SOCKET", "")
        if address[:1] not in ("/", "@"):  # nothing, or a kind of socket that a container's machine would have
            return cls()
        usec = environment.get("WATCHDOG_USEC", "")
        mine = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        return cls(address, int(usec) / 1e6 if mine and usec.isdecimal() and int(usec) > 0 else None)

    @property
    def is_heard(self) -> bool:
        """Whether there is anybody to tell."""
        return self.address != ""

    def ready(self, status: str = "") -> None:
        """The first example may come; also after `reloading`."""
        self._send("READY=1", status and f"STATUS={status}")

    def reloading(self) -> None:
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now_us}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def status(self, line: str, *, is_alive: bool = False) -> None:
        """A line for `systemctl status`; `is_alive` also satisfies the watchdog."""
        self._send("WATCHDOG=1" if is_alive else "", f"STATUS={line}")

    def _send(self, *assignments: str) -> None:
        if not self.is_heard:
            return
        message = "\n".join(assignment.replace("\n", " ") for assignment in assignments if assignment)
        address = f"\0{self.address[1:]}" if self.address.startswith("@") else self.address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
            line.setblocking(False)  # a manager that does not read must not hold up a decision
            try:
                line.sendto(message.encode(), address)
            except OSError:
                return
