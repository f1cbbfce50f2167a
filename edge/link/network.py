"""What the kernel tells of this machine's own network: a link that is down may be back with it."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress

LINK, IPV4_ADDRESS, IPV4_ROUTE, IPV6_ADDRESS, IPV6_ROUTE = 0x1, 0x10, 0x40, 0x100, 0x400  # rtnetlink(7), RTMGRP_*
GROUPS = LINK | IPV4_ADDRESS | IPV4_ROUTE | IPV6_ADDRESS | IPV6_ROUTE
BLOCK = 65536


class NetworkChanges:
    """Changes of this machine's interfaces, addresses and routes; none are ever seen where the system is not Linux."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        with suppress(OSError, AttributeError):  # a sandbox that forbids it, another system
            opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
            self._socket = opened
            opened.bind((0, GROUPS))

    def has_any(self) -> bool:
        """Whether there was one since this was asked before; waits for nothing."""
        found = False
        while self._socket is not None:
            try:
                self._socket.recv(BLOCK)
            except OSError as error:
                return found or error.errno == errno.ENOBUFS  # more of them than fit
            found = True
        return found

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
