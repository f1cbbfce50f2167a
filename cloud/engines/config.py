"""The `engine:` settings: how tiers are spread over a Ray cluster. The embedded engine does not read them.

engine:
  tiers:
    medium: {replicas: 2, num_cpus: 1}
    best: {num_gpus: 1, autoscaling: {min: 1, max: 4, target_ongoing_requests: 8}}
  door: {replicas: 1, num_cpus: 0}
  every_node: false
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from coe.settings import Fields

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


DOOR = Placement(num_cpus=0.0)


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
    door: Placement = DOOR
    every_node: bool = False
    start_s: float = 300.0

    def of(self, tier: str) -> Placement:
        return self.tiers.get(tier, Placement())


def read(fields: Fields, tiers: Collection[str]) -> EngineConfig:
    """The section; findings go to its report.

    Args:
        tiers: names of those that have members here: only they can be placed.
    """
    placements = {}
    for name, entry in fields.entries("tiers") if fields.has("tiers") else ():
        placements[name] = _placement(entry, Placement())
        if name not in tiers:
            known = ", ".join(tiers) or "none"
            entry.wrong("", f'expected a tier with members here ({known}), got "{name}"')
    door = fields.section("door", {})
    config = EngineConfig(
        tiers=placements,
        door=_placement(door, DOOR),
        every_node=fields.flag("every_node", False),
        start_s=fields.number("start_seconds", 300.0, 1, 86_400),
    )
    fields.finish()
    return config


def _placement(entry: Fields, default: Placement) -> Placement:
    if entry.has("autoscaling") and entry.has("replicas"):
        entry.wrong("replicas", "expected replicas or autoscaling, got both (leave one out)")
    placement = Placement(
        replicas=entry.integer("replicas", default.replicas, 1, MOST_REPLICAS),
        num_cpus=entry.number("num_cpus", default.num_cpus, 0, 4096),
        num_gpus=entry.number("num_gpus", default.num_gpus, 0, 64),
        autoscaling=_autoscaling(entry.section("autoscaling", {})) if entry.has("autoscaling") else None,
    )
    entry.finish()
    return placement


def _autoscaling(fields: Fields) -> Autoscaling:
    low = fields.integer("min", 1, 1, MOST_REPLICAS)
    high = fields.integer("max", max(low, 1), 1, MOST_REPLICAS)
    if high < low:
        fields.wrong("max", f"expected at least min ({low}), got {high}")
    target = fields.number("target_ongoing_requests", 2.0, 0.01, 100_000)
    fields.finish()
    return Autoscaling(low, high, target)
