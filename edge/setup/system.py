"""Facts of this machine: Python, board, memory, temperature, clock, systemd."""

from __future__ import annotations

import ctypes
import platform
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

COMMAND_S = 5.0


@dataclass(frozen=True)
class System:
    """A machine and the Python that runs on it.

    Args:
        root: folder of its /proc, /sys, /etc and /run.
        bits: address size of the running program, which a 64-bit kernel does not tell.
    """

    root: Path = Path("/")
    python: tuple[int, ...] = sys.version_info[:3]
    bits: int = struct.calcsize("P") * 8
    machine: str = field(default_factory=platform.machine)
    now: float = field(default_factory=time.time)

    def read(self, path: str) -> str:
        """The text of a small file; "" if there is none."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace").strip("\0\n ")
        except OSError:
            return ""

    @property
    def model(self) -> str:
        """The board's name for itself, such as "Raspberry Pi 4 Model B Rev 1.4"; "" if it has none."""
        return self.read("proc/device-tree/model")

    def memory_bytes(self) -> dict[str, int]:
        """Bytes by the keys of /proc/meminfo: MemTotal, MemAvailable, SwapTotal, ..."""
        found = {}
        for line in self.read("proc/meminfo").splitlines():
            key, _, rest = line.partition(":")
            words = rest.split()
            if words and words[0].isdigit():
                found[key] = int(words[0]) * 1024
        return found

    def temperatures(self) -> list[float]:
        """Degrees Celsius of each thermal zone."""
        zones = sorted((self.root / "sys/class/thermal").glob("thermal_zone*/temp"))
        texts = [self.read(str(zone.relative_to(self.root))) for zone in zones]
        return [int(text) / 1000 for text in texts if text.lstrip("-").isdigit()]

    def runs_systemd(self) -> bool:
        return (self.root / "run/systemd/system").is_dir()


def output_of(*command: str) -> str:
    """What a command prints; "" if it is not installed, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def format_size(n_bytes: float) -> str:
    """Bytes as text: "512 MB", "3.9 GB"."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


def is_clock_synchronised() -> bool | None:
    """True if the kernel says that its clock is synchronised (adjtimex(2)); None if it cannot be asked."""
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(
            ctypes.create_string_buffer(512)
        )  # modes 0: reads the state, changes nothing
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != 5  # TIME_ERROR: not synchronised
