"""The machine that is looked at: this one."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

COMMAND_S = 5.0


@dataclass(frozen=True)
class System:
    """Facts of a machine and of the Python at work on it.

    Args:
        root: where its files are: /proc, /sys, /etc, /run.
        bits: of an address of its programs; a 64-bit kernel may well run 32-bit programs.
    """

    root: Path = Path("/")
    python: tuple[int, ...] = sys.version_info[:3]
    bits: int = struct.calcsize("P") * 8
    machine: str = field(default_factory=platform.machine)
    now: float = field(default_factory=time.time)

    def read(self, path: str) -> str:
        """A small file's text; "" where there is none."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace").strip("\0\n ")
        except OSError:
            return ""

    @property
    def model(self) -> str:
        """As a board says it: "Raspberry Pi 4 Model B Rev 1.4"; "" where none does."""
        return self.read("proc/device-tree/model")

    def memory_bytes(self) -> dict[str, int]:
        """Of /proc/meminfo: MemTotal, MemAvailable, SwapTotal, ..."""
        found = {}
        for line in self.read("proc/meminfo").splitlines():
            key, _, rest = line.partition(":")
            words = rest.split()
            if words and words[0].isdigit():
                found[key] = int(words[0]) * 1024
        return found

    def temperatures(self) -> list[float]:
        """Of its thermal zones, in degrees Celsius."""
        zones = sorted((self.root / "sys/class/thermal").glob("thermal_zone*/temp"))
        texts = [self.read(str(zone.relative_to(self.root))) for zone in zones]
        return [int(text) / 1000 for text in texts if text.lstrip("-").isdigit()]

    def runs_systemd(self) -> bool:
        return (self.root / "run/systemd/system").is_dir()


def told_by(*command: str) -> str | None:
    """What a command prints; None where it is not there, fails or hangs."""
    if shutil.which(command[0]) is None:
        return None
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return told.stdout.strip() if told.returncode == 0 else None


def size(n_bytes: float) -> str:
    """ "512 MB", "3.9 GB"."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0))


def is_clock_synchronised() -> bool | None:
    """As the kernel says (adjtimex(2)); None where it cannot be asked."""
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(
            ctypes.create_string_buffer(512)
        )  # asks, and changes nothing
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != 5  # TIME_ERROR: not synchronised
