"""Two network namespaces, joined by a switch: a network of the test's own, whose cables can be pulled."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SUBNET = "10.213.77"


def why_not() -> str | None:
    """Why this machine cannot have such a network; None: it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the program `ip` (iproute2)"
    name = f"coe-try-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if tried.returncode == 0:
        tried = subprocess.run(
            ["ip", "-n", name, "link", "add", "switch0", "type", "bridge"], capture_output=True, text=True
        )
        subprocess.run(["ip", "netns", "del", name], check=True)
    return None if tried.returncode == 0 else f"no network namespaces here: {tried.stderr.strip()}"


class Host:
    """One namespace with an address, and its cable to the switch."""

    def __init__(self, network: str, number: int) -> None:
        self.name = f"{network}-{number}"
        self.address = f"{SUBNET}.{number}"
        self._switch = f"{network}-0"
        self._port = f"port{number}"
        _ip("netns", "add", self.name)
        _ip("link", "add", "cable", "netns", self.name, "type", "veth", "peer", self._port, "netns", self._switch)
        _ip("-n", self._switch, "link", "set", self._port, "master", "switch0", "up")
        _ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "cable")
        _ip("-n", self.name, "link", "set", "cable", "up")
        _ip("-n", self.name, "link", "set", "lo", "up")

    def cut_at_the_switch(self) -> None:
        """Packets to it vanish; only this host sees that its cable is dead."""
        _ip("-n", self._switch, "link", "set", self._port, "down")

    def mend_at_the_switch(self) -> None:
        _ip("-n", self._switch, "link", "set", self._port, "up")

    def take_down(self) -> None:
        """Its own interface, as a device that lost its network does."""
        _ip("-n", self.name, "link", "set", "cable", "down")

    def bring_up(self) -> None:
        _ip("-n", self.name, "link", "set", "cable", "up")

    @contextmanager
    def running(self, command: Sequence[object], out: Path) -> Iterator[subprocess.Popen[bytes]]:
        """A program on this host while the block runs; its words go to `out`."""
        with out.open("wb") as words:
            inside = ["ip", "netns", "exec", self.name, *map(str, command)]
            process = subprocess.Popen(inside, stdin=subprocess.DEVNULL, stdout=words, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.kill()  # `ip netns exec` becomes the program
            process.wait(20)


@contextmanager
def network(n_hosts: int) -> Iterator[list[Host]]:
    """Hosts that reach each other and nobody else."""
    name = f"coe-{os.getpid()}"
    _ip("netns", "add", f"{name}-0")
    try:
        _ip("-n", f"{name}-0", "link", "add", "switch0", "type", "bridge")
        _ip("-n", f"{name}-0", "link", "set", "switch0", "up")
        yield [Host(name, number) for number in range(1, n_hosts + 1)]
    finally:
        for number in range(n_hosts + 1):
            subprocess.run(["ip", "netns", "del", f"{name}-{number}"], capture_output=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
