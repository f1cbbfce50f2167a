"""A service manager's end of the notification socket, as systemd has it."""

from __future__ import annotations

import socket
import time
from pathlib import Path

BOUND_S = 90.0


class Manager:
    """A real Unix datagram socket in a `with` block; `address` is what NOTIFY_SOCKET would hold."""

    def __init__(self, folder: Path, *, abstract: bool = False) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        path = str(folder / "notify")
        self.address = f"@{path}" if abstract else path
        self._socket.bind(f"\0{path}" if abstract else path)
        self.heard: list[dict[str, str]] = []
        self.heard_at: list[float] = []

    def listen(self, seconds: float) -> None:
        """Take in what comes for so long."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._take(left)

    def until(self, key: str, value: str = "1", more: int = 1) -> dict[str, str]:
        """The message that is the next but `more` - 1 with that assignment."""
        end = time.monotonic() + BOUND_S
        at = len(self.heard)
        while True:
            found = [message for message in self.heard[at:] if message.get(key) == value]
            if len(found) >= more:
                return found[more - 1]
            assert time.monotonic() < end, f"no {key}={value} among {self.heard}"
            self._take(1.0)

    def said(self, key: str) -> list[str]:
        return [message[key] for message in self.heard if key in message]

    def _take(self, seconds: float) -> None:
        self._socket.settimeout(seconds)
        try:
            data = self._socket.recv(65536)
        except TimeoutError:
            return
        self.heard.append(dict(line.split("=", 1) for line in data.decode().split("\n")))
        self.heard_at.append(time.monotonic())

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
