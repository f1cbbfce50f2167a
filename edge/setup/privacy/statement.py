"""One thing that is said of a config."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from coe.assembly import LocalTierConfig, RemoteTierConfig

from ...config import AgentConfig

Topic = Literal["leaves", "beside", "stays", "kept", "open"]

HEADINGS: dict[Topic, str] = {
    "leaves": "What leaves this device",
    "beside": "What goes with it",
    "stays": "What stays here",
    "kept": "What is kept on this device's disk",
    "open": "Who can look in, on this device or from outside",
}


@dataclass(frozen=True, slots=True)
class Statement:
    """One sentence, or a few.

    Args:
        about: the setting it comes from, as written in the config.
    """

    topic: Topic
    about: str
    text: str


def remote_tiers(config: AgentConfig) -> Iterator[RemoteTierConfig]:
    return (tier for tier in config.cascade.tiers if isinstance(tier, RemoteTierConfig))


def local_tiers(config: AgentConfig) -> Iterator[LocalTierConfig]:
    return (tier for tier in config.cascade.tiers if isinstance(tier, LocalTierConfig))
