"""The section `watch:` of an agent's config."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from coe.config import Fields
from coe.config.settings import read_settings, setting
from coe.protocol.channel import fix_of_address, split
from coe.protocol.credentials import is_loopback


@dataclass(frozen=True)
class ObserveConfig:
    """Where the agent's page and metrics are."""

    host: str = setting(
        "127.0.0.1",
        "Where the page (`/`) and the metrics (`/metrics`) are served.",
        key="address",
        usual="127.0.0.1:9109",
        example="127.0.0.1:9109",
    )
    port: int = 9109
    thumbnails: bool = setting(True, "Small pictures of recent examples on the page.")
    expose: bool = setting(False, "Allow an address that others can reach; there is no password.")


def read_observe(fields: Fields) -> ObserveConfig:
    """The section `watch:` of an agent's config."""
    usual = "127.0.0.1:9109"
    address = fields.text("address", usual) or usual  # "" is a finding already
    if fix := fix_of_address(address, f"write {usual}", lowest_port=0):
        fields.wrong("address", f'expected host:port, got "{address}" ({fix})')
        address = usual
    host, port = split(address)
    config = read_settings(ObserveConfig, fields, host=host.removeprefix("[").removesuffix("]"), port=int(port))
    if not is_loopback(host) and not config.expose:
        fix = "write 127.0.0.1, or `expose: true` if everybody who reaches it may look"
        fields.wrong("address", f"expected an address of this device alone, got {config.host} ({fix})")
    if importlib.util.find_spec("prometheus_client") is None:
        fields.wrong("", "the package prometheus-client is not installed: pip install 'coe-cascade[watch]'")
    return config
