"""The server's config file: the cascade, the server, its engine, its logs, metrics and traces."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from coe import zoo
from coe.config import Fields, Report, read_yaml
from coe.config.cascade import CascadeConfig, read_cascade
from coe.config.settings import REQUIRED, read_settings, setting
from coe.protocol.channel import fix_of_host

from .limits import Limits
from .security.config import Security
from .security.config import read as read_security
from .transports.device_page import DevicePage, read_device_page

MOST_REPLICAS = 1024


@dataclass(frozen=True)
class Autoscaling:
    """Replicas as the load asks for them: about `target_ongoing_requests` calls under way at each."""

    min: int = setting(1, "Fewest replicas.", low=1, high=MOST_REPLICAS)
    max: int = setting(None, "Most replicas.", usual="`min`", low=1, high=MOST_REPLICAS, example="4")
    target_ongoing_requests: float = setting(2, "Calls under way at each replica to aim for.", low=0.01, high=100_000)

    def __post_init__(self) -> None:
        if not self.max:
            object.__setattr__(self, "max", self.min)


@dataclass(frozen=True)
class Placement:
    """How often a deployment runs, and what Ray books for each replica; it does not hold the replica to that."""

    replicas: int = setting(1, "Number of replicas.", low=1, high=MOST_REPLICAS)
    num_cpus: float = setting(1, "CPUs that Ray books for each replica.", usual="1; of the ingress 0", high=4096)
    num_gpus: float = setting(0, "GPUs that Ray books for each replica.", high=64)
    autoscaling: Autoscaling | None = setting(None, "Scale with the load, in place of `replicas`.", usual="none")

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


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """The Ray engine's settings."""

    tiers: Mapping[str, Placement] = setting(
        REQUIRED, "Placement of tiers, by name.", usual="one replica of each", example="{best: {replicas: 2}}"
    )
    ingress: Placement = setting(INGRESS, "Placement of the replicas that run Algorithm 1 and call the tiers.")
    every_node: bool = setting(False, "Ray's gRPC port is opened on every node, not on the head alone.")
    start_s: float = setting(300, "Longest time to load all models.", unit="seconds", low=1, high=86_400)

    def of(self, tier: str) -> Placement:
        return self.tiers.get(tier, Placement())


def read_engine(fields: Fields, tiers: Collection[str]) -> EngineConfig:
    """The section `engine:`. `tiers` are the names of those that have members here: only they can be placed."""
    placements = {}
    for name, entry in fields.entries("tiers") if fields.has("tiers") else ():
        placements[name] = _read_placement(entry)
        if name not in tiers:
            known = ", ".join(tiers) or "none"
            entry.wrong("", f'expected a tier with members here ({known}), got "{name}"')
    ingress = _read_placement(fields.section("ingress", {}), num_cpus=INGRESS.num_cpus)
    return read_settings(EngineConfig, fields, tiers=placements, ingress=ingress)


def _read_placement(entry: Fields, **defaults: float) -> Placement:
    if entry.has("autoscaling") and entry.has("replicas"):
        entry.wrong("replicas", "expected replicas or autoscaling, got both (leave one out)")
    placement = read_settings(Placement, entry, defaults=defaults)
    scale = placement.autoscaling
    if scale is not None and scale.max < scale.min:
        entry.wrong("autoscaling.max", f"expected at least min ({scale.min}), got {scale.max}")
    return placement


LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class ObserveConfig:
    """How the server is watched."""

    log_format: str = setting(
        "plain",
        "Format of log lines: for people or for machines.",
        choices=("plain", "json"),
        key="format",
        within="log",
    )
    log_level: str = setting("info", "Lowest level that is logged.", choices=LEVELS, key="level", within="log")
    log_requests: bool = setting(
        False, "Log answered requests, too; failed ones are always logged.", key="requests", within="log"
    )
    metrics: bool = setting(True, "Offer metrics at `/metrics` of the HTTP port.", key="enabled", within="metrics")
    page: bool = setting(True, "Offer the status page at `/`.", within="metrics")
    traces: str = setting(
        "",
        "Collector of traces (OTLP over HTTP).",
        key="endpoint",
        within="traces",
        usual="none",
        example='"http://127.0.0.1:4318"',
    )
    trace_service: str = setting("coe-cloud", "Name of the server in traces.", key="service", within="traces")
    trace_share: float = setting(
        1.0, "Share of the traces begun here that is kept.", key="share", within="traces", high=1
    )


def read_observe(fields: Fields) -> ObserveConfig:
    """`log:`, `metrics:` and `traces:` of a config file; findings go to its report."""
    settings = read_settings(ObserveConfig, fields, finish=False)
    if settings.log_requests and settings.log_level not in ("debug", "info"):
        message = f"requests are logged at info, which level {settings.log_level} leaves out (set level: info)"
        fields.warn("log.requests", message)
    endpoint = settings.traces
    if not endpoint:
        return settings
    try:
        parts = urlsplit(endpoint)
        is_url = parts.scheme in ("http", "https") and not fix_of_host(parts.hostname or "") and (parts.port or 1) > 0
    except ValueError:
        is_url = False
    if not is_url:
        fields.wrong("traces.endpoint", f'expected a URL, got "{endpoint}" (write "http://127.0.0.1:4318")')
        endpoint = ""
    elif not parts.path.strip("/"):  # the path that OTLP over HTTP has by default
        endpoint = f"{endpoint.rstrip('/')}/v1/traces"
    return replace(settings, traces=endpoint)


GRPC_PORT = 8001  # 8000 is kept for HTTP, as the ecosystem's servers do


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Everything `coe-cloud serve` needs to know. `source`: the file it was read from."""

    cascade: CascadeConfig
    model: str = setting(
        REQUIRED, "Name of the whole cascade; a tier alone is served as `model-tier`.", usual="the task's name"
    )
    host: str = setting("127.0.0.1", "Address to listen on; beyond this machine, set `security.tls`.", within="server")
    grpc_port: int = setting(GRPC_PORT, "Port of gRPC; 0: a free one.", within="server", high=65535)
    http_port: int | None = setting(
        None,
        "Port of REST, `/metrics` and the status page.",
        within="server",
        usual="no HTTP",
        high=65535,
        example="8000",
    )
    cors: tuple[str, ...] = setting((), "Origins whose pages may call the HTTP port.", within="server")
    grace_s: float = setting(10, "Time for calls under way to end after SIGTERM.", within="server", unit="s", high=3600)
    reload_s: float = setting(
        5, "How often config and models are looked at for changes; 0: never.", within="server", unit="s", high=86_400
    )
    model_control: bool = setting(False, "Allow callers to load and unload models.", within="server")
    reflection: bool = setting(False, "Offer gRPC's server reflection.", within="server")
    limits: Limits = setting(Limits(), "Of calls, of their sizes and of queues.")
    security: Security = setting(Security(), "Who may call, over what.")
    engine: EngineConfig = setting(REQUIRED, "With `--engine ray`: where tiers run.")
    observe: ObserveConfig
    device: DevicePage | None = setting(None, "What a phone runs at `/device`.", usual="the bundled task's cascade")
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
    model = fields.text("model", cascade.task.name)
    alone = [tier.name for tier in cascade.local_tiers]
    served = (model, *(f"{model}-{name}" for name in alone))
    device, task = fields.section("device", {}), fields.content.get("task")
    config = read_settings(
        ServerConfig,
        fields,
        cascade=cascade,
        model=model,
        engine=read_engine(fields.section("engine", {}), alone),
        observe=read_observe(fields),
        security=read_security(fields.section("security", {}), path.parent),
        device=read_device_page(device, path.parent, cascade.task, task, served, cascade.tiers),
        source=path,
        warnings=(),
    )
    if fix := fix_of_host(config.host):
        fields.wrong("server.host", f'expected a name or an IP address, got "{config.host}" ({fix})')
    report.check()
    return replace(config, warnings=tuple(report.warnings))
