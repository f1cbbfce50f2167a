"""Replay of 50,000 examples through 1,000 cascades: the vectorised engine, beside the plain path on a few.

Prints JSON. A synthetic trace of 12 models of rising accuracy, 100 labels; cascades of two to four tiers with one to
five members each. `seconds` is everything, from the trace to accuracy and exits; the plain path is `coe.cascade` on
`--plain` of the same cascades, extrapolated, and its figures are compared to the last example.
"""

from __future__ import annotations

import argparse
import json
import time
from fractions import Fraction

import numpy as np

from coe.cascade import Agreement
from sim.sweep import EnsembleVotes, Outcomes, sweep
from sim.traces import Answers, TierSpec, Trace, to_cascade

N_MODELS, N_LABELS = 12, 100
Shape = list[tuple[tuple[str, ...], int]]  # members and votes needed, tier by tier


def make_trace(n: int, rng: np.random.Generator) -> Trace:
    """Models that share what is hard: an example's difficulty decides who is right."""
    labels = rng.integers(0, N_LABELS, n).astype(np.int32)
    difficulty = rng.random(n)
    models = {}
    for place in range(N_MODELS):
        skill = 0.55 + 0.35 * place / (N_MODELS - 1)
        right = difficulty + rng.normal(0, 0.2, n) < skill
        predictions = np.where(right, labels, rng.integers(0, N_LABELS, n)).astype(np.int32)
        models[f"model-{place:02d}"] = Answers(predictions, rng.random(n, dtype=np.float32))
    return Trace("synthetic", tuple(map(str, range(n))), labels, models)


def make_shapes(count: int, rng: np.random.Generator) -> list[Shape]:
    names = [f"model-{place:02d}" for place in range(N_MODELS)]
    shapes: list[Shape] = []
    for _ in range(count):
        n_tiers = int(rng.integers(2, 5))
        order = rng.permutation(N_MODELS - 1)
        tiers: Shape = []
        for number in range(n_tiers - 1):
            size = int(rng.integers(2, 6)) if number < 2 else 1
            chosen, order = np.sort(order[:size]), order[size:]
            tiers.append((tuple(names[at] for at in chosen), int(rng.integers(1, size + 1))))
        shapes.append([*tiers, ((names[-1],), 0)])
    return shapes


def vectorised(trace: Trace, shapes: list[Shape]) -> Outcomes:
    ensemble_votes = EnsembleVotes(trace)
    ensemble_votes.count_all(members for shape in shapes for members, _ in shape)
    return sweep(
        [[ensemble_votes.agreement(members, needed) for members, needed in shape] for shape in shapes], len(trace)
    )


def plain(trace: Trace, shape: Shape) -> tuple[list[int], int]:
    """Exits per tier and right answers, through `coe.cascade`."""
    specs = [TierSpec(members, Agreement(Fraction(max(needed, 1), len(members)))) for members, needed in shape]
    decided = to_cascade(specs, trace).decide(trace.batch())
    exits = np.bincount(decided.exit_tier - 1, minlength=len(shape))
    return [int(count) for count in exits], int((decided.labels == trace.labels).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=50_000)
    parser.add_argument("--configurations", type=int, default=1000)
    parser.add_argument("--plain", type=int, default=10)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    trace = make_trace(options.examples, rng)
    shapes = make_shapes(options.configurations, rng)
    started = time.perf_counter()
    outcomes = vectorised(trace, shapes)
    took = time.perf_counter() - started
    started = time.perf_counter()
    expected = [plain(trace, shape) for shape in shapes[: options.plain]]
    plain_s = (time.perf_counter() - started) / max(options.plain, 1) * options.configurations
    equal = all(
        exits == outcomes.exits[row, : len(exits)].tolist() and right == len(trace) - outcomes.wrong[row].sum()
        for row, (exits, right) in enumerate(expected)
    )
    result = {
        "examples": options.examples,
        "configurations": options.configurations,
        "distinct_ensembles": len({members for shape in shapes for members, _ in shape}),
        "seconds": round(took, 3),
        "plain_seconds_extrapolated": round(plain_s, 1),
        "times_faster": round(plain_s / took, 1),
        "equal_to_plain": equal,
        "within_bound": took < 2.0,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
