"""What is examined: a machine, and a config where there is one that can be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from coe.assembly import LocalTierConfig, RemoteTierConfig

from ...config import AgentConfig
from ..finding import Finding
from ..system import System


@dataclass(frozen=True)
class Patient:
    system: System = field(default_factory=System)
    config: AgentConfig | None = None

    @property
    def the_config(self) -> AgentConfig:
        """For checks that are only made where there is one."""
        assert self.config is not None
        return self.config

    @property
    def local_tiers(self) -> list[LocalTierConfig]:
        tiers = self.config.cascade.tiers if self.config else ()
        return [tier for tier in tiers if isinstance(tier, LocalTierConfig)]

    @property
    def remote_tiers(self) -> list[RemoteTierConfig]:
        tiers = self.config.cascade.tiers if self.config else ()
        return [tier for tier in tiers if isinstance(tier, RemoteTierConfig)]


Check = Callable[[Patient], Iterator[Finding]]
