"""Changes of this machine's network, as the kernel tells them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from edge.linked_tier import NetworkChanges

# In a network namespace of its own, which ends with the program: its loopback is taken up.
TAKES_UP = """
import subprocess, time
from edge.linked_tier import NetworkChanges
network = NetworkChanges()
before = network.has_any()
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
time.sleep(0.1)
print(before, network.has_any(), network.has_any())
network.close()
print(network.has_any())
"""


def test_an_interface_that_comes_up_is_seen_once():
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("a network namespace needs Linux and root")
    told = subprocess.run(["unshare", "-n", sys.executable, "-c", TAKES_UP], capture_output=True, text=True, timeout=90)
    if "unshare" in told.stderr:
        pytest.skip(f"no network namespaces here: {told.stderr.strip()}")
    assert told.stdout.split() == ["False", "True", "False", "False"], told.stderr


def test_where_the_system_tells_nothing_nothing_ever_changes(monkeypatch):
    def forbidden(*_: object) -> socket.socket:
        raise PermissionError

    monkeypatch.setattr(socket, "socket", forbidden)
    network = NetworkChanges()
    assert not network.has_any()
    network.close()
    monkeypatch.delattr(socket, "AF_NETLINK", raising=False)
    assert not NetworkChanges().has_any()
