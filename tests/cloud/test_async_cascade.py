"""Requests decided together: each gets its own rows, as if it had been alone; and none waits for another's tier."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Broken, one_hot, rows, table_tier

from cloud.async_cascade import AsyncCascade, CascadeBatcher
from cloud.tier_batcher import TierBatcher
from coe.cascade import Agreement, Always, Batch, Cascade, LocalTier, Tier, TierFailed, TierOverloaded, TierTimeout
from coe.protocol.core import Decided

TWO_OF_THREE = Agreement(Fraction(2, 3))
N = 60
RANDOM = np.random.default_rng(7)
SMALL = [one_hot(RANDOM.integers(0, 4, N), 4) for _ in range(3)]
BEST = [one_hot(RANDOM.integers(0, 4, N), 4)]


def two_tiers() -> Cascade:
    return Cascade([table_tier(SMALL, TWO_OF_THREE, "small"), table_tier(BEST, Always(), "best")])


def run(
    work: Callable[[CascadeBatcher], Awaitable[Any]],
    cascade: Cascade | None = None,
    *,
    quick_rows: int = 64,
    max_queued: int = 1024,
    **limits: int,
) -> Any:
    """What `work` returns, given a batcher over `cascade` on a fresh event loop."""
    cascade = cascade or two_tiers()

    async def main() -> Any:
        with ThreadPoolExecutor(4) as threads:
            batchers = {
                tier.name: TierBatcher(tier, quick_rows=quick_rows, max_queued=max_queued) for tier in cascade.tiers
            }
            try:
                return await asyncio.wait_for(
                    work(CascadeBatcher(AsyncCascade(cascade, batchers, threads), **limits)), 20
                )
            finally:
                for batcher in batchers.values():
                    batcher.close()

    return asyncio.run(main())


def said(decided: Decided) -> list[list[float]]:
    served: Any = SimpleNamespace(labels=("a", "b", "c", "d"), n_tiers=2)
    names = ("label", "vote", "score", "exit_tier", "members", "tier_votes")
    return [np.nan_to_num(decided.column(name, served), nan=-1.0).tolist() for name in names]


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=20),
    max_batch=st.integers(1, 8),
    quick_rows=st.sampled_from([0, 2, 64]),
    pauses=st.lists(st.sampled_from([0, 0, 1, 2]), min_size=20, max_size=20),
)
@settings(max_examples=60)
def test_every_request_gets_its_own_rows_in_order_whatever_the_interleaving(sizes, max_batch, quick_rows, pauses):
    starts = [int(start) % (N - 9) for start in np.cumsum([0, *sizes[:-1]])]
    batches = [rows(size, start) for start, size in zip(starts, sizes, strict=True)]

    async def work(batcher: CascadeBatcher) -> Sequence[Decided]:
        async def ask(batch: Batch, pause: int) -> Decided:
            for _ in range(pause):
                await asyncio.sleep(0)
            return await batcher.decide(batch)

        return await asyncio.gather(*(ask(batch, pause) for batch, pause in zip(batches, pauses, strict=False)))

    answers = run(work, quick_rows=quick_rows, max_batch=max_batch)
    alone = [Decided(two_tiers().decide(batch)) for batch in batches]
    assert [said(one) for one in answers] == [said(one) for one in alone]


def test_requests_that_arrive_together_are_decided_together():
    async def work(batcher: CascadeBatcher) -> list[Decided]:
        return list(await asyncio.gather(*(batcher.decide(rows(1, row)) for row in range(10))))

    answers = run(work)
    assert {len(answer.decisions) for answer in answers} == {10}


def test_one_request_on_an_idle_server_is_decided_at_once():
    async def work(batcher: CascadeBatcher) -> float:
        await batcher.decide(rows(1))
        took = []
        for row in range(20):
            await asyncio.sleep(0.02)
            started = time.perf_counter()
            await batcher.decide(rows(1, row))
            took.append(time.perf_counter() - started)
        return sorted(took)[10]

    assert run(work) < 0.005


class Held:
    """A tier that answers when it is told to."""

    def __init__(self, tier: Tier) -> None:
        import threading

        self.tier, self.name, self.rule, self.n_tiers, self.waits = tier, tier.name, tier.rule, 1, False
        self.open = threading.Event()

    def vote(self, batch, rule):
        assert self.open.wait(20)
        return self.tier.vote(batch, rule)

    def complete(self, batch, vote):
        return self.tier.complete(batch, vote)

    def close(self) -> None:
        self.tier.close()


def test_a_request_that_left_at_tier_one_does_not_wait_for_those_that_go_on():
    small = [one_hot([0, 0]), one_hot([0, 1]), one_hot([0, 2])]  # row 0 agrees, row 1 does not
    held = Held(table_tier([one_hot([1, 1])], Always(), "best"))
    cascade = Cascade([table_tier(small, TWO_OF_THREE, "small"), held])

    async def work(batcher: CascadeBatcher) -> tuple[Decided, Decided]:
        stays = asyncio.ensure_future(batcher.decide(rows(1, 0)))
        goes_on = asyncio.ensure_future(batcher.decide(rows(1, 1)))
        answered = await asyncio.wait_for(stays, 10)
        assert not goes_on.done()
        held.open.set()
        return answered, await goes_on

    answered, went_on = run(work, cascade, quick_rows=0)
    served: Any = SimpleNamespace(n_tiers=2)
    assert answered.column("exit_tier", served).tolist() == [1]
    assert went_on.column("exit_tier", served).tolist() == [2]
    assert len(answered.decisions) == 2  # they were decided together all the same


class Picky:
    """A member that cannot answer an example of -1."""

    name, n_labels = "picky", 3

    def prepare(self, x):
        return x

    def predict(self, x):
        output = one_hot(np.abs(np.asarray(x).ravel()) % 3, 3)
        output[np.asarray(x).ravel() < 0] = np.nan
        return output

    def close(self) -> None:
        pass


def test_a_row_that_cannot_be_answered_is_its_own_callers_and_nobody_elses():
    cascade = Cascade([LocalTier("picky", [Picky()], Always())])
    bad = replace(rows(1), x=np.array([[-1]], dtype=np.int64))

    async def work(batcher: CascadeBatcher) -> list[Any]:
        asks = [rows(1, 1), bad, rows(1, 2)]
        return list(await asyncio.gather(*(batcher.decide(batch) for batch in asks), return_exceptions=True))

    first, refused, last = run(work, cascade)
    assert isinstance(refused, TierFailed)
    served: Any = SimpleNamespace(n_tiers=1)
    assert [first.column("label", served).tolist(), last.column("label", served).tolist()] == [[1], [2]]


def test_an_error_of_the_tier_reaches_everybody_who_asked():
    cascade = Cascade([Broken(TierTimeout("broken", "on fire"))])

    async def work(batcher: CascadeBatcher) -> list[Any]:
        return list(await asyncio.gather(*(batcher.decide(rows(1, row)) for row in range(3)), return_exceptions=True))

    assert [str(error) for error in run(work, cascade)] == ["tier broken: on fire"] * 3


def test_beyond_the_bounded_queue_requests_are_refused_with_a_hint_when_to_come_again():
    held = Held(table_tier([one_hot([0] * 20)], Always(), "best"))

    async def work(batcher: CascadeBatcher) -> tuple[list[Any], Exception]:
        asked = []
        for row in (0, 2, 4):  # one at the tier, two waiting for it
            asked.append(asyncio.ensure_future(batcher.decide(rows(2, row))))
            await asyncio.sleep(0.01)
        with pytest.raises(TierOverloaded, match="4 examples are waiting, at most 5 may") as caught:
            await batcher.decide(rows(2, 6))
        held.open.set()
        return [await answer for answer in asked], caught.value

    answers, refusal = run(work, Cascade([held]), quick_rows=0, max_queued=5)
    assert len(answers) == 3
    assert refusal.retry_after_s > 0


def test_an_idle_batcher_takes_a_request_larger_than_its_queue():
    async def work(batcher: CascadeBatcher) -> Decided:
        return await batcher.decide(rows(40))

    assert len(run(work, max_queued=4, max_batch=8, quick_rows=0).decisions) == 40


def test_a_deadline_that_has_passed_is_a_timeout_and_the_others_are_decided():
    async def work(batcher: CascadeBatcher) -> list[Any]:
        late = replace(rows(1, 1), deadline=time.monotonic() - 1)
        asks = [rows(1, 0), late, rows(1, 2)]
        return list(await asyncio.gather(*(batcher.decide(batch) for batch in asks), return_exceptions=True))

    first, timeout, last = run(work)
    assert isinstance(timeout, TierTimeout)
    assert len(first.decisions) == len(last.decisions) == 2


def test_a_caller_that_goes_away_takes_nobody_with_it():
    async def work(batcher: CascadeBatcher) -> Decided:
        gone = asyncio.ensure_future(batcher.decide(rows(1, 0)))
        stays = asyncio.ensure_future(batcher.decide(rows(1, 1)))
        await asyncio.sleep(0)
        gone.cancel()
        return await stays

    assert run(work).column("exit_tier", SimpleNamespace(n_tiers=2)).shape == (1,)


def test_where_a_later_tier_fails_the_answers_of_the_one_before_stand_and_say_so():
    cascade = Cascade([table_tier(SMALL, TWO_OF_THREE, "small"), Broken(TierTimeout("best", "too late"))])

    async def work(batcher: CascadeBatcher) -> list[Decided]:
        return list(await asyncio.gather(*(batcher.decide(rows(1, row)) for row in range(8))))

    answers = run(work, cascade)
    alone = cascade.decide(rows(8))
    served: Any = SimpleNamespace(n_tiers=2)
    labels = [answer.column("label", served).tolist() for answer in answers]
    assert labels == [[label] for label in alone.labels.tolist()]
    reasons = [answer.column("degraded", served).tolist() for answer in answers]
    assert reasons == [[(reason or "").encode()] for reason in alone.reasons()]
    assert any(reason != [b""] for reason in reasons)
