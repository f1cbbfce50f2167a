"""`coe-sim certify`: the bound of one cascade alone; or, without data, what a number of labels can show."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from coe.calibration.bound import examples_needed, is_certified, lower_bound, power, sample_size
from coe.cascade import ConfigError
from sim import arguments
from sim.output import Part, Table
from sim.traces import Trace, parse_tiers

from .replay import replay_trace

NAME = "certify"
HELP = "the bound of one cascade on labelled predictions, or power and sample size without data"
DESCRIPTION = "Test that a cascade, chosen on other examples, is at least as accurate as a model, less a bound."
BEST = "best"


def bounds(trace: Trace, right: np.ndarray, models: list[str], epsilon: float, delta: float, seed: int) -> Part:
    """The test against each model: all must pass, so no correction is needed."""
    order = np.random.default_rng(seed).permutation(len(trace))
    lines: list[list[str]] = []
    against: dict[str, dict[str, Any]] = {}
    for name in models:
        x = (right.astype(int) - trace.right(name))[order]
        gain, loss = int((x > 0).sum()), int((x < 0).sum())
        holds, low = is_certified(x, epsilon, delta), lower_bound(x, delta)
        needed = sample_size(gain / len(x), loss / len(x), epsilon, delta)
        against[name] = {"holds": holds, "lower_bound": low, "gain": gain, "loss": loss, "labels_needed": needed}
        lines.append([name, f"{x.mean():+.2%}", f"{low:+.2%}", str(gain), str(loss), "yes" if holds else "no",
                      "-" if needed is None else f"{needed:,}"])  # fmt: skip
    content: dict[str, Any] = {
        "n": len(trace), "accuracy": float(right.mean()), "epsilon": epsilon, "delta": delta,
        "holds": all(one["holds"] for one in against.values()),
        "lower_bound": min(one["lower_bound"] for one in against.values()), "against": against,
    }  # fmt: skip
    than = "every single model" if len(models) > 1 else models[0]
    shown = f"{'shown' if content['holds'] else 'not shown'} with {1 - delta:.0%} confidence ({len(trace):,} examples)"
    verdict = (
        f"at least {than} - {100 * epsilon:.1f} points: {shown}; the bound is {content['lower_bound']:+.2%}. It holds "
        "for examples drawn as these were, for a cascade that was not chosen on them, on average over labels."
    )
    header = ("against", "difference", "bound", "gained", "lost", "holds", "examples for 80% power")
    table = Table("bound", "bounds", header, lines)
    return Part(f"{trace.name}-certify", f"The bound: {trace.name}", [verdict], [table], content)


def without_data(n: int, gain: float, loss: float, epsilon: float, delta: float) -> Part:
    """Power at `n` labels, and the labels for 80%, where the cascade alone is right (wrong) on these shares."""
    at, needed = power(n, gain, loss, epsilon, delta), sample_size(gain, loss, epsilon, delta)
    exact = dict(zip((0, 1, 3), examples_needed(epsilon, level=1 - delta), strict=True))
    content = {"n": n, "gain": gain, "loss": loss, "epsilon": epsilon, "delta": delta, "power": at,
               "labels_needed": needed, "exact_binomial": exact}  # fmt: skip
    size = "no number of labels shows it" if needed is None else f"{needed:,} labels show it four times in five"
    verdict = [
        f"{n:,} labels show a difference above -{100 * epsilon:.1f} points with {1 - delta:.0%} confidence in {at:.0%} "
        f"of draws, where the cascade alone is right on {gain:.1%} and wrong on {loss:.1%}; {size}",
        "by exact binomial, with 0 / 1 / 3 losses seen: " + " / ".join(f"{one:,}" for one in exact.values()),
    ]
    return Part("certify", "What labels can show", verdict, [], content)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trace", nargs="?", metavar="TRACE", help=f"{arguments.TRACES}; none: power and sample size")
    parser.add_argument("--models", type=arguments.names, metavar="M1,M2", help="these models of the trace alone")
    parser.add_argument("--tiers", nargs="+", metavar="TIER", help="first to last, as of replay: 'a,b,c@2/3' 'd'")
    parser.add_argument("--against", default=BEST, metavar="MODEL", help="default: best, that is every single model")
    arguments.add_bound(parser)
    parser.add_argument("--labels", type=arguments.count, default=3000, metavar="N", help="without data; default 3000")
    parser.add_argument("--gain", type=arguments.share, default=0.01, help="only the cascade is right: without data")
    parser.add_argument("--loss", type=arguments.share, default=0.01, help="only the model is right: without data")
    parser.add_argument("--seed", type=arguments.seed, default=0, help="of the order of the examples; default 0")
    arguments.add_output(parser, "JSON and a chapter of report.html")


def run_command(options: argparse.Namespace) -> Part:
    if options.trace is None:
        return without_data(options.labels, options.gain, options.loss, options.bound, options.delta)
    if options.tiers is None:
        raise ConfigError(["--tiers: expected the tiers to certify, got none (write 'a,b,c@2/3' 'd')"])
    trace = arguments.open_trace(options)
    if options.against != BEST:
        arguments.check_models("--against", [options.against], trace)
    specs, _ = parse_tiers(options.tiers, trace)
    models = list(trace.models) if options.against == BEST else [options.against]
    right = replay_trace(trace, specs).right
    return bounds(trace, right, models, options.bound, options.delta, options.seed)
