"""What an agent's config asks of this room, opened around the agent."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from coe.cascade.errors import ConfigError
from edge.agent import Agent, RemoteTiers
from edge.sinks import Outcome
from edge.sources import Example

from .audit import Audit
from .config import FieldConfig
from .drift import Drift
from .harvest import Harvest
from .privacy import open_send_policy, send_policy_check


class Monitors:
    """Each is None where it is not asked for; `clears`: whether an outcome's example may be kept and shown."""

    def __init__(self) -> None:
        self.may_be_shared: Callable[[Outcome], bool] = lambda outcome: True
        self.audit: Audit | None = None
        self.drift: Drift | None = None
        self.harvest: Harvest | None = None
        self._opened = ExitStack()

    def close(self) -> None:
        self._opened.close()


def open_monitors(config: FieldConfig, agent: Agent, labels: tuple[str, ...], state: Path | None) -> Monitors:
    """Give the agent its hold-back and its watchers.

    Args:
        state: folder in which findings survive a restart; None: they do not.
    Raises:
        ConfigError: the privacy_filter cannot be loaded, or the harvest's folder not be made.
    """
    field = Monitors()
    held_back: Callable[[Example], str | None] = lambda example: None  # noqa: E731
    hold_back = open_send_policy(config, labels)
    if hold_back is not None:
        agent.hold_back = hold_back
        held_back = send_policy_check(hold_back, agent.cascade, agent.decoder)
        field.may_be_shared = hold_back.may_be_shared
    if config.drift is not None:
        field.drift = Drift(config.drift, agent.tell)
        agent.observers.append(field.drift)
    remote_tiers = RemoteTiers(agent.cascade, agent.decoder)
    if config.audit is not None and config.audit.share > 0 and remote_tiers.is_there:
        field.audit = Audit(
            config.audit,
            remote_tiers,
            labels,
            is_busy=lambda: agent.n_waiting > 0,
            held_back=held_back,
            notify=agent.tell,
            found=field.drift.audited if field.drift is not None else lambda differs: None,
            state=None if state is None else state / "audit.json",
        )
        field._opened.callback(field.audit.close)
        agent.observers.append(field.audit)
    if config.harvest is not None:
        try:
            field.harvest = Harvest(config.harvest, labels, agent.tell, field.may_be_shared)
        except OSError as error:
            field.close()
            raise ConfigError([f"harvest.path: {config.harvest.path} cannot be made: {error.strerror}"]) from None
        agent.observers.append(field.harvest)
    return field
