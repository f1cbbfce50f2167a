"""The server's config: a cascade, what it is called, and the server's limits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from coe import zoo
from coe.assembly import CascadeConfig, read_cascade
from coe.settings import Fields, Report, read_yaml

GRPC_PORT = 8001  # 8000 is kept for HTTP, as the ecosystem's servers do


@dataclass(frozen=True)
class ServerConfig:
    """Everything `coe-cloud serve` needs to know.

    Args:
        model: name of the whole cascade; each tier is also served alone, as `model-tier`.
        max_batch, max_delay_s, max_queued: of each local tier's batcher.
        max_calls: calls under way at once; beyond it they are refused.
        grace_s: how long calls under way may finish after SIGTERM.
    """

    cascade: CascadeConfig
    model: str
    host: str
    grpc_port: int
    max_batch: int
    max_delay_s: float
    max_queued: int
    max_calls: int
    max_rows: int
    max_message_bytes: int
    grace_s: float
    reflection: bool
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
    limits = fields.section("limits", {})
    config = ServerConfig(
        cascade=cascade,
        model=fields.text("model", cascade.task.name),
        host=server.text("host", "127.0.0.1"),
        grpc_port=server.integer("grpc_port", GRPC_PORT, 0, 65535),
        max_batch=limits.integer("max_batch", 64, 1, 65536),
        max_delay_s=limits.number("max_queue_delay_ms", 0.0, high=10_000) / 1000,
        max_queued=limits.integer("max_queued", 1024, 1),
        max_calls=limits.integer("max_calls", 64, 1, 4096),
        max_rows=limits.integer("max_rows", 1024, 1, 2**20),
        max_message_bytes=int(limits.number("max_message_mb", 64, 0.01, 2047) * 2**20),
        grace_s=server.number("grace_s", 10.0, high=3600),
        reflection=server.flag("reflection", False),
        warnings=tuple(report.warnings),
    )
    for section in (server, limits, fields):
        section.finish()
    report.check()
    return config
