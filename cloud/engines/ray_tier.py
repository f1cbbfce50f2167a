"""A tier on a Ray cluster: its replica, and the client that batches, calls and retries from the ingress.

Nothing here imports Ray: a replica is a plain class, which `cloud.engines.ray` deploys.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cloud.limits import Limits
from cloud.tier_batcher import QueuedRows, answer_group, merged_batch, take_group, votes_of
from coe.cascade import errors
from coe.cascade.errors import CascadeError, InputError, TierError, TierOverloaded, TierTimeout, TierUnavailable
from coe.cascade.rule import DeferralRule
from coe.cascade.types import Array, Batch, CallCost, Vote
from coe.config.cascade import CascadeConfig, LocalTierConfig
from coe.config.open import open_tier
from coe.models.loading import import_runtime

from .embedded import warm_tier_batcher
from .ray_proxy import ATTEMPTS, PAUSE_S

INSTALL = "pip install 'coe-cascade[ray]'"
CANNOT_OPEN = "coe-cloud cannot open it: "  # what follows is for the user


@dataclass(frozen=True, slots=True)
class Failure:
    """An error of ours on its way between processes: exceptions with fields do not travel well."""

    kind: str
    message: str
    retry_after_s: float | None = None

    @staticmethod
    def of(error: CascadeError) -> Failure:
        message = error.message if isinstance(error, TierError) else str(error)
        return Failure(type(error).__name__, message, getattr(error, "retry_after_s", None))

    def error(self, tier: str) -> CascadeError:
        kind = getattr(errors, self.kind, TierUnavailable)
        if kind is TierOverloaded:
            return TierOverloaded(tier, self.message, retry_after_s=self.retry_after_s)
        made: CascadeError = kind(tier, self.message) if issubclass(kind, TierError) else InputError(self.message)
        return made


class TierReplica:
    """One replica: a tier, its members loaded and warm, behind a batcher that merges the rows of all callers.

    The models' files are at the same paths on every node.

    Raises:
        RuntimeError: a member cannot be loaded; the user's message follows `CANNOT_OPEN`.
    """

    def __init__(self, tier: LocalTierConfig, cascade: CascadeConfig, limits: Limits) -> None:
        self.lines: list[str] = []
        try:
            self.tier = open_tier(tier, cascade, self.lines.append)
        except CascadeError as error:
            raise RuntimeError(f"{CANNOT_OPEN}{error}") from None
        self.batcher = warm_tier_batcher(self.tier, cascade.task.input_spec, limits)

    async def describe(self) -> list[str]:
        """What its members run on: lines to print at start-up."""
        return self.lines

    async def vote(self, ids: tuple[str, ...], x: Array, left_s: float, rule: DeferralRule) -> Vote | Failure:
        """As `TierBatcher.vote`; `left_s`: until the deadline, since clocks of two hosts differ."""
        return await _sent(self.batcher.vote(_batch(ids, x, left_s), rule))

    async def complete(self, ids: tuple[str, ...], x: Array, left_s: float, vote: Vote) -> Vote | Failure:
        """As `Tier.complete`."""
        return await _sent(self.batcher.alone(lambda: self.tier.complete(_batch(ids, x, left_s), vote)))

    def __del__(self) -> None:
        """Ray calls it once the replica's last call has ended."""
        if hasattr(self, "batcher"):
            self.batcher.close()
            self.tier.close()


async def _sent(pending: Awaitable[Vote]) -> Vote | Failure:
    """The vote without what is large and not needed again but for `complete`, or why there is none."""
    try:
        vote = await pending
        labels, scores = vote.ballots()
        return replace(vote, probabilities=(), member_indices=None, member_labels=labels, member_scores=scores)
    except CascadeError as error:
        return Failure.of(error)


def _batch(ids: tuple[str, ...], x: Array, left_s: float) -> Batch:
    return Batch(ids, x, deadline=time.monotonic() + left_s)


@dataclass(eq=False)
class ClusterTier:
    """A tier on the cluster, as the cascade takes it. Its votes go through its client alone."""

    name: str
    rule: DeferralRule
    batcher: ClusterTierClient
    n_tiers: int = 1
    waits: bool = False

    def vote(self, batch: Batch, rule: DeferralRule) -> Vote:
        raise NotImplementedError("the votes of a tier on the cluster go through its client")

    def complete(self, batch: Batch, vote: Vote) -> Vote:
        """From a thread of `ClusterTierClient.alone`."""
        return self.batcher.complete(batch, vote)

    def close(self) -> None:
        pass


class ClusterTierClient:
    """Calls of a tier's deployment, whose replica Ray picks for each.

    At most `at_once` calls are under way. What arrives meanwhile makes up the next, since a call costs a millisecond
    however few rows it has.

    Args:
        handle: the deployment's.
        max_batch: most rows in one call.
    """

    def __init__(self, name: str, handle: Any, *, at_once: int, max_batch: int) -> None:
        self.name = name
        self.at_once = at_once
        self.max_batch = max_batch
        self._handle = handle
        self._queue: deque[QueuedRows] = deque()
        self._calls: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lost: Any = import_runtime("ray.exceptions", "Ray Serve", INSTALL).RayActorError
        refusals = import_runtime("ray.serve.exceptions", "Ray Serve", INSTALL)
        self._too_many: Any = refusals.BackPressureError
        self._gone: Any = refusals.DeploymentUnavailableError

    async def vote(self, batch: Batch, rule: DeferralRule) -> Vote:
        """The tier's vote on these rows.

        Raises:
            TierTimeout: no vote by the batch's deadline.
            TierUnavailable: replica after replica died, or none can be started.
            CascadeError: what the replica itself raised.
        """
        entry = QueuedRows(batch, rule)
        self._queue.append(entry)
        self._advance()
        try:
            async with asyncio.timeout(_left(batch)):
                vote: Vote = await entry.answer
                return vote
        except TimeoutError:
            raise TierTimeout(self.name, "no answer of the cluster by the deadline") from None

    async def alone(self, work: Callable[[], Any]) -> Any:
        """`work` on a thread, from which `complete` can be called."""
        self._loop = asyncio.get_running_loop()
        return await asyncio.to_thread(work)

    def complete(self, batch: Batch, vote: Vote) -> Vote:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(self._ask(self._handle.complete, batch, vote), self._loop).result()

    def close(self) -> None:
        pass

    def _advance(self) -> None:
        while self._queue and len(self._calls) < self.at_once:
            group, _ = take_group(self._queue, self.max_batch)
            if group:
                call = asyncio.get_running_loop().create_task(answer_group(group, self._vote))
                self._calls.add(call)
                call.add_done_callback(self._end)

    def _end(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        self._advance()

    async def _vote(self, group: Sequence[QueuedRows]) -> list[Vote]:
        assert group[0].rule is not None
        return votes_of(group, await self._ask(self._handle.vote, merged_batch(group), group[0].rule))

    async def _ask(self, method: Any, batch: Batch, what: DeferralRule | Vote) -> Vote:
        """A vote changes nothing, so it does not matter whether a replica that died had done its work."""
        started = time.perf_counter()
        lost: Exception | None = None
        for attempt in range(ATTEMPTS):
            left_s = _left(batch)
            if left_s is not None and left_s <= 0:
                break
            try:
                call = method.remote(batch.ids, batch.x, math.inf if left_s is None else left_s, what)
                answer: Vote | Failure = await asyncio.wait_for(call, left_s)
            except TimeoutError:
                break
            except self._too_many:
                raise TierOverloaded(self.name, "its replicas have no room", retry_after_s=PAUSE_S) from None
            except self._gone as error:
                raise TierUnavailable(self.name, f"it has no replicas: {error}") from None
            except self._lost as error:
                lost = error
                await asyncio.sleep(PAUSE_S * 2**attempt)
                continue
            if isinstance(answer, Failure):
                raise answer.error(self.name)
            took = CallCost(times={"cluster_s": time.perf_counter() - started})
            return replace(answer, call=answer.call + took)
        if lost is not None:
            raise TierUnavailable(self.name, f"its replicas die: {str(lost).splitlines()[0]}")
        raise TierTimeout(self.name, "no answer of the cluster by the deadline")


def _left(batch: Batch) -> float | None:
    """Seconds to its deadline; None: it has none."""
    return None if batch.deadline == math.inf else batch.deadline - time.monotonic()
