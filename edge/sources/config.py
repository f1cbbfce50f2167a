"""Where examples come from, as configured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from coe.settings import Fields

KINDS = ("digits", "folder", "stdin")


@dataclass(frozen=True)
class SourceConfig:
    """kind "digits" (bundled), "folder" (`path`, `watch`) or "stdin" (JSON lines).

    `interval_s`: least time between two examples.
    """

    kind: str
    path: Path | None = None
    watch: bool = False
    repeat: int = 1
    interval_s: float = 0.0


def read_source(fields: Fields, folder: Path) -> SourceConfig:
    """`source:` of an agent's config.

    Args:
        folder: relative paths start here.
    """
    kind = fields.choice("kind", KINDS)
    path = folder / Path(fields.text("path")).expanduser() if kind == "folder" else None
    source = SourceConfig(
        kind=kind,
        path=path,
        watch=fields.flag("watch", False),
        repeat=fields.integer("repeat", 1, 1) if kind == "digits" else 1,
        interval_s=fields.number("interval_ms", 0.0, high=86_400_000) / 1000,
    )
    fields.finish()
    return source
