"""The `watch:` settings.

watch:
  address: 127.0.0.1:9109   # metrics at /metrics, the page at /
  thumbnails: true          # of recent decisions, on the page
  expose: false             # true: an address that others can reach; there is no password
"""

from __future__ import annotations

import importlib.util
import ipaddress
from dataclasses import dataclass

from coe.config import Fields


@dataclass(frozen=True)
class ObserveConfig:
    """Where the agent can be watched."""

    host: str = "127.0.0.1"
    port: int = 9109
    thumbnails: bool = True


def read_observe(fields: Fields) -> ObserveConfig:
    """The section `watch:` of an agent's config."""
    usual = ObserveConfig()
    host, _, port = fields.text("address", f"{usual.host}:{usual.port}").rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or int(port) > 65535:
        fields.wrong("address", f"expected host:port, such as 127.0.0.1:9109, got {fields.content.get('address')!r}")
        host, port = usual.host, str(usual.port)
    exposes = fields.flag("expose", False)
    if not _is_loopback(host) and not exposes:
        fix = "write 127.0.0.1, or `expose: true` if everybody who reaches it may look"
        fields.wrong("address", f"expected an address of this device alone, got {host} ({fix})")
    if importlib.util.find_spec("prometheus_client") is None:
        fields.wrong("", "the package prometheus-client is not installed: pip install 'coe-cascade[watch]'")
    config = ObserveConfig(host, int(port), fields.flag("thumbnails", True))
    fields.finish()
    return config


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
