"""The server's config: a cascade, what it is called, and the server's limits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from coe import zoo
from coe.assembly import CascadeConfig, LocalTierConfig, read_cascade
from coe.settings import Fields, Report, read_yaml

from .doors.device import Device, read_device
from .engines.config import EngineConfig
from .engines.config import read as read_engine
from .limits import Limits, read_limits
from .security.config import Security
from .security.config import read as read_security
from .watch.config import Watch
from .watch.config import read as read_watch

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
    watch: Watch
    grace_s: float
    reflection: bool
    reload_s: float
    model_control: bool
    device: Device | None
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
        watch=read_watch(fields),
        security=read_security(fields.section("security", {}), path.parent),
        grace_s=server.number("grace_s", 10.0, high=3600),
        reflection=server.flag("reflection", False),
        reload_s=server.number("reload_s", 5.0, high=86_400),
        model_control=server.flag("model_control", False),
        device=read_device(
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
