"""The agent's config: a cascade, where examples come from, where decisions go, and how it lives with its link."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from coe import zoo
from coe.assembly import CascadeConfig, read_cascade
from coe.settings import Fields, Report, read_yaml

from .sinks import SinkConfig, read_sinks
from .sources import SourceConfig, read_source

FALLBACKS = ("answer-local", "spool", "fail")


@dataclass(frozen=True)
class AgentConfig:
    """Everything `coe-edge` needs to know.

    Args:
        sinks: at least one.
        max_in_flight: deferred examples under way at once; at that many, the source waits; 0: one at a time.
        ordered: write decisions in the source's order.
        deadline_s: of one example in all; inf: each call's own deadline alone counts.
        path: the file it was read from.
    """

    cascade: CascadeConfig
    source: SourceConfig
    sinks: tuple[SinkConfig, ...]
    max_in_flight: int
    ordered: bool
    deadline_s: float
    warnings: tuple[str, ...]
    path: Path


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
    cascade = read_cascade(fields, path.parent, fallbacks=FALLBACKS)
    source = read_source(fields.section("source", {"kind": "stdin"}), path.parent)
    sinks = read_sinks(fields, path.parent)
    deadline_ms = fields.number("deadline_ms", None, 1, 3_600_000)
    config = AgentConfig(
        cascade=cascade,
        source=source,
        sinks=sinks,
        max_in_flight=fields.integer("max_in_flight", 16, 0, 1024),
        ordered=fields.flag("ordered", False),
        deadline_s=float("inf") if deadline_ms is None else deadline_ms / 1000,
        warnings=tuple(report.warnings),
        path=path,
    )
    fields.finish()
    report.check()
    return config
