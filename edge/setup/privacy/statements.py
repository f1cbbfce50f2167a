"""All that is said, in order. Each statement follows from the settings, and is gone or another one with them."""

from __future__ import annotations

from ...config import AgentConfig
from .disk import disk
from .doors import doors
from .journey import beside, leaves, stays
from .statement import Statement


def state(config: AgentConfig) -> list[Statement]:
    """Everything there is to say of a config."""
    return [*leaves(config), *beside(config), *stays(config), *disk(config), *doors(config)]
