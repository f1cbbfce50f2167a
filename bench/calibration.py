"""The default choice of `coe-sim plan` on the shared traces, over draws of 3,000 labels: accuracy, cost, bounds.

    python bench/calibration.py --draws 10            # the table of docs/results.md
    python bench/calibration.py --draws 200 --bounds  # how often a stated 90% bound holds

Each draw takes other examples to choose and certify on; accuracies and costs are on all the rest.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from coe.calibration.bound import is_certified, lower_bound, share_interval
from sim.output import Progress, aligned
from sim.studies.plan import Wishes, make_plan
from sim.traces import Costs, Trace, read_costs, read_trace

DATA = Path(os.environ.get("COE_DATA") or Path(__file__).parents[2] / "shared" / "data")
PRICES = "traces_frugalml_prices.tsv"
TRACES = {
    "emotion (FERPLUS)": ("traces_frugalml_ferplus.parquet", PRICES),
    "emotion (RAFDB)": ("traces_frugalml_rafdb.parquet", PRICES),
    "sentiment (IMDB)": ("traces_frugalml_imdb.parquet", PRICES),
    "sentiment, zh (WAIMAI)": ("traces_frugalml_waimai.parquet", PRICES),
    "speech commands": ("traces_frugalml_command.parquet", PRICES),
    "spoken digits": ("traces_frugalml_digit.parquet", PRICES),
    "ImageNet": ("traces_imagenet_val.parquet", "imagenet"),
    "IMDb exits (no scores)": ("traces_imdb_multiexit.parquet", "imdb-multiexit"),
}


class Silent(Progress):
    def start(self, title: str, total: int) -> None: ...
    def show(self, done: int) -> None: ...
    def end(self) -> None: ...


def opened(name: str) -> tuple[Trace, list[Costs]]:
    file, costs = TRACES[name]
    trace = read_trace(DATA / file)
    return trace, read_costs(str(DATA / costs) if costs == PRICES else costs, trace)


def draw(name: str, seed: int, known: dict[str, Any] = {}) -> dict[str, Any]:  # noqa: B006 -- one reading a process
    if name not in known:
        known.clear()
        known[name] = opened(name)
    trace, costs = known[name]
    plan = make_plan(trace, costs, Wishes(n_calibration=3000, seed=seed), Silent(1))
    found: dict[str, Any] = {"n": plan.n_calibration, "reference": plan.reference}
    order = np.random.default_rng(seed).permutation(len(trace))[plan.n_calibration :]
    best = max(trace.take(order).accuracy(model) for model in trace.models)  # of those reported on, with hindsight
    for kind, tested in (("chosen", plan.chosen), ("plain", plan.plain)):
        if tested is not None:
            bound = tested.choice.bound
            found[kind] = (float(tested.right.mean()) - best, plan.cost(tested)[plan.accounting.value],
                           bound.lower_bound, bound.holds, tested.choice.system.rule)  # fmt: skip
    return found


def draws(name: str, n: int, workers: int) -> Iterator[dict[str, Any]]:
    if workers == 1:
        yield from map(partial(draw, name), range(n))
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(partial(draw, name), range(n), chunksize=max(n // workers, 1))


def row(name: str, found: list[dict[str, Any]]) -> list[str]:
    cells = [name, f"{found[0]['n']:,}"]
    for kind in ("chosen", "plain"):
        own = [one[kind] for one in found if kind in one]
        if not own:
            cells += ["none", "", ""]
            continue
        difference, cost = (np.array([one[place] for one in own]) for place in (0, 1))
        half = 2.26 * difference.std(ddof=1) / len(own) ** 0.5 if len(own) > 1 else float("nan")
        cells += [f"{100 * difference.mean():+.2f} +- {100 * half:.2f}", f"{100 * difference.min():+.2f}",
                  f"{cost.mean():.2f} (to {cost.max():.2f})"]  # fmt: skip
    held = sum(one["chosen"][2] <= one["chosen"][0] for one in found)
    low, high = share_interval(held, len(found))
    rules = sorted({one["chosen"][4] for one in found})
    certified = sum(one["chosen"][3] for one in found)
    return [*cells, f"{certified}", f"{held} of {len(found)} ({low:.0%} to {high:.0%})", ", ".join(rules)]


HEADER = ("trace", "labels", "chosen", "least", "cost", "plain agreement", "least", "cost", "within 1.0", "bound holds",
          "rules")  # fmt: skip


def boundary(n: int, repeats: int) -> str:
    """Type-1 error in simulation at the boundary: the cascade is worse by just epsilon."""
    lines = []
    for gain in (0.0, 0.005, 0.02, 0.05):
        rng = np.random.default_rng(0)
        p = [gain + 0.01, 1 - 2 * gain - 0.01, gain]
        wrong = held = 0
        for _ in range(repeats):
            x = rng.choice([-1, 0, 1], n, p=p)
            wrong += is_certified(x, 0.01, 0.1)
            held += lower_bound(x, 0.1) <= -0.01
        low, high = share_interval(wrong, repeats)
        lines.append([f"{gain:.1%}", f"{gain + 0.01:.1%}", f"{wrong / repeats:.1%} ({low:.1%} to {high:.1%})",
                      f"{held / repeats:.1%}"])  # fmt: skip
    return aligned(("gained", "lost", "type-1 error, delta 10%", "bound holds"), lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--traces", nargs="+", default=list(TRACES))
    parser.add_argument("--bounds", action="store_true", help="the simulation at the boundary as well")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    lines = []
    for name in options.traces:
        started = time.perf_counter()
        lines.append(row(name, list(draws(name, options.draws, options.workers))))
        print(" | ".join(lines[-1]), f"({(time.perf_counter() - started) / options.draws:.1f} s a draw)", flush=True)
    print("\n" + aligned(HEADER, lines))
    if options.bounds:
        print("\n" + boundary(1500, 1000))


if __name__ == "__main__":
    main()
