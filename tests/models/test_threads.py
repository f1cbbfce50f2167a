"""A tier's threads: stated once, split over the members side by side, and not one more in the process."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import LinearModel
from tiny_models import bundled, linear_module, pixels, weights_file

from coe.cascade import Agreement, Batch, LocalTier
from coe.models import RunOptions, load
from coe.models.pool import MemberPool, plan_threads
from coe.models.torch import ARCHITECTURES

TASKS = Path("/proc/self/task")


def specs(shelf, *flops, name="a.onnx", data=None):
    spec = shelf.put(name, LinearModel().onnx() if data is None else data)
    return [replace(spec, name=f"m{index}", flops=of_it) for index, of_it in enumerate(flops)]


@pytest.mark.parametrize(
    ("budget", "flops", "each"),
    [
        (3, (1, 1, 1), (1, 1, 1)),
        (4, (1, 1, 1), (2, 1, 1)),
        (4, (1, 2, 1), (1, 2, 1)),  # a vote may wait for the slowest
        (6, (10, 1, 1), (4, 1, 1)),
        (7, (4, 2, 1), (4, 2, 1)),
        (5, (None, None, None), (2, 2, 1)),
        (4, (1, None, 9), (2, 1, 1)),  # where one is not known, all count alike
    ],
)
def test_side_by_side_a_budget_is_split_by_the_work_there_is(shelf, budget, flops, each):
    plan = plan_threads(specs(shelf, *flops), budget, side_by_side=True)
    assert (plan.each, plan.at_once) == (each, 3)
    assert plan.describe() == f"side by side on {budget} threads: {'+'.join(map(str, each))}"


def test_with_fewer_threads_than_members_that_many_are_at_work_at_a_time(shelf):
    plan = plan_threads(specs(shelf, 1, 5, 1), 2, side_by_side=True)
    assert (plan.each, plan.at_once) == ((1, 1, 1), 2)
    assert plan.describe() == "side by side on 2 threads: 2 at a time"


def test_in_turn_each_member_has_the_whole_budget(shelf):
    plan = plan_threads(specs(shelf, 1, 5, 1), 4, side_by_side=False)
    assert (plan.each, plan.at_once) == ((4, 4, 4), 1)
    assert plan.describe() == "in turn, each on 4 threads"
    assert plan_threads(specs(shelf, 1, 5), 1, side_by_side=False).describe() == "in turn"


def test_side_by_side_on_one_thread_or_with_one_member_is_in_turn(shelf):
    assert plan_threads(specs(shelf, 1, 1), 1, side_by_side=True).at_once == 1
    alone = plan_threads(specs(shelf, 1), 4, side_by_side=True)
    assert (alone.at_once, alone.each) == (1, (4,))


def test_members_that_run_on_torch_have_the_same_number_each(shelf):
    plan = plan_threads(specs(shelf, 9, 1, 1, name="a.pt", data=weights_file()), 8, side_by_side=True)
    assert plan.each == (2, 2, 2)


FLOPS = st.none() | st.integers(1, 100)


@given(st.lists(FLOPS, min_size=2, max_size=6), st.integers(1, 20), st.booleans())
def test_whatever_is_at_work_at_a_time_never_exceeds_the_budget(flops, budget, side_by_side):
    spec = bundled("loom.onnx")
    plan = plan_threads([replace(spec, flops=of_it) for of_it in flops], budget, side_by_side=side_by_side)
    assert sum(sorted(plan.each, reverse=True)[: plan.at_once]) <= budget
    assert min(plan.each) >= 1


def live() -> set[str]:
    return set(os.listdir(TASKS))


@pytest.mark.skipif(not TASKS.is_dir(), reason="threads are counted in /proc")
@pytest.mark.parametrize(
    "files", [("loom.onnx", "stroke.onnx", "mosaic.onnx"), ("loom.tflite", "stroke.tflite", "mosaic.tflite")]
)
@pytest.mark.parametrize("budget", [2, 3, 4, 7])
def test_members_side_by_side_bring_no_more_threads_to_life_than_stated_their_runtimes_included(files, budget):
    models = [bundled(name) for name in files]
    batch = Batch(tuple(f"x{row}" for row in range(16)), pixels(16, 28, 28))
    load(models[0]).close()  # what a runtime starts once for the process is not the tier's
    before = live()
    plan = plan_threads(models, budget, side_by_side=True)
    members = [load(spec, RunOptions(threads=n)) for spec, n in zip(models, plan.each, strict=True)]
    tier = LocalTier(
        "tier", members, Agreement(Fraction(1)), early=False, pool=MemberPool.of("tier", members, plan.at_once)
    )
    try:
        for _ in range(5):
            tier.vote(batch, tier.rule)
        assert len(live() - before) == budget
    finally:
        tier.close()


@pytest.mark.skipif(not TASKS.is_dir(), reason="threads are counted in /proc")
def test_a_tier_in_turn_on_one_thread_brings_none_to_life():
    models = [bundled(name) for name in ("loom.onnx", "stroke.onnx")]
    load(models[0]).close()
    before = live()
    tier = LocalTier("tier", [load(spec) for spec in models], Agreement(Fraction(1)))
    tier.vote(Batch(("x",), pixels(1, 28, 28)), tier.rule)
    assert live() <= before
    tier.close()


def cpu_ns() -> dict[str, int]:
    """CPU time of each thread of this process so far."""
    return {thread: int((TASKS / thread / "schedstat").read_text().split()[0]) for thread in live()}


def at_work(run, seconds=0.1) -> tuple[float, set[str]]:
    """Cores that calling `run` over and over takes, and the threads that do the work."""
    run()
    before, started = cpu_ns(), time.perf_counter()
    while time.perf_counter() - started < seconds:
        run()
    taken_s = time.perf_counter() - started
    spent_s = {thread: (ns - before.get(thread, 0)) / 1e9 for thread, ns in cpu_ns().items()}
    total_s = sum(spent_s.values())
    return total_s / taken_s, {thread for thread, s in spent_s.items() if s > 0.02 * total_s}


@pytest.mark.skipif(not (TASKS.parent / "schedstat").is_file(), reason="a thread's CPU time is read from /proc")
@pytest.mark.parametrize(
    "files", [("loom.onnx", "stroke.onnx", "mosaic.onnx"), ("loom.tflite", "stroke.tflite", "mosaic.tflite")]
)
@pytest.mark.parametrize(("budget", "side_by_side"), [(1, False), (1, True), (2, False), (2, True)])
def test_no_more_threads_compute_than_a_tier_was_given(files, budget, side_by_side):
    models = [bundled(name) for name in files]
    batch = Batch(tuple(f"x{row}" for row in range(64)), pixels(64, 28, 28))
    plan = plan_threads(models, budget, side_by_side=side_by_side)
    members = [load(spec, RunOptions(threads=n)) for spec, n in zip(models, plan.each, strict=True)]
    at_once = plan.at_once > 1
    tier = LocalTier(
        "tier", members, Agreement(Fraction(1)), early=False, pool=MemberPool.of("tier", members, plan.at_once)
    )
    ready = members[0].prepare(batch.x)
    in_turn = [partial(member.predict, ready) for member in members]  # each has threads of its own, which then sleep
    try:
        for run in [partial(tier.vote, batch, tier.rule)] if at_once else in_turn:
            cores, computing = at_work(run)
            assert cores <= budget * 1.1
            if at_once:  # then the caller computes no model: it prepares, waits and counts the votes
                computing.discard(str(threading.get_native_id()))
            assert 1 <= len(computing) <= budget
    finally:
        tier.close()


def test_a_torch_member_computes_with_its_own_threads_whichever_was_loaded_last(shelf, monkeypatch):
    import torch

    seen = []

    class Telling(torch.nn.Sequential):
        def forward(self, x):
            seen.append(torch.get_num_threads())
            return super().forward(x)

    monkeypatch.setitem(ARCHITECTURES, "telling", lambda: Telling(*linear_module()))
    spec = shelf.put("a.pt", weights_file(), architecture="telling")
    before = torch.get_num_threads()
    try:
        two, one = load(spec, RunOptions(threads=2)), load(spec, RunOptions(threads=1))
        seen.clear()
        x = np.zeros((1, 1, 4, 4), dtype=np.float32)
        for member in (two, one, two):
            member.predict(x)
        assert seen == [2, 1, 2]
    finally:
        torch.set_num_threads(before)
