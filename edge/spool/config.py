"""Where the agent keeps what must survive it, and how much of it, as configured."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from coe.config import Fields
from coe.config.settings import REQUIRED, read_settings, setting

ENDS = ("oldest", "newest")
WINDOW = re.compile(r"(?P<start>{0})-(?!(?P=start)){0}".format(r"(?:[01]\d|2[0-3]):[0-5]\d"), re.ASCII)


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
    wait_s: float = setting(10, "Longest time that a run with `--once` waits for it at its end.", unit="s", high=86_400)
    send_between: tuple[str, ...] = setting(
        (), "Times of the day (local) in which it is sent.", usual="always", example='["22:00-06:00"]'
    )

    def sends_at(self, time_of_day: str) -> bool:
        """True if kept examples may be sent at this time, such as "07:30"."""
        windows = [window.split("-") for window in self.send_between]
        return not windows or any(
            start <= time_of_day < end if start < end else not end <= time_of_day < start for start, end in windows
        )


def read_spool(fields: Fields, state: Path, folder: Path) -> SpoolConfig | None:
    """`spool:` of an agent's whole config; None where `when_unavailable` is not `spool`.

    The file is in `state` where no path is set; relative paths start at `folder`.
    """
    is_on = fields.content.get("when_unavailable") == "spool"
    if fields.has("spool") and not is_on:
        fields.warn("spool", "has no effect (write `when_unavailable: spool`)")
    entry = fields.section("spool", {})
    config = read_settings(SpoolConfig, entry, path=entry.path("path", folder, None) or state / "spool.db")
    for number, window in enumerate(config.send_between):
        if WINDOW.fullmatch(window) is None:
            entry.wrong(f"send_between[{number}]", f'expected start-end, got "{window}" (write "22:00-06:00")')
    return config if is_on else None


def read_state(fields: Fields, path: Path) -> Path:
    """The folder for what must survive the agent; it need not be there yet.

    `state:` of the config at `path`; else the first of systemd's STATE_DIRECTORY; else one named after the config,
    under XDG_STATE_HOME or ~/.local/state.
    """
    found = fields.path("state", path.parent, None) or os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(found) if found else Path(home).expanduser() / "coe-edge" / path.stem
