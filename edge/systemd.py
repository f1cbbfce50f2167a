"""systemd notifications (sd_notify) and its watchdog."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping

from coe.config import format_seconds


class SystemdNotifier:
    """Sends notifications as datagrams to a Unix socket; errors are ignored.

    Args:
        address: path of the socket, or "@" and a name in the abstract name space; "": nothing is sent.
        watchdog_s: longest time between two signs of life that the manager accepts; None: it expects none.
    """

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        self.address = address
        self.watchdog_s = watchdog_s

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> SystemdNotifier:
        """From the environment: NOTIFY_SOCKET, and WATCHDOG_USEC where it is meant for this process."""
        address = environment.get("NOTIFY_SOCKET", "")
        if address[:1] not in ("/", "@"):  # none, or a vsock of a container's machine
            return cls()
        usec = environment.get("WATCHDOG_USEC", "")
        mine = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        return cls(address, int(usec) / 1e6 if mine and usec.isdecimal() and int(usec) > 0 else None)

    def ready(self, status: str = "") -> None:
        """The agent takes examples; also after `reloading`."""
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
        if not self.address:
            return
        message = "\n".join(assignment.replace("\n", " ") for assignment in assignments if assignment)
        address = f"\0{self.address[1:]}" if self.address.startswith("@") else self.address
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender,
            contextlib.suppress(OSError),
        ):
            sender.setblocking(False)  # a manager that does not read must not delay a decision
            sender.sendto(message.encode(), address)


STATUS_EVERY_S = 5.0


class Watchdog:
    """Sends a status line, and that the agent is alive, from a thread of its own while the `with` block runs.

    If one example takes longer than half of `watchdog_s`, a member hangs: no more signs of life are sent then, and the
    manager restarts the service.

    Args:
        line: returns the status line.
        busy_since: returns the `time.monotonic()` second at which the present work on this device began; None: idle.
    """

    def __init__(
        self, notifier: SystemdNotifier, line: Callable[[], str], busy_since: Callable[[], float | None]
    ) -> None:
        self._notifier = notifier
        self._line = line
        self._busy_since = busy_since
        watchdog_s = notifier.watchdog_s
        self._limit_s = None if watchdog_s is None else watchdog_s / 2
        self._every_s = STATUS_EVERY_S if watchdog_s is None else min(STATUS_EVERY_S, watchdog_s / 5)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="coe-watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self._notifier.address:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._notifier.address:
            self._thread.join()

    def _run(self) -> None:
        while True:
            since = self._busy_since()  # read once: the agent changes it
            took_s = 0.0 if since is None else time.monotonic() - since
            if self._limit_s is not None and took_s > self._limit_s:
                self._notifier.status(f"hangs: busy with one example for {format_seconds(took_s)}; {self._line()}")
            else:
                self._notifier.status(self._line(), is_alive=self._limit_s is not None)
            if self._ended.wait(self._every_s):
                return
