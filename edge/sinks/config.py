"""Where decisions go, as configured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from coe.settings import Fields

KINDS = ("jsonlines",)


@dataclass(frozen=True)
class SinkConfig:
    """JSON lines to `path`; None: standard output."""

    kind: str = "jsonlines"
    path: Path | None = None


def read_sinks(fields: Fields, folder: Path) -> tuple[SinkConfig, ...]:
    """`sink:` (one) or `sinks:` (a list) of an agent's config; standard output where neither is there.

    Args:
        fields: of the whole file.
        folder: relative paths start here.
    """
    if fields.has("sink") and fields.has("sinks"):
        fields.wrong("sink", "expected `sink:` or `sinks:`, got both (leave one out)")
    entries = fields.sections("sinks") if fields.has("sinks") else [fields.section("sink", {})]
    return tuple(_read_sink(entry, folder) for entry in entries)


def _read_sink(fields: Fields, folder: Path) -> SinkConfig:
    kind = fields.choice("kind", KINDS, "jsonlines")
    path = fields.text("path", "-")
    fields.finish()
    return SinkConfig(kind, None if path == "-" else folder / Path(path).expanduser())
