"""What an agent's config asks of this room, opened around the agent."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from coe.cascade.errors import ConfigError

from ..agent import Agent
from ..onward import Onward
from ..sinks import Outcome
from ..sources import Example
from .audit import Audit
from .config import FieldConfig
from .drift import Drift
from .harvest import Harvest
from .hold_back import HoldBack, held_back_of, load_hook


class Field:
    """Each is None where it is not asked for; `clears`: whether an outcome's example may be kept and shown."""

    def __init__(self) -> None:
        self.clears: Callable[[Outcome], bool] = lambda outcome: True
        self.audit: Audit | None = None
        self.drift: Drift | None = None
        self.harvest: Harvest | None = None
        self._opened = ExitStack()

    def close(self) -> None:
        self._opened.close()


def hold_back_of(config: FieldConfig, labels: tuple[str, ...]) -> HoldBack | None:
    """What holds examples back; None: all may leave.

    Raises:
        ConfigError: the hook cannot be loaded.
    """
    if not config.never_send and not config.hook:
        return None
    hook = load_hook(config.hook, config.folder) if config.hook else None
    return HoldBack(labels, config.never_send, hook)


def open_field(config: FieldConfig, agent: Agent, labels: tuple[str, ...], state: Path | None) -> Field:
    """Give the agent its hold-back and its watchers.

    Args:
        state: folder in which findings survive a restart; None: they do not.
    Raises:
        ConfigError: the hook cannot be loaded, or the harvest's folder not be made.
    """
    field = Field()
    held_back: Callable[[Example], str | None] = lambda example: None  # noqa: E731
    hold_back = hold_back_of(config, labels)
    if hold_back is not None:
        agent.hold_back = hold_back
        held_back = held_back_of(hold_back, agent.cascade, agent.door)
        field.clears = hold_back.clears
    if config.drift is not None:
        field.drift = Drift(config.drift, agent.tell)
        agent.watchers.append(field.drift)
    onward = Onward(agent.cascade, agent.door)
    if config.audit is not None and config.audit.share > 0 and onward.is_there:
        field.audit = Audit(
            config.audit,
            onward,
            labels,
            is_busy=lambda: agent.n_waiting > 0,
            held_back=held_back,
            told=agent.tell,
            found=field.drift.audited if field.drift is not None else lambda differs: None,
            state=None if state is None else state / "audit.json",
        )
        field._opened.callback(field.audit.close)
        agent.watchers.append(field.audit)
    if config.harvest is not None:
        try:
            field.harvest = Harvest(config.harvest, labels, agent.tell, field.clears)
        except OSError as error:
            field.close()
            raise ConfigError([f"harvest.path: {config.harvest.path} cannot be made: {error.strerror}"]) from None
        agent.watchers.append(field.harvest)
    return field
