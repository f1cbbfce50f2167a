"""Where the agent keeps what must survive it, and how much of it, as configured."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from coe.config import Fields

DROPS = ("oldest", "newest")
SYNCS = ("full", "normal")


@dataclass(frozen=True)
class SpoolConfig:
    """`spool:` of an agent's config.

    Args:
        path: the SQLite file; its log (`-wal`) and its lock (`.lock`) stand beside it.
        max_bytes: of the file and its log together (`max_mb`, millions of bytes).
        max_count: of examples in it.
        max_age_s: of an example in it, in seconds that an agent ran (`max_age_h`).
        drop: "oldest": an example that would be one too many takes the oldest's place; "newest": it is not kept.
        order: which is asked about first, of those asked about least often.
        link_share: of the time, at most, the backlog's calls are under way.
        sync: "full": what is kept survives a power cut, too, for a flush of the disk each; "normal": a crash alone.
    """

    path: Path
    max_bytes: int = 256_000_000
    max_count: int = 100_000
    max_age_s: float = 168 * 3600.0
    drop: str = "oldest"
    order: str = "oldest"
    link_share: float = 0.2
    sync: str = "full"


def read_spool(fields: Fields, state: Path, folder: Path) -> SpoolConfig | None:
    """`spool:` of an agent's config; None where `when_unavailable` is not `spool`.

    Args:
        fields: of the whole file.
        state: the file is in there where no path is set.
        folder: relative paths start here.
    """
    is_on = fields.content.get("when_unavailable") == "spool"
    if fields.has("spool") and not is_on:
        fields.warn("spool", "has no effect (write `when_unavailable: spool`)")
    entry = fields.section("spool", {})
    path = entry.text("path", "")
    config = SpoolConfig(
        path=folder / Path(path).expanduser() if path else state / "spool.db",
        max_bytes=int(entry.number("max_mb", 256, 1, 1_000_000) * 1e6),
        max_count=entry.integer("max_count", 100_000, 1, 100_000_000),
        max_age_s=entry.number("max_age_h", 168, 0.001, 100_000) * 3600,
        drop=entry.choice("drop", DROPS, "oldest"),
        order=entry.choice("order", DROPS, "oldest"),
        link_share=entry.number("link_share", 0.2, 0.001, 1),
        sync=entry.choice("sync", SYNCS, "full"),
    )
    entry.finish()
    return config if is_on else None


def read_state(fields: Fields, path: Path) -> Path:
    """The folder for what must survive the agent; it need not be there yet.

    `state:` of the config; else the first of systemd's STATE_DIRECTORY; else one named after the config, under
    XDG_STATE_HOME or ~/.local/state.

    Args:
        fields: of the whole file; path: it.
    """
    told = fields.text("state", "")
    if told:
        return path.parent / Path(told).expanduser()
    given = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given)
    home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(home).expanduser() / "coe-edge" / path.stem
