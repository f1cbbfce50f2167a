"""The agent's config: a cascade, where examples come from, where decisions go, and how it lives with its link."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from coe import zoo
from coe.config import Fields, Report, read_yaml
from coe.config.cascade import CascadeConfig, RemoteTierConfig, read_cascade

from .field.config import FieldConfig, read_field
from .link import LinkConfig, read_link
from .observe.config import ObserveConfig, read_observe
from .sinks import SinkConfig, read_sinks
from .sources import SourceConfig, read_sources
from .spool import SpoolConfig, read_spool, read_state

FALLBACKS = ("answer-local", "spool", "fail")


@dataclass(frozen=True)
class AgentConfig:
    """Everything `coe-edge` needs to know.

    Args:
        sinks: at least one.
        max_in_flight: deferred examples under way at once; at that many, the source waits; 0: one at a time.
        ordered: write decisions in the source's order.
        deadline_s: of one example in all; inf: each call's own deadline alone counts.
        grace_s: what examples that wait for a server have to end, when the agent is stopped.
        link: how calls to other machines are watched over.
        field: what may not leave, and how the agent watches itself.
        watch: where the agent can be watched; None: nowhere.
        state: folder for what survives a restart; it need not be there yet.
        spool: where examples that no server answers in time wait for a later answer; None: they do not.
        path: the file it was read from.
    """

    cascade: CascadeConfig
    source: SourceConfig
    sinks: tuple[SinkConfig, ...]
    max_in_flight: int
    ordered: bool
    deadline_s: float
    grace_s: float
    link: LinkConfig
    field: FieldConfig
    watch: ObserveConfig | None
    state: Path
    spool: SpoolConfig | None
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
    n_tiers = sum(tier.n_tiers if isinstance(tier, RemoteTierConfig) else 1 for tier in cascade.tiers)
    source = read_sources(fields, path.parent, cascade.task, n_tiers)
    sinks = read_sinks(fields, path.parent)
    deadline_ms = fields.number("deadline_ms", None, 1, 3_600_000)
    state = read_state(fields, path)
    config = AgentConfig(
        cascade=cascade,
        source=source,
        sinks=sinks,
        max_in_flight=fields.integer("max_in_flight", 16, 0, 1024),
        ordered=fields.flag("ordered", False),
        deadline_s=float("inf") if deadline_ms is None else deadline_ms / 1000,
        grace_s=fields.number("grace_s", 10.0, 0, 3600),
        link=read_link(fields.section("link", {})),
        field=read_field(
            fields,
            path.parent,
            cascade.task,
            votes_first=not isinstance(next(iter(cascade.tiers), None), RemoteTierConfig),
        ),
        watch=None if fields.raw("watch", None) is None else read_observe(fields.section("watch")),
        state=state,
        spool=read_spool(fields, state, path.parent),
        warnings=tuple(report.warnings),
        path=path,
    )
    fields.finish()
    report.check()
    return config
