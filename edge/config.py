"""The agent's config: a cascade, where examples come from, where decisions go, and how it lives with its link."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from coe import zoo
from coe.config import Fields, Report, read_yaml
from coe.config.cascade import CascadeConfig, RemoteTierConfig, read_cascade
from coe.config.settings import REQUIRED, read_settings, setting

from .field.config import FieldConfig, read_field
from .link import LinkConfig, read_link
from .observe.config import ObserveConfig, read_observe
from .sinks import SinkConfig, read_sinks
from .sources import SourceConfig, read_sources
from .spool import SpoolConfig, read_spool, read_state

FALLBACKS = ("answer-local", "spool", "fail")


@dataclass(frozen=True)
class AgentConfig:
    """Everything `coe-edge` needs to know. `path`: the file it was read from; `state` need not be there yet."""

    cascade: CascadeConfig
    source: SourceConfig
    sinks: tuple[SinkConfig, ...]
    field: FieldConfig
    warnings: tuple[str, ...]
    path: Path
    state: Path = setting(
        REQUIRED,
        "Folder for what must survive a restart.",
        usual="systemd's, else in `~/.local/state`",
        example="state",
    )
    deadline_s: float = setting(
        None,
        "Longest time for one example.",
        usual="each call's own alone",
        unit="ms",
        low=1,
        high=3_600_000,
        example="500",
    )
    max_in_flight: int = setting(
        16, "Deferred examples under way before the source waits; 0: one at a time.", low=0, high=1024
    )
    ordered: bool = setting(False, "Write decisions in the order of the source.")
    commit_s: float = setting(
        5, "Longest time until what was decided is committed to databases on the disk.", unit="s", high=3600
    )
    commit_count: int = setting(200, "Most decisions that are committed together; 1: each alone.", low=1, high=100_000)
    grace_s: float = setting(10, "Time for deferred examples to end when the agent stops.", unit="s", high=3600)
    link: LinkConfig = setting(LinkConfig(), "When a link counts as down, and what it may carry.", usual="as below")
    watch: ObserveConfig | None = setting(None, "Where the agent's page and metrics are.", usual="nowhere")
    spool: SpoolConfig | None = setting(None, "Where examples wait for a later answer, with `when_unavailable: spool`.")


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
    state = read_state(fields, path)
    votes_first = not isinstance(next(iter(cascade.tiers), None), RemoteTierConfig)
    config = read_settings(
        AgentConfig,
        fields,
        cascade=cascade,
        source=read_sources(fields, path.parent, cascade.task, n_tiers),
        sinks=read_sinks(fields, path.parent),
        field=read_field(fields, path.parent, cascade.task, votes_first=votes_first, tiers=cascade.tiers),
        link=read_link(fields.section("link", {})),
        watch=None if fields.raw("watch", None) is None else read_observe(fields.section("watch")),
        state=state,
        spool=read_spool(fields, state, path.parent),
        path=path,
        warnings=(),
    )
    report.check()
    return replace(config, warnings=tuple(report.warnings), deadline_s=config.deadline_s or math.inf)
