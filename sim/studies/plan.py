"""`coe-sim plan`: what to run where, chosen and certified on labelled predictions, and what that came to on others."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe import zoo
from coe.calibration import Bound, Calibration, TableMember
from coe.calibration.bound import examples_needed, share_interval
from coe.calibration.choose import (
    FEW,
    Budget,
    Candidate,
    Certifier,
    Choice,
    Panel,
    System,
    Tiers,
    best_single,
    candidates,
    cheapest_certified,
    front,
    most_accurate,
    wrong_together,
)
from coe.cascade import Accounting, ConfigError
from coe.config.link import open_link
from coe.config.manifest import read_manifest
from sim import arguments
from sim.output import Part, Progress, Table, write_json
from sim.sweep import EnsembleVotes
from sim.traces import Costs, Trace, pick, read_costs

from .candidates import n_labels_of, panel_of, sequences
from .record import read_data, record
from .replay import lead

MOST_COST = 0.95  # of the reference's
MOST_SEQUENCES = 2000
TIMES = {"flops": "FLOPs", "latency_s": "time", "layers": "layers"}


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a system may cost and must promise.

    Args:
        on_device: models that may run on the device; None: nothing is known of a device.
        max_cost: average cost against the reference's; max_sent: share that leaves the device; max_latency_s: average.
        epsilon, delta: the bound: at least as accurate as the reference less epsilon, with probability 1 - delta.
        certified: the cheapest that is certified; False: the most accurate within the limits.
        reference: the single model compared with; None: the most accurate (of those that labels cannot tell apart, the
            dearest), and the bound is against every model.
        n_calibration: labelled examples to choose and certify on, at most half of all; None: half.
    """

    on_device: Sequence[str] | None = None
    max_cost: float = MOST_COST
    max_sent: float | None = None
    max_latency_s: float | None = None
    accounting: Accounting | None = None
    epsilon: float = 0.01
    delta: float = 0.1
    certified: bool = False
    reference: str | None = None
    n_calibration: int | None = None
    most: int = MOST_SEQUENCES
    seed: int = 0
    link_s: float = 0.0  # of one call to another machine, beside the latencies of the models


@dataclass(frozen=True, slots=True)
class Tested:
    """A choice over the examples that had no part in it: right (n,) and exit_tier (n,) from 0."""

    choice: Choice
    right: NDArray[np.bool_]
    exit_tier: NDArray[np.intp]

    @property
    def shares(self) -> list[float]:
        return self.choice.system.shares(self.exit_tier)


@dataclass(frozen=True)
class Plan:
    """What was chosen, and from what.

    Args:
        reference_right: (n,) where the reference is right, on the test examples.
        plain: the best plain agreement within the limits; None: there is none.
        found: the front, and refused: in words, why not something else.
    """

    trace: Trace
    wishes: Wishes
    costs: Costs
    accounting: Accounting
    reference: str
    reference_right: NDArray[np.bool_]
    n_calibration: int
    chosen: Tested
    plain: Tested | None
    found: Sequence[Candidate]
    wrong_together: tuple[float, float] | None
    ranked: Panel
    test: Panel

    def cost(self, tested: Tested) -> dict[str, float]:
        """By accounting, against the reference's."""
        return {
            kind.value: float(np.dot(tested.shares, self.charges(tested.choice.system.tiers, kind)))
            for kind in Accounting
        }

    def charges(self, tiers: Tiers, kind: Accounting) -> NDArray[np.float64]:
        return self.costs.charges(tiers, kind) / self.costs.of[self.reference]

    def kept(self, tested: Tested) -> float | None:
        """The share of the test examples that is answered on the device, or by the first tier of several."""
        tiers = tested.choice.system.tiers
        if self.wishes.on_device is None:
            return tested.shares[0] if len(tiers) > 1 else None
        return float(sum(tested.shares[: n_on_device(tiers, self.wishes.on_device)]))


def n_on_device(tiers: Tiers, on_device: Sequence[str]) -> int:
    """Tiers from the first on whose members may all run on the device."""
    place = 0
    while place < len(tiers) and set(tiers[place]) <= set(on_device):
        place += 1
    return place


def make_plan(trace: Trace, costs: Sequence[Costs], wishes: Wishes, progress: Progress) -> Plan:
    """Choose on one quarter of twice `n_calibration`, certify on the next, report on the rest."""
    rng = np.random.default_rng(wishes.seed)
    order = rng.permutation(len(trace))
    n = min(wishes.n_calibration or len(trace), len(trace) // 2)
    if n < 4:
        raise ConfigError([f"TRACE: expected 8 examples at least, got {len(trace)} (record more)"])
    n_labels = n_labels_of(trace)
    ranked, unseen, test = (
        panel_of(EnsembleVotes(trace.take(rows)), n_labels) for rows in (order[: n // 2], order[n // 2 : n], order[n:])
    )
    reference = wishes.reference or best_single(ranked, costs[0].of)
    against = list(trace.models) if wishes.reference is None else [wishes.reference]
    accounting = wishes.accounting or costs[0].usual_accounting
    if costs[0].of[reference] <= 0:
        raise ConfigError([f"--costs: expected a cost above 0 of the reference {reference}, got 0 (write it)"])
    budgets = _budgets(costs, reference, accounting, wishes)
    certifier = Certifier(ranked, unseen, reference, against, wishes.epsilon, wishes.delta)
    tried = sequences(dict(costs[0].of), wishes.most, rng)
    progress.start("ranking tiers", len(tried))
    every = candidates(ranked, tried, budgets, progress.show)
    progress.end()
    found = front(every)
    choose: Callable[[Sequence[Candidate], Certifier], Choice | None]
    choose = cheapest_certified if wishes.certified else most_accurate
    choice = choose(found, certifier) or _reference_alone(reference, found, certifier)
    plain = most_accurate(front([one for one in every if one.system.rule == "agreement"]), certifier)
    return Plan(
        trace, wishes, costs[0], accounting, reference, test.right(reference), n,
        _tested(choice, test), None if plain is None else _tested(plain, test), found,
        wrong_together(ranked, reference, costs[0].of), ranked, test,
    )  # fmt: skip


def _tested(choice: Choice, panel: Panel) -> Tested:
    return Tested(choice, *choice.system.decide(panel))


def _reference_alone(reference: str, found: Sequence[Candidate], certifier: Certifier) -> Choice:
    """The reference, with the labels after which the best of the front would do instead."""
    alone = certifier.choice(System("single", ((reference,),)), float(certifier.ranked.right(reference).mean()))
    best = most_accurate(found, certifier)
    needed = None if best is None else best.bound.labels_needed
    return replace(alone, bound=replace(alone.bound, labels_needed=needed))


def _budgets(costs: Sequence[Costs], reference: str, accounting: Accounting, wishes: Wishes) -> list[Budget]:
    budgets = [Budget(lambda tiers: costs[0].charges(tiers, accounting) / costs[0].of[reference], wishes.max_cost)]
    if wishes.max_sent is not None:
        if wishes.on_device is None:
            raise ConfigError(["--max-sent: expected --on-device beside it, got none (name the models it can run)"])
        on_device = wishes.on_device

        def sent(tiers: Tiers) -> list[float]:
            n_kept = n_on_device(tiers, on_device)
            return [float(place >= n_kept) for place in range(len(tiers))]

        budgets.append(Budget(sent, wishes.max_sent))
    if wishes.max_latency_s is not None:
        seconds = next((one for one in costs if one.kind == "latency_s"), None)
        if seconds is None:
            raise ConfigError(["--max-latency: expected latencies of the models, got none (latency_s: in --costs)"])

        def latency(tiers: Tiers) -> NDArray[np.float64]:
            n_kept = len(tiers) if wishes.on_device is None else n_on_device(tiers, wishes.on_device)
            calls = [wishes.link_s * (place >= n_kept) for place in range(len(tiers))]
            return seconds.charges(tiers, Accounting.REACH) + calls

        budgets.append(Budget(latency, wishes.max_latency_s))
    return budgets


def table_of(
    system: System, trace: Trace, n_labels: int, n_calibration: int, reference: str, bound: Bound | None = None
) -> Calibration:
    """The system as `calibration.json` holds it."""
    labels = tuple(map(str, range(n_labels)))
    tiers = tuple(tuple(map(TableMember, tier)) for tier in system.tiers)
    return Calibration(
        system.rule, trace.task or trace.name, labels, None, tiers, system.stages, system.written_thresholds,
        n_calibration, date.today().isoformat(), reference, bound,
    )  # fmt: skip


def _judged(plan: Plan, tested: Tested) -> dict[str, Any]:
    difference, low, high = lead(tested.right, plan.reference_right)
    bound = tested.choice.bound
    return {
        "system": tested.choice.system.as_text(),
        "rule": tested.choice.system.rule,
        "accuracy": float(tested.right.mean()),
        "accuracy_low_high": share_interval(int(tested.right.sum()), len(tested.right)),
        "difference": difference,
        "difference_low": low,
        "difference_high": high,
        "cost": plan.cost(tested),
        "kept": plan.kept(tested),
        "exit_shares": tested.shares,
        "certificate": {name: value for name, value in asdict(bound).items() if name != "n"},
    }


def in_words(plan: Plan) -> list[str]:
    """The plan in sentences, the one that matters most first."""
    choice, n = plan.chosen.choice, plan.n_calibration
    bound, sure = choice.bound, f"{1 - choice.bound.delta:.0%} confidence ({n:,} examples)"
    more = _more_labels(bound.labels_needed, n)
    name = "best single" if plan.wishes.reference is None else plan.reference
    if choice.system == System("single", ((plan.reference,),)):
        raised = "" if plan.wishes.certified else f", or raise --max-cost ({plan.wishes.max_cost:g})"
        what = "certified" if plan.wishes.certified else "found within the limits"
        lines = [f"run {plan.reference} alone{raised}: nothing cheaper can be {what}{more}"]
    else:
        kept = plan.kept(plan.chosen)
        where = "on the device" if plan.wishes.on_device is not None else "at the first tier"
        parts = [] if kept is None else [f"keeps {kept:.0%} {where}"]
        cost = plan.cost(plan.chosen)[plan.accounting.value]
        parts.append(f"{cost:.2f}x the {TIMES.get(plan.costs.kind, 'price')}")
        if bound.holds:
            parts.append(f"at least {name} - {100 * bound.epsilon:.1f} points with {sure}")
        else:
            parts.append(
                f"not shown to be within {100 * bound.epsilon:.1f} points of {name}, only within "
                f"{max(-100 * bound.lower_bound, 0):.1f} with {sure}{more}"
            )
        lines = ["; ".join(parts), f"the system: {choice.system.as_text()}, by {choice.system.rule}"]
    wrong, own = plan.wrong_together or (0.0, 0.0)
    if wrong > own + bound.epsilon:
        lines.append(
            f"these models agree wrongly too often: where all that are cheaper than {plan.reference} agree, "
            f"{wrong:.1%} is wrong ({plan.reference} there: {own:.1%}), so plain agreement cannot keep its accuracy"
        )
    if n < FEW:
        half = n - n // 2
        size = next(k for k in (1, 2, 5, 10, 20, 50, 100) if k == 100 or examples_needed(k / 100)[0] <= half)
        lines.append(
            f"{n} labels are few: the {half} that certify can show {size}% at best, and only where none of them is "
            f"lost; {FEW} show more, 3,000 one point as a rule"
        )
    return lines


def _more_labels(needed: int | None, n: int) -> str:
    if needed is None:
        return "; more labels would hardly change that"
    return f"; about {needed - n:,} more labels would do" if needed > n else ""


def as_part(plan: Plan) -> Part:
    """The chapter; accuracies and costs are of the examples not used for calibration."""
    test = len(plan.reference_right)
    content: dict[str, Any] = {
        "trace": plan.trace.name,
        "n_calibration": plan.n_calibration,
        "n_test": test,
        "cost": plan.costs.kind,
        "accounting": plan.accounting.value,
        "reference": {"model": plan.reference, "accuracy": float(plan.reference_right.mean())},
        "chosen": _judged(plan, plan.chosen),
        "plain": None if plan.plain is None else _judged(plan, plan.plain),
        "front": [
            {"system": one.system.as_text(), "rule": one.system.rule, "cost": one.cost, "accuracy": one.accuracy}
            for one in plan.found
        ],
        "words": in_words(plan),
    }
    lines = [[f"reference: {plan.reference}", f"{plan.reference_right.mean():.2%}", "", "1.00x", "", ""]]
    for title, tested in (("chosen", plan.chosen), ("plain agreement", plan.plain)):
        if tested is not None:
            judged, bound = _judged(plan, tested), tested.choice.bound
            lines.append([
                f"{title}: {judged['system']}", f"{judged['accuracy']:.2%}",
                f"{judged['difference']:+.2%} ({judged['difference_low']:+.2%} to {judged['difference_high']:+.2%})",
                f"{judged['cost'][plan.accounting.value]:.2f}x", " / ".join(f"{s:.1%}" for s in judged["exit_shares"]),
                f"{bound.lower_bound:+.2%}",
            ])  # fmt: skip
    note = (
        f"Chosen and certified on {plan.n_calibration:,} labelled examples, reported on {test:,} others; differences "
        f"with 95% intervals; cost by {plan.accounting.value}; bound: the least difference that the labelled examples "
        f"show with {1 - plan.wishes.delta:.0%} confidence."
    )
    header = ("system", "accuracy", "difference", "cost", "exits", "bound")
    table = Table("plan", "what to run", header, lines, note)
    return Part(f"{plan.trace.name}-plan", f"What to run: {plan.trace.name}", content["words"], [table], content)


NAME = "plan"
HELP = "what to run where, chosen and certified on labelled predictions"
DESCRIPTION = "Choose tiers, thresholds and rule under constraints on labelled predictions, with a stated bound."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trace", type=Path, nargs="?", metavar="TRACE", help=arguments.TRACES)
    parser.add_argument(
        "--models", metavar="WHAT",
        help="of a TRACE, these models alone: M1,M2; without one, models to record: a folder with a manifest or "
        "configs, a config, or a bundled task",
    )  # fmt: skip
    parser.add_argument("--data", metavar="DIR", help="labelled examples to record on, as coe-sim record reads them")
    parser.add_argument("--device", type=Path, metavar="JSON", help="what coe-edge bench --json printed on the device")
    parser.add_argument(
        "--link", type=Path, metavar="FILE", help="to the cloud: YAML as of link_model, a CSV, or Mahimahi's"
    )
    arguments.add_costs(parser)
    arguments.add_ranking(parser)
    parser.add_argument("--on-device", type=arguments.names, metavar="M1,M2", help="models that may run on the device")
    parser.add_argument(
        "--max-cost", type=arguments.ratio, default=MOST_COST, metavar="X",
        help="average cost at most, against the reference's; default 0.95",
    )  # fmt: skip
    parser.add_argument("--max-sent", type=arguments.share, metavar="SHARE", help="that may leave the device: 10%%")
    parser.add_argument("--max-latency", type=arguments.seconds, metavar="TIME", help="of an example, on average: 50ms")
    parser.add_argument(
        "--calibration", type=arguments.count, metavar="N",
        help="labelled examples to choose and certify on; default, and at most: half of all",
    )  # fmt: skip
    parser.add_argument("--reference", metavar="MODEL", help="the single model to match; default: the most accurate")
    parser.add_argument(
        "--certified", action="store_true", help="the cheapest that is certified, in place of the most accurate"
    )
    arguments.add_bound(parser)
    parser.add_argument("--most", type=arguments.count, default=MOST_SEQUENCES, metavar="N", help="tiers tried; 2000")
    arguments.add_output(parser, "calibration.json, plan.json, plan.html, PNG and, of models, pi.yaml and cloud.yaml")


def wishes_of(options: argparse.Namespace, trace: Trace) -> Wishes:
    """Raises ConfigError where a model named is not in the trace."""
    if options.reference is not None:
        arguments.check_models("--reference", [options.reference], trace)
    if options.on_device is not None:
        arguments.check_models("--on-device", options.on_device, trace)
    return Wishes(
        options.on_device, options.max_cost, options.max_sent,
        None if options.max_latency is None else options.max_latency[0],
        None if options.accounting is None else Accounting(options.accounting), options.bound, options.delta,
        options.certified, options.reference, options.calibration, options.most, options.seed,
    )  # fmt: skip


def run_command(options: argparse.Namespace) -> Part:
    from . import placement

    link = None if options.link is None else open_link(str(options.link))
    seconds = {} if options.device is None else placement.device_seconds(options.device)
    source = None
    if options.trace is not None:
        options.models = None if options.models is None else arguments.names(options.models)
        trace = arguments.open_trace(options)
        known = read_costs(options.costs, trace)
    else:
        if options.models is None or options.data is None:
            raise ConfigError(["expected a TRACE, or --models and --data to record one, got neither (name them)"])
        source = placement.read_source(options.models)
        data = read_data(options.data, source.models.task, None)
        trace = record(source.models, data, Progress(2), latencies=True, name=source.models.task.name)
        known = read_costs(options.costs, trace)
        known = [*(placement.flops_in(source) if options.costs is None else []), *known]
    known = placement.on_the_device(trace, known, seconds)
    if options.on_device is None:
        there = [name for name in (seconds or (source.on_device if source else ())) if name in trace.models]
        options.on_device = there or None
    size = 0.0 if trace.payload_bytes is None else float(trace.payload_bytes.mean())
    wishes = replace(wishes_of(options, trace), link_s=0.0 if link is None else link.mean_call_s(size))
    costs = pick(known, options.by)
    plan = make_plan(trace, costs, wishes, Progress(1))
    part = as_part(plan)
    choice = plan.chosen.choice
    table = table_of(choice.system, trace, plan.ranked.n_labels, plan.n_calibration, plan.reference, choice.bound)
    if source is not None or wishes.on_device is not None:
        placed = placement.Placed.of(plan, next((one for one in costs if one.kind == "latency_s"), None), link)
        part = placement.with_placement(part, placed)
    if options.out:
        write_json(options.out, "plan.json", part.content)
        if source is not None:
            table = placement.signed(table, source.models.task, source.models.specs)
            placement.write_configs(placed, source, table, options.out)
        elif trace.task is not None:
            manifest = read_manifest(zoo.find(trace.task))
            table = placement.signed(table, manifest.task, manifest.models.values())
        table.write(options.out / "calibration.json")
        figures = part.draw()
        part = replace(part, draw=lambda: figures)
        placement.write_page(part, options.out)
    return part
