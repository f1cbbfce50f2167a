"""The systems a delay study compares, each as the configs of real programs.

The cascade is read from the configs of a bundled task, so that what is studied is what `coe-edge` and `coe-cloud` run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coe import zoo
from coe.config import Fields, Report, format_yaml, read_yaml
from coe.config.cascade import LocalTierConfig, read_cascade

SYSTEMS = ("cascade", "cloud-only", "edge-only")
TITLES = {
    "cascade": "cascade of ensembles",
    "cloud-only": "best single model in the cloud",
    "edge-only": "edge ensemble alone",
}
CHAIN = "edge-four-tiers"  # of CIFAR-10, whose edge.yaml asks the best model itself
CALL_DEADLINE_MS = 60_000  # far beyond any delay studied: no answer is cut short


@dataclass(frozen=True, slots=True)
class Uplink:
    """What lies between a device and the server it asks.

    Args:
        port: of the server, on this machine.
        delay_s: injected; None: nothing is.
        one_way: the delay is charged in each direction.
        device_delay_s: injected at the device's own tier; None: nothing is.
        link: what a config says under `link_model`; None: nothing.
    """

    port: int
    delay_s: float | None = None
    one_way: bool = False
    device_delay_s: float | None = None
    link: Any = None


@dataclass(frozen=True, slots=True)
class BundledTask:
    """A bundled task as its device and its cloud are configured: one ensemble there, and the tiers of a server here.

    Args:
        edge, cloud: contents of its edge.yaml and cloud.yaml.
        device_file: where `edge` is from.
    """

    task: str
    edge: Mapping[str, Any]
    cloud: Mapping[str, Any]

    device_file: str = "edge"

    @classmethod
    def of(cls, task: str, device_file: str = "edge") -> BundledTask:
        """Raises ConfigError where the task is not bundled."""
        folder = zoo.find(task)
        edge, cloud = (_placed(read_yaml(folder / f"{name}.yaml"), folder) for name in (device_file, "cloud"))
        return cls(task, edge, cloud, device_file)

    @classmethod
    def chain_of(cls, task: str) -> BundledTask:
        """With the device that asks every tier of the cloud, where the task has one of its own for that."""
        return cls.of(task, CHAIN if (zoo.find(task) / f"{CHAIN}.yaml").is_file() else "edge")

    @property
    def cloud_config(self) -> Path:
        """The cloud tiers, all on one server."""
        return zoo.find(f"{self.task}/cloud.yaml")

    @property
    def best_model(self) -> str:
        """What the server calls its last tier alone."""
        return f"{self.cloud['model']}-{self.cloud['tiers'][-1]['name']}"

    @property
    def is_self_sourced(self) -> bool:
        """True if the agent finds labelled examples of the task by itself: else they come as JSON lines."""
        return str(self.edge["source"]["kind"]) == "digits"

    def tiers(self, system: str) -> tuple[list[LocalTierConfig], list[LocalTierConfig]]:
        """A system's ensembles: (on the device, in the cloud).

        Raises:
            ConfigError: every finding of its configs.
        """
        device, cloud = self._local(self.device_file), self._local("cloud")
        asked = self.edge["tiers"][-1]["model"]
        behind = cloud if asked == self.cloud["model"] else [one for one in cloud if asked.endswith(f"-{one.name}")]
        return {"cascade": (device, behind), "cloud-only": ([], cloud[-1:]), "edge-only": (device, [])}[system]

    def n_tiers(self, system: str) -> int:
        return sum(map(len, self.tiers(system)))

    def _local(self, name: str) -> list[LocalTierConfig]:
        path = zoo.find(f"{self.task}/{name}.yaml")
        report = Report(str(path))
        config = read_cascade(Fields(read_yaml(path), report), path.parent)
        report.check()
        return [tier for tier in config.tiers if isinstance(tier, LocalTierConfig)]


def _placed(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The config as it may stand anywhere: its own files by their full paths."""

    def at(reference: Any) -> Any:
        here = isinstance(reference, str) and not reference.startswith("zoo:") and (folder / reference).is_file()
        return str(folder / reference) if here else reference

    tiers = [
        tier | {"members": [at(member) for member in tier["members"]]} if "members" in tier else tier
        for tier in config["tiers"]
    ]
    return {**config, "task": at(config["task"]), "tiers": tiers}


def edge_config(
    bundle: BundledTask, system: str, uplink: Uplink, sink: Path, *, interval_s: float, max_in_flight: int
) -> dict[str, Any]:
    """The agent's config for one system."""
    device, cloud = bundle.edge["tiers"]
    cloud = {**cloud, "address": f"127.0.0.1:{uplink.port}", "deadline_ms": CALL_DEADLINE_MS}
    if uplink.delay_s is not None:
        cloud |= {"delay_ms": uplink.delay_s * 1000, "delay_one_way": uplink.one_way}
    if uplink.link is not None:
        cloud["link_model"] = uplink.link
    if uplink.device_delay_s is not None:
        device = {**device, "delay_ms": uplink.device_delay_s * 1000, "delay_one_way": uplink.one_way}
    tiers = {
        "cascade": [device, cloud],
        "cloud-only": [{**cloud, "model": bundle.best_model}],
        "edge-only": [{key: value for key, value in device.items() if key != "agreement"}],
    }[system]
    kind = bundle.edge["source"]["kind"] if bundle.is_self_sourced else "stdin"
    return {
        "task": bundle.edge["task"],
        "tiers": tiers,
        "source": {"kind": kind, "interval_ms": interval_s * 1000},
        "sink": {"path": str(sink)},
        "max_in_flight": max_in_flight,
    }


def chain_config(
    bundle: BundledTask, number: int, next_port: int | None, delay_s: float, one_way: bool
) -> dict[str, Any]:
    """Tier `number` of the cloud, from 0, on a server of its own, which asks the next one (None: it is the last)."""
    own, *after = bundle.cloud["tiers"][number:]
    if next_port is None:
        return {**bundle.cloud, "tiers": [own]}
    remote = {
        "name": after[0]["name"],
        "address": f"127.0.0.1:{next_port}",
        "model": bundle.cloud["model"],
        "deadline_ms": CALL_DEADLINE_MS,
        "delay_ms": delay_s * 1000,
        "delay_one_way": one_way,
    }
    return {**bundle.cloud, "tiers": [own, remote]}


def write(config: dict[str, Any], path: Path) -> Path:
    path.write_text(format_yaml(config), encoding="utf-8")
    return path
