"""The systems a delay study compares, each as the configs of real programs.

The cascade is read from the bundled configs, so that what is studied is what `coe-edge` and `coe-cloud` run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from coe import zoo
from coe.settings import read_yaml

SYSTEMS = ("cascade", "cloud-only", "edge-only")
TITLES = {
    "cascade": "cascade of ensembles",
    "cloud-only": "best single model in the cloud",
    "edge-only": "edge ensemble alone",
}
CALL_DEADLINE_MS = 60_000  # far beyond any delay studied: no answer is cut short


@dataclass(frozen=True, slots=True)
class Hop:
    """What lies between a device and the server it asks.

    Args:
        port: of the server, on this machine.
        delay_s: injected; None: nothing is.
        one_way: the delay is charged in each direction.
        device_delay_s: injected at the device's own tier; None: nothing is.
    """

    port: int
    delay_s: float | None = None
    one_way: bool = False
    device_delay_s: float | None = None


def edge_config(system: str, hop: Hop, sink: Path, *, interval_s: float, max_in_flight: int) -> dict[str, Any]:
    """The agent's config for one system."""
    config = read_yaml(zoo.find("digits/edge.yaml"))
    device, cloud = config["tiers"]
    cloud = {**cloud, "address": f"127.0.0.1:{hop.port}", "deadline_ms": CALL_DEADLINE_MS}
    if hop.delay_s is not None:
        cloud |= {"delay_ms": hop.delay_s * 1000, "delay_one_way": hop.one_way}
    if hop.device_delay_s is not None:
        device = {**device, "delay_ms": hop.device_delay_s * 1000, "delay_one_way": hop.one_way}
    tiers = {
        "cascade": [device, cloud],
        "cloud-only": [{**cloud, "model": f"{cloud['model']}-best"}],
        "edge-only": [{key: value for key, value in device.items() if key != "agreement"}],
    }[system]
    return {
        "task": config["task"],
        "tiers": tiers,
        "source": {"kind": "digits", "interval_ms": interval_s * 1000},
        "sink": {"path": str(sink)},
        "max_in_flight": max_in_flight,
    }


def cloud_config() -> Path:
    """The bundled cloud tiers, all on one server."""
    return zoo.find("digits/cloud.yaml")


def chain_config(next_port: int | None, delay_s: float, one_way: bool) -> dict[str, Any]:
    """One cloud tier on a server of its own: the last (`next_port` None), or the one before it."""
    config = read_yaml(cloud_config())
    *first, best = config["tiers"]
    if next_port is None:
        return {**config, "tiers": [best]}
    remote = {
        "name": best["name"],
        "address": f"127.0.0.1:{next_port}",
        "model": config["model"],
        "deadline_ms": CALL_DEADLINE_MS,
        "delay_ms": delay_s * 1000,
        "delay_one_way": one_way,
    }
    return {**config, "tiers": [*first, remote]}


def write(config: dict[str, Any], path: Path) -> Path:
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path
