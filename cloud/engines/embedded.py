"""Tiers in this process: loaded, warm, batched."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from cloud.async_cascade import AsyncCascade, AsyncTier, CascadeBatcher
from cloud.config import ServerConfig
from cloud.limits import Limits
from cloud.tier_batcher import TierBatcher
from coe.cascade.cascade import Cascade
from coe.cascade.errors import InputError, TierError
from coe.cascade.rule import Always
from coe.cascade.tier import Tier
from coe.cascade.types import Batch
from coe.config.cascade import TierConfig
from coe.config.open import open_tier
from coe.models.input_spec import InputSpec
from coe.models.inputs import InputDecoder
from coe.protocol.core import Decided, ServedModel
from coe.protocol.remote import remote_of

log = logging.getLogger(__name__)
Say = Callable[[str], None]


class EmbeddedEngine:
    """A config's cascade, and each of its local tiers, as models to serve.

    Args:
        say: told what is loaded and on what it runs.
    Raises:
        CascadeError: a model cannot be loaded, or the next server is of another task.
    """

    def __init__(self, config: ServerConfig, notify: Say = log.info) -> None:
        self.config = config
        self.tiers: list[Tier] = []
        self.lanes: dict[str, AsyncTier] = {}
        self._n_inside = 0  # calls under way
        self._threads = ThreadPoolExecutor(config.limits.max_calls, "coe-hop")
        try:
            for tier in config.cascade.tiers:
                self.tiers.append(self._open(tier, notify))
            self._greet(notify)
            for opened in self.tiers:
                if not opened.waits:
                    self.lanes[opened.name] = self._lane(opened)
            self.models = self._served()
        except BaseException:
            self.close()
            raise

    def queued(self) -> dict[str, int]:
        """Rows that wait for each tier."""
        return {name: batcher.n_queued for name, batcher in self.lanes.items() if isinstance(batcher, TierBatcher)}

    @property
    def runs_on(self) -> dict[str, str]:
        """By member: what it runs on."""
        members = [member for tier in self.tiers for member in getattr(tier, "members", ())]
        return {member.name: getattr(member, "runs_on", "") for member in members}

    async def drained(self) -> None:
        """Returns when no call is under way."""
        while self._n_inside:
            await asyncio.sleep(0.05)

    def close(self) -> None:
        """After the last call has ended."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        for batcher in self.lanes.values():
            batcher.close()
        for tier in self.tiers:
            tier.close()

    def _greet(self, notify: Say) -> None:
        """Ask the next server who it is. One of another task is an error; one that is not there yet is not."""
        for tier in self.tiers:
            if remote := remote_of(tier):
                try:
                    remote.metadata()
                except TierError as error:
                    notify(f"warning: {error}; the tier before it answers until it can be reached")

    def _open(self, tier: TierConfig, notify: Say) -> Tier:
        return open_tier(tier, self.config.cascade, notify)

    def _lane(self, tier: Tier) -> AsyncTier:
        return warm_tier_batcher(tier, self.config.cascade.task.input_spec, self.config.limits)

    def _served(self) -> dict[str, ServedModel]:
        config = self.config
        cascades = {config.model: self._cascade(self.tiers)}
        for tier in self.tiers:
            if tier.name in self.lanes:
                cascades[f"{config.model}-{tier.name}"] = self._cascade([tier])
        task = config.cascade.task
        door = InputDecoder(task.input_spec, config.limits.max_pixels, config.limits.max_text_bytes)
        door.warm_up()
        is_tensor = task.input_spec.kind == "tensor"
        offered: tuple[str, tuple[int, ...]] = ("FP32", (-1, *task.input_spec.shape)) if is_tensor else ("BYTES", (-1,))
        return {
            name: ServedModel(
                name, task.fingerprint, task.labels, offered, door, self._decide(cascade), cascade.n_tiers
            )
            for name, cascade in cascades.items()
        }

    def _cascade(self, tiers: Sequence[Tier]) -> Cascade:
        """Its last tier asks every member, because a caller may want the vote itself."""
        last_rule = Always(pools_scores=tiers[-1].rule.pools_scores, asks_all=True)
        return Cascade(tiers, keep_last_answer=self.config.cascade.keep_last_answer, last_rule=last_rule)

    def _decide(self, cascade: Cascade) -> Callable[[Batch], Awaitable[Decided]]:
        """Requests go together where all tiers are here; where one is behind the network, each keeps its deadline."""
        flow = AsyncCascade(cascade, self.lanes, self._threads)
        batcher = CascadeBatcher(flow, max_batch=self.config.limits.max_batch) if flow.is_local else None

        async def decide(batch: Batch) -> Decided:
            self._n_inside += 1
            try:
                return Decided(await flow.decide(batch)) if batcher is None else await batcher.decide(batch)
            finally:
                self._n_inside -= 1

        return decide


def warm_tier_batcher(tier: Tier, input_spec: InputSpec, limits: Limits) -> TierBatcher:
    """A local tier's lane, warm: every member has seen the smallest and the largest batch."""
    batcher = TierBatcher(
        tier, max_batch=limits.max_batch, max_delay_s=limits.max_delay_s, max_queued=limits.max_queued
    )
    with contextlib.suppress(InputError):  # members were tried out as they loaded; empty examples may not suit them
        batcher.measure(_blank(input_spec, limits.max_batch), Always(asks_all=True))
    return batcher


def _blank(input_spec: InputSpec, n_rows: int) -> Batch:
    """A batch of empty examples, to warm up with."""
    return Batch(tuple(f"blank {row}" for row in range(n_rows)), np.repeat(input_spec.blank(), n_rows, axis=0))
