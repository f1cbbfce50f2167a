"""The tiers beyond the device, asked about an example whose live turn is over."""

from __future__ import annotations

import math
from dataclasses import replace

from coe.cascade.cascade import Cascade
from coe.cascade.types import Decision
from coe.models.inputs import Door

from .sources import Example


class Onward:
    """What is left of the cascade after its local tiers, without falling back on any of them.

    Args:
        cascade: the agent's own; it stays its owner.
        door: decodes and checks the example again.
    """

    def __init__(self, cascade: Cascade, door: Door) -> None:
        n_local = next((at for at, tier in enumerate(cascade.tiers) if tier.waits), len(cascade.tiers))
        self.tiers = cascade.tiers[n_local:]
        self.first_tier = 1 + sum(tier.n_tiers for tier in cascade.tiers[:n_local])
        self.door = door
        self._rest = Cascade(self.tiers, keep_last_answer=False) if self.tiers else None

    @property
    def is_there(self) -> bool:
        """Whether the cascade has any tier that is not on this device."""
        return self._rest is not None

    def ask(self, example: Example, deadline: float = math.inf) -> Decision:
        """The answer of the tiers beyond, their numbers counted from the device's first.

        Args:
            deadline: `time.monotonic()` second.
        Raises:
            TierError: no answer.
            InputError: the example cannot be read.
        """
        assert self._rest is not None, "a cascade with no tier beyond the device has nobody to ask"
        assert example.value is not None
        decision = self._rest.decide(self.door.batch([example.id], [example.value], deadline))[0]
        return replace(decision, exit_tier=decision.exit_tier + self.first_tier - 1)
