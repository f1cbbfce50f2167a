"""The privacy filter, audit, drift detection and harvest of a config, attached to an agent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from coe.cascade.errors import NotUsableNow
from edge.agent import Agent, RemoteTiers
from edge.sinks import Outcome
from edge.sources import Example

from .audit import Audit
from .config import FieldConfig
from .drift import Drift, DriftResponse
from .harvest import Harvest
from .privacy import open_send_policy, send_policy_check
from .scenes import SceneFilter


@dataclass
class Monitors:
    """The monitors of an agent; None where the config has none. `may_be_shared`: see SendPolicy."""

    may_be_shared: Callable[[Outcome], bool] = lambda outcome: True
    audit: Audit | None = None
    drift: Drift | None = None
    harvest: Harvest | None = None

    def close(self) -> None:
        if self.audit is not None:
            self.audit.close()


def open_monitors(
    config: FieldConfig,
    agent: Agent,
    labels: tuple[str, ...],
    state: Path | None,
    response: DriftResponse | None = None,
) -> Monitors:
    """The monitors of a config; the agent gets its send policy and observers.

    Args:
        state: folder for what survives a restart; None: nothing does.
        response: of drift, attached to the cascade's tiers; None: it only reports.
    Raises:
        ConfigError: the privacy filter cannot be loaded, or the harvest's folder cannot be created.
    """
    monitors = Monitors()
    held_back: Callable[[Example], str | None] = lambda example: None  # noqa: E731
    policy = open_send_policy(config, labels)
    if policy is not None:
        agent.hold_back = policy
        held_back = send_policy_check(policy, agent.cascade, agent.decoder)
        monitors.may_be_shared = policy.may_be_shared
    if config.same_scene is not None:
        scenes = SceneFilter(config.same_scene)
        agent.known_answer = scenes.answer
        agent.observers.append(scenes)
    if config.drift is not None:
        monitors.drift = Drift(config.drift, agent.write_event, response)
        agent.observers.append(monitors.drift)
    remote_tiers = RemoteTiers(agent.cascade, agent.decoder)
    if config.audit is not None and config.audit.share > 0 and remote_tiers.is_there:
        monitors.audit = Audit(
            config.audit,
            remote_tiers,
            labels,
            is_busy=lambda: agent.n_waiting > 0,
            held_back=held_back,
            notify=agent.write_event,
            on_answer=monitors.drift.on_audit if monitors.drift is not None else lambda differs: None,
            state=None if state is None else state / "audit.json",
        )
        agent.observers.append(monitors.audit)
    if config.harvest is not None:
        try:
            monitors.harvest = Harvest(config.harvest, labels, agent.write_event, monitors.may_be_shared)
        except OSError as error:
            monitors.close()
            raise NotUsableNow([f"harvest.path: {config.harvest.path} cannot be created: {error.strerror}"]) from None
        agent.observers.append(monitors.harvest)
    return monitors
