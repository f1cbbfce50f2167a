"""The embedded engine: tiers in this process, loaded, warmed up, batched."""

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
from coe.cascade.rule import Always, fuses
from coe.cascade.tier import LocalTier, Tier
from coe.cascade.types import Batch
from coe.config.cascade import TierConfig
from coe.config.open import open_tier
from coe.models.input_spec import InputSpec
from coe.models.inputs import InputDecoder
from coe.protocol.core import Decided, ServedModel
from coe.protocol.remote import remote_of

log = logging.getLogger(__name__)
Notify = Callable[[str], None]


class EmbeddedEngine:
    """A config's cascade, and each of its local tiers, as models to serve.

    Args:
        notify: called with a line for each thing loaded, and what it runs on.
    Raises:
        CascadeError: a model cannot be loaded, or the next server is of another task.
    """

    def __init__(self, config: ServerConfig, notify: Notify = log.info) -> None:
        self.config = config
        self.tiers: list[Tier] = []
        self.batchers: dict[str, AsyncTier] = {}
        self._n_inside = 0  # calls under way
        self._threads = ThreadPoolExecutor(config.limits.max_calls, "coe-remote")
        try:
            for tier in config.cascade.tiers:
                self.tiers.append(self._open(tier, notify))
            for opened in self.tiers:
                if remote := remote_of(opened):
                    try:
                        remote.metadata()  # fails where the next server is of another task
                    except TierError as error:
                        notify(f"warning: {error}; the tier before it answers until it can be reached")
            for opened in self.tiers:
                if not opened.waits:
                    self.batchers[opened.name] = self._batcher(opened)
            self.models = self._served()
        except BaseException:
            self.close()
            raise

    def queued(self) -> dict[str, int]:
        """Rows that wait for each tier."""
        return {name: batcher.n_queued for name, batcher in self.batchers.items() if isinstance(batcher, TierBatcher)}

    def failures(self) -> list[tuple[str, str, int, str | None]]:
        """Of each member here: its tier, its name, the rows on which it did not vote, and why, if it fails now."""
        return [(tier.name, *one) for tier in self.tiers if isinstance(tier, LocalTier) for one in tier.failures.each()]

    @property
    def runs_on(self) -> dict[str, str]:
        """By member: what it runs on."""
        members = [member for tier in self.tiers for member in getattr(tier, "members", ())]
        return {member.name: getattr(member, "runs_on", "") for member in members}

    async def retire(self) -> None:
        """Close it once no call is under way."""
        while self._n_inside:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """After the last call has ended."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        for batcher in self.batchers.values():
            batcher.close()
        for tier in self.tiers:
            tier.close()

    def _open(self, tier: TierConfig, notify: Notify) -> Tier:
        return open_tier(tier, self.config.cascade, notify)

    def _batcher(self, tier: Tier) -> AsyncTier:
        return warm_tier_batcher(tier, self.config.cascade.task.input_spec, self.config.limits)

    def _served(self) -> dict[str, ServedModel]:
        config, task = self.config, self.config.cascade.task
        alone = {f"{config.model}-{tier.name}": [tier] for tier in self.tiers if tier.name in self.batchers}
        cascades = {name: self._cascade(tiers) for name, tiers in ({config.model: self.tiers} | alone).items()}
        decoder = InputDecoder(task.input_spec, config.limits.max_pixels, config.limits.max_text_bytes)
        decoder.warm_up()
        is_tensor = task.input_spec.kind == "tensor"
        wanted: tuple[str, tuple[int, ...]] = ("FP32", (-1, *task.input_spec.shape)) if is_tensor else ("BYTES", (-1,))
        return {
            name: ServedModel(
                name, task.fingerprint, task.labels, wanted, decoder, self._decide(cascade), cascade.n_tiers
            )
            for name, cascade in cascades.items()
        }

    def _cascade(self, tiers: Sequence[Tier]) -> Cascade:
        """A cascade whose last tier asks every member, because a caller may want the vote itself."""
        own = tiers[-1].rule
        is_fused = fuses(own) and len(tiers) == len(self.tiers)  # alone, a tier gives its own members' vote
        last_rule = own if is_fused else Always(pools_scores=own.pools_scores, asks_all=True)
        return Cascade(tiers, keep_last_answer=self.config.cascade.keep_last_answer, last_rule=last_rule)

    def _decide(self, cascade: Cascade) -> Callable[[Batch], Awaitable[Decided]]:
        """Requests are merged where all tiers are here; where one is remote, each keeps its own deadline."""
        alone = AsyncCascade(cascade, self.batchers, self._threads)
        is_local = all(tier.name in self.batchers for tier in cascade.tiers)
        merging = CascadeBatcher(alone, max_batch=self.config.limits.max_batch) if is_local else None

        async def decide(batch: Batch) -> Decided:
            self._n_inside += 1
            try:
                return Decided(await alone.decide(batch)) if merging is None else await merging.decide(batch)
            finally:
                self._n_inside -= 1

        return decide


def warm_tier_batcher(tier: Tier, input_spec: InputSpec, limits: Limits) -> TierBatcher:
    """A local tier's batcher; every member has seen the smallest and the largest batch."""
    n_rows = limits.max_batch
    batcher = TierBatcher(tier, max_batch=n_rows, max_delay_s=limits.max_delay_s, max_queued=limits.max_queued)
    with contextlib.suppress(InputError):  # members were tried out as they loaded; empty examples may not suit them
        ids = tuple(f"blank {row}" for row in range(n_rows))
        batcher.measure(Batch(ids, np.repeat(input_spec.blank(), n_rows, axis=0)), Always(asks_all=True))
    return batcher
