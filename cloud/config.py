"""The server's config file: the cascade, the server, its engine, its logs, metrics and traces.

engine:
  tiers:
    medium: {replicas: 2, num_cpus: 1}
    best: {num_gpus: 1, autoscaling: {min: 1, max: 4, target_ongoing_requests: 8}}
  door: {replicas: 1, num_cpus: 0}
  every_node: false

log: {format: plain, level: info, requests: false}
metrics: {enabled: true, page: true}
traces: {endpoint: "http://127.0.0.1:4318", service: coe-cloud, share: 1.0}
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from coe import zoo
from coe.config import Fields, Report, read_yaml
from coe.config.cascade import CascadeConfig, LocalTierConfig, read_cascade

from .limits import Limits, read_limits
from .security.config import Security
from .security.config import read as read_security
from .transports.device_page import DevicePage, read_device_page

MOST_REPLICAS = 1024


@dataclass(frozen=True)
class Autoscaling:
    """Replicas as the load asks for them: about `target_ongoing_requests` calls under way at each."""

    min: int
    max: int
    target_ongoing_requests: float


@dataclass(frozen=True)
class Placement:
    """How often a deployment runs, and what each replica takes of its host.

    Args:
        num_cpus, num_gpus: shares that Ray books for a replica; it does not hold the replica to them.
        autoscaling: takes the place of `replicas`.
    """

    replicas: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    autoscaling: Autoscaling | None = None

    @property
    def at_first(self) -> int:
        """Replicas there must be before it is ready."""
        return self.replicas if self.autoscaling is None else self.autoscaling.min

    @property
    def calls_at_once(self) -> int:
        """Calls under way that keep every replica busy: two each, or as many as must be seen for it to be scaled up."""
        scale = self.autoscaling
        return 2 * self.replicas if scale is None else scale.max * max(2, math.ceil(scale.target_ongoing_requests))


INGRESS = Placement(num_cpus=0.0)


@dataclass(frozen=True)
class EngineConfig:
    """The Ray engine's settings.

    Args:
        tiers: by tier name; a tier that is not named has the defaults.
        door: of the replicas that run Algorithm 1 and ask the tiers.
        every_node: Ray's gRPC port is opened on every node of the cluster, not on the head alone.
        start_s: longest that loading may take.
    """

    tiers: Mapping[str, Placement] = field(default_factory=dict)
    door: Placement = INGRESS
    every_node: bool = False
    start_s: float = 300.0

    def of(self, tier: str) -> Placement:
        return self.tiers.get(tier, Placement())


def read_engine(fields: Fields, tiers: Collection[str]) -> EngineConfig:
    """The section; findings go to its report.

    Args:
        tiers: names of those that have members here: only they can be placed.
    """
    placements = {}
    for name, entry in fields.entries("tiers") if fields.has("tiers") else ():
        placements[name] = _read_placement(entry, Placement())
        if name not in tiers:
            known = ", ".join(tiers) or "none"
            entry.wrong("", f'expected a tier with members here ({known}), got "{name}"')
    door = fields.section("door", {})
    config = EngineConfig(
        tiers=placements,
        door=_read_placement(door, INGRESS),
        every_node=fields.flag("every_node", False),
        start_s=fields.number("start_seconds", 300.0, 1, 86_400),
    )
    fields.finish()
    return config


def _read_placement(entry: Fields, default: Placement) -> Placement:
    if entry.has("autoscaling") and entry.has("replicas"):
        entry.wrong("replicas", "expected replicas or autoscaling, got both (leave one out)")
    placement = Placement(
        replicas=entry.integer("replicas", default.replicas, 1, MOST_REPLICAS),
        num_cpus=entry.number("num_cpus", default.num_cpus, 0, 4096),
        num_gpus=entry.number("num_gpus", default.num_gpus, 0, 64),
        autoscaling=_read_autoscaling(entry.section("autoscaling", {})) if entry.has("autoscaling") else None,
    )
    entry.finish()
    return placement


def _read_autoscaling(fields: Fields) -> Autoscaling:
    low = fields.integer("min", 1, 1, MOST_REPLICAS)
    high = fields.integer("max", max(low, 1), 1, MOST_REPLICAS)
    if high < low:
        fields.wrong("max", f"expected at least min ({low}), got {high}")
    target = fields.number("target_ongoing_requests", 2.0, 0.01, 100_000)
    fields.finish()
    return Autoscaling(low, high, target)


LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class ObserveConfig:
    """How the server is watched.

    Args:
        log_format: "plain" or "json".
        log_requests: one line for every request answered; those that failed have one in any case.
        metrics: offer them to Prometheus; page: offer the status page. Both on the HTTP port.
        traces: OTLP over HTTP goes there; "": nowhere.
        trace_share: of the traces begun here that are kept; a device's trace says itself whether it is.
    """

    log_format: str = "plain"
    log_level: str = "info"
    log_requests: bool = False
    metrics: bool = True
    page: bool = True
    traces: str = ""
    trace_service: str = "coe-cloud"
    trace_share: float = 1.0


def read_observe(fields: Fields) -> ObserveConfig:
    """The settings of a config file; findings go to its report."""
    log, metrics, traces = (fields.section(key, {}) for key in ("log", "metrics", "traces"))
    watch = ObserveConfig(
        log_format=log.choice("format", ("plain", "json"), "plain"),
        log_level=log.choice("level", LEVELS, "info"),
        log_requests=log.flag("requests", False),
        metrics=metrics.flag("enabled", True),
        page=metrics.flag("page", True),
        traces=_read_endpoint(traces),
        trace_service=traces.text("service", "coe-cloud"),
        trace_share=traces.number("share", 1.0, high=1.0),
    )
    if watch.log_requests and watch.log_level not in ("debug", "info"):
        log.warn("requests", f"requests are logged at info, which level {watch.log_level} leaves out (set level: info)")
    for section in (log, metrics, traces):
        section.finish()
    return watch


def _read_endpoint(traces: Fields) -> str:
    """Where traces go, as OTLP over HTTP wants it said; "" where they go nowhere."""
    endpoint = traces.text("endpoint", "")
    if not endpoint:
        return ""
    try:
        parts = urlsplit(endpoint)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_url = False
    if not is_url:
        traces.wrong("endpoint", f'expected a URL, got "{endpoint}" (write "http://127.0.0.1:4318")')
        return ""
    return endpoint if parts.path.strip("/") else f"{endpoint.rstrip('/')}/v1/traces"


GRPC_PORT = 8001  # 8000 is kept for HTTP, as the ecosystem's servers do


@dataclass(frozen=True)
class ServerConfig:
    """Everything `coe-cloud serve` needs to know.

    Args:
        http_port: of the HTTP door; None: there is none.
        cors: origins whose pages may call the HTTP door.
        model: name of the whole cascade; each tier is also served alone, as `model-tier`.
        grace_s: how long calls under way may finish after SIGTERM.
        reload_s: how often the config's and the models' files are looked at for changes; 0: never.
        model_control: whether callers may load and unload models.
        device: what a browser is handed to be a device; None: nothing.
        source: the file it was read from.
    """

    cascade: CascadeConfig
    model: str
    host: str
    grpc_port: int
    http_port: int | None
    cors: tuple[str, ...]
    limits: Limits
    engine: EngineConfig
    security: Security
    watch: ObserveConfig
    grace_s: float
    reflection: bool
    reload_s: float
    model_control: bool
    device: DevicePage | None
    source: Path | None
    warnings: tuple[str, ...]


def default_config() -> Path:
    """The bundled digits' cloud tiers."""
    return zoo.find("digits/cloud.yaml")


def read_config(path: Path) -> ServerConfig:
    """The server's config.

    Raises:
        ConfigError: every setting that is wrong, at once.
    """
    report = Report(str(path))
    fields = Fields(read_yaml(path), report)
    cascade = read_cascade(fields, path.parent, parallel=True)
    server = fields.section("server", {})
    model = fields.text("model", cascade.task.name)
    alone = [tier.name for tier in cascade.tiers if isinstance(tier, LocalTierConfig)]
    config = ServerConfig(
        cascade=cascade,
        model=model,
        host=server.text("host", "127.0.0.1"),
        grpc_port=server.integer("grpc_port", GRPC_PORT, 0, 65535),
        http_port=server.integer("http_port", None, 0, 65535),
        cors=server.texts("cors", ()),
        limits=read_limits(fields.section("limits", {})),
        engine=read_engine(fields.section("engine", {}), alone),
        watch=read_observe(fields),
        security=read_security(fields.section("security", {}), path.parent),
        grace_s=server.number("grace_s", 10.0, high=3600),
        reflection=server.flag("reflection", False),
        reload_s=server.number("reload_s", 5.0, high=86_400),
        model_control=server.flag("model_control", False),
        device=read_device_page(
            fields.section("device", {}),
            path.parent,
            cascade.task,
            fields.content.get("task"),
            (model, *(f"{model}-{tier.name}" for tier in cascade.tiers if isinstance(tier, LocalTierConfig))),
        ),
        source=path,
        warnings=tuple(report.warnings),
    )
    for section in (server, fields):
        section.finish()
    report.check()
    return config
