"""The agent's config: a cascade, where examples come from, where decisions go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from coe import zoo
from coe.assembly import CascadeConfig, read_cascade
from coe.settings import Fields, Report, read_yaml


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


@dataclass(frozen=True)
class SinkConfig:
    """JSON lines to `path`; None: standard output."""

    path: Path | None = None


@dataclass(frozen=True)
class AgentConfig:
    """Everything `coe-edge` needs to know.

    Args:
        max_in_flight: deferred examples under way at once; at that many, the source waits; 0: one at a time.
        ordered: write decisions in the source's order.
        deadline_s: of one example in all; inf: each call's own deadline alone counts.
    """

    cascade: CascadeConfig
    source: SourceConfig
    sink: SinkConfig
    max_in_flight: int
    ordered: bool
    deadline_s: float
    warnings: tuple[str, ...]


def default_config() -> Path:
    """The bundled digits: three small models, and a cloud on this machine."""
    return zoo.find("digits/edge.yaml")


def read_config(path: Path) -> AgentConfig:
    """The agent's config.

    Raises:
        ConfigError: every setting that is wrong, at once.
    """
    report = Report(str(path))
    fields = Fields(read_yaml(path), report)
    cascade = read_cascade(fields, path.parent)
    source = _read_source(fields.section("source", {"kind": "stdin"}), path.parent)
    sink = _read_sink(fields.section("sink", {}), path.parent)
    deadline_ms = fields.number("deadline_ms", None, 1, 3_600_000)
    config = AgentConfig(
        cascade=cascade,
        source=source,
        sink=sink,
        max_in_flight=fields.integer("max_in_flight", 16, 0, 1024),
        ordered=fields.flag("ordered", False),
        deadline_s=float("inf") if deadline_ms is None else deadline_ms / 1000,
        warnings=tuple(report.warnings),
    )
    fields.finish()
    report.check()
    return config


def _read_source(fields: Fields, folder: Path) -> SourceConfig:
    kind = fields.choice("kind", ("digits", "folder", "stdin"))
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


def _read_sink(fields: Fields, folder: Path) -> SinkConfig:
    fields.choice("kind", ("jsonlines",), "jsonlines")
    path = fields.text("path", "-")
    fields.finish()
    return SinkConfig(None if path == "-" else folder / Path(path).expanduser())
