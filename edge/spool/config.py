"""Where the agent keeps what must survive it, and how much of it, as configured."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from coe.config import Fields
from coe.config.settings import REQUIRED, read_settings, setting

ENDS = ("oldest", "newest")
WINDOW = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


@dataclass(frozen=True)
class SpoolConfig:
    """Where examples wait that no server answered in time, and how many of them. Its log and lock stand beside it."""

    path: Path = setting(REQUIRED, "SQLite file.", usual="`spool.db` in `state`", example="/data/spool.db")
    max_bytes: int = setting(
        256, "Largest size of the file and its log together, in 10^6 bytes.", unit="MB", low=1, high=1_000_000
    )
    max_count: int = setting(100_000, "Most examples in it.", low=1, high=100_000_000)
    max_age_s: float = setting(168, "Oldest example, in hours that an agent ran.", unit="h", low=0.001, high=100_000)
    drop: str = setting("oldest", "What is dropped when it is full; newest: the example is not kept.", choices=ENDS)
    order: str = setting("oldest", "Which is sent first, of those tried least often.", choices=ENDS)
    link_share: float = setting(0.2, "Largest share of the time that the backlog's calls take.", low=0.001, high=1)
    sync: str = setting(
        "full", "What a kept example survives: full, a power cut too; normal, a crash.", choices=("full", "normal")
    )
    send_between: tuple[tuple[int, int], ...] = setting(
        (),
        "Times of the day (local) in which it is sent.",
        usual="always",
        example='["22:00-06:00"]',
    )

    def sends_at(self, now: time.struct_time) -> bool:
        """True if kept examples may be sent at this local time."""
        at = now.tm_hour * 60 + now.tm_min
        return not self.send_between or any(
            start <= at < end if start < end else (at >= start or at < end) for start, end in self.send_between
        )

    @property
    def windows(self) -> list[str]:
        """`send_between` as it is written."""
        return [f"{a // 60:02}:{a % 60:02}-{b // 60:02}:{b % 60:02}" for a, b in self.send_between]


def read_spool(fields: Fields, state: Path, folder: Path) -> SpoolConfig | None:
    """`spool:` of an agent's whole config; None where `when_unavailable` is not `spool`.

    The file is in `state` where no path is set; relative paths start at `folder`.
    """
    is_on = fields.content.get("when_unavailable") == "spool"
    if fields.has("spool") and not is_on:
        fields.warn("spool", "has no effect (write `when_unavailable: spool`)")
    entry = fields.section("spool", {})
    path = entry.path("path", folder, None) or state / "spool.db"
    config = read_settings(SpoolConfig, entry, path=path, send_between=_read_windows(entry))
    return config if is_on else None


def _read_windows(entry: Fields) -> tuple[tuple[int, int], ...]:
    """`send_between: ["22:00-06:00"]` as minutes of the day: start and end; one that ends before it starts has
    midnight in it."""
    windows = []
    for number, text in enumerate(entry.texts("send_between", ())):
        if (found := WINDOW.fullmatch(text)) is None or found.group(1, 2) == found.group(3, 4):
            entry.wrong(f"send_between[{number}]", f'expected start-end, got "{text}" (write "22:00-06:00")')
            continue
        a, b, c, d = map(int, found.groups())
        windows.append((a * 60 + b, c * 60 + d))
    return tuple(windows)


def read_state(fields: Fields, path: Path) -> Path:
    """The folder for what must survive the agent; it need not be there yet.

    `state:` of the config at `path`; else the first of systemd's STATE_DIRECTORY; else one named after the config,
    under XDG_STATE_HOME or ~/.local/state.
    """
    found = fields.path("state", path.parent, None) or os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(found) if found else Path(home).expanduser() / "coe-edge" / path.stem
