"""REPORT.md of the CIFAR-10 models, and the search for a wider first tier.

Wrong agreements of tier 1 are what costs a cascade its accuracy: a tier behind cannot mend what never reaches it.
More voters of unlike architectures agree wrongly less often, so members of tier 2 may vote in tier 1 as well.

The rules of the cascade are chosen on calibration; test is looked at once, here, after everything is trained. All
numbers of the cascade come from the two traces, so that anybody can compute them again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from coe.cascade import Accounting, Decisions, average_cost
from coe.models import recorded
from coe.models.recorded import AGREEMENTS, Outputs, decide
from recipes.traces import Trace

from .training import N_VIEWS, NOT_BUNDLED, RECIPES, TEACHER, TIERS

BEST = f"{TEACHER}.onnx"
VOTERS = [f"{name}.onnx" for name, tier in TIERS.items() if tier <= 2]
INTERVAL = 1.96  # standard deviations: 95%


@dataclass(frozen=True, slots=True)
class Plan:
    """A unanimous first tier of these members, then the best model.

    Args:
        exits: (share decided in tier 1, share of the best model).
        gain: accuracy over the best model's; margin: half of its 95% interval, of the same examples.
        flops: accounting -> average against the best model's.
    """

    members: tuple[str, ...]
    accuracy: float
    exits: tuple[float, float]
    gain: float
    margin: float
    flops: Mapping[str, float]

    @property
    def dearest(self) -> float:
        return max(self.flops.values())

    @property
    def is_level(self) -> bool:
        """Whether its accuracy cannot be told from the best model's on these examples, or is better."""
        return self.gain + self.margin >= 0


def plan(trace: Trace, members: Sequence[str], flops: Mapping[str, float]) -> Plan:
    """What the cascade does on a trace."""
    said: list[Mapping[str, Outputs]] = [{name: trace.outputs(name) for name in tier} for tier in (members, [BEST])]
    run = decide(said, ["unanimous"])
    right, alone = run.labels == trace.labels, trace.members[BEST].predictions == trace.labels  # (B,) each
    lead = right.astype(np.float64) - alone
    first = float((run.exit_tier == 1).mean())
    costs = [[flops[name] for name in members], [flops[BEST]]]
    return Plan(
        members=tuple(members),
        accuracy=float(right.mean()),
        exits=(first, 1 - first),
        gain=float(lead.mean()),
        margin=float(INTERVAL * lead.std() / len(lead) ** 0.5),
        flops={kind.value: average_cost((first, 1 - first), costs, kind) / flops[BEST] for kind in Accounting},
    )


def plans(trace: Trace, flops: Mapping[str, float]) -> list[Plan]:
    """Every set of two or more members of tiers 1 and 2, the cheapest first."""
    sets = [chosen for size in range(2, len(VOTERS) + 1) for chosen in combinations(VOTERS, size)]
    return sorted((plan(trace, members, flops) for members in sets), key=lambda one: (one.dearest, -one.accuracy))


def frontier(found: Sequence[Plan]) -> list[Plan]:
    """Those that no cheaper one equals in accuracy, of plans in order of cost."""
    kept: list[Plan] = []
    for one in found:
        if not kept or one.accuracy > kept[-1].accuracy:
            kept.append(one)
    return kept


def choose(found: Sequence[Plan], least_decided: float) -> Plan:
    """The cheapest that is level with the best model, keeps enough in tier 1 and costs no more than it.

    The most accurate of those that keep enough and cost no more, where none is level.
    """
    fit = [one for one in found if one.exits[0] >= least_decided and one.dearest <= 1]
    level = [one for one in fit if one.is_level]
    return level[0] if level else max(fit or found, key=lambda one: one.accuracy)


def section(calibration: Trace, test: Trace, flops: Mapping[str, float], least_decided: float) -> list[str]:
    """The report's lines."""
    found = plans(calibration, flops)
    chosen = choose(found, least_decided)
    on_test = plan(test, chosen.members, flops)
    level = "is the cheapest that" if chosen.is_level else "is the most accurate; there is none that"
    ratios = latencies(test, on_test)
    return [
        "## A wider first tier",
        "",
        "The four tiers lose accuracy where tier 1 agrees on a wrong label. With more voters it does so less often:",
        f"every set of members of tiers 1 and 2, all of whom must agree, and then {BEST}; on calibration, those",
        "that no cheaper set equals. Cost: FLOPs against the best model's in the dearest accounting.",
        "",
        "| voters | accuracy | against the best model | decided in tier 1 | cost |",
        "| --- | ---: | ---: | ---: | ---: |",
        *(_row(one) for one in frontier(found)),
        "",
        f"Among those that decide {least_decided:.0%} in tier 1 and cost no more than {BEST},",
        f"{names(chosen)} {level}",
        f"cannot be told from it on calibration (95%; {len(found)} sets were compared, which flatters the chosen one).",
        "It is what `edge.yaml` holds. The test pictures had been looked at before this was chosen, for the four",
        "tiers above; nothing was chosen on them.",
        "",
        f"On test: {on_test.accuracy:.2%} right, {on_test.exits[0]:.1%} decided in tier 1; against {BEST}"
        f" {on_test.gain:+.2%} +- {on_test.margin:.2%}.",
        "",
        "| accounting | FLOPs against best | latency against best |",
        "| --- | ---: | ---: |",
        *(f"| {kind} | {on_test.flops[kind]:.2f}x | {ratio:.2f}x |" for kind, ratio in ratios.items()),
    ]


def names(one: Plan) -> str:
    """The members without their suffix, smallest first."""
    return ", ".join(name.removesuffix(".onnx") for name in one.members)


def latencies(trace: Trace, one: Plan) -> dict[str, float]:
    """Accounting -> average of median times, against the best model's."""
    seconds = {name: float(np.median(said.latency_s)) for name, said in trace.members.items()}
    costs = [[seconds[name] for name in one.members], [seconds[BEST]]]
    return {kind.value: average_cost(one.exits, costs, kind) / seconds[BEST] for kind in Accounting}


def _row(one: Plan) -> str:
    gain = f"{one.gain:+.2%} +- {one.margin:.2%}"
    return f"| {names(one)} | {one.accuracy:.2%} | {gain} | {one.exits[0]:.1%} | {one.dearest:.2f}x |"


N_TIERS = 4
LEAST_DECIDED = 0.6  # of the examples, in tier 1
Rules = tuple[str, ...]  # of all tiers but the last, which always answers


@dataclass(frozen=True, slots=True)
class File:
    """One exported file."""

    name: str
    tier: int
    size_bytes: int
    flops: int
    parameters: int
    calibration_accuracy: float
    test_accuracy: float


def member_files(tier: int) -> list[str]:
    """The files of a tier's members, as traces name them."""
    return [f"{name}.onnx" for name, number in TIERS.items() if number == tier]


def decide_tiers(trace: Trace, rules: Rules) -> Decisions:
    """The cascade over recorded answers."""
    tiers = [{name: trace.outputs(name) for name in member_files(number)} for number in range(1, N_TIERS + 1)]
    return recorded.decide(tiers, rules)


def accuracy(run: Decisions, trace: Trace) -> float:
    return float((run.labels == trace.labels).mean())


def shares(run: Decisions) -> list[float]:
    """The share of the examples that leave at each tier."""
    return [float((run.exit_tier == number).mean()) for number in range(1, N_TIERS + 1)]


def costs_of(files: Sequence[File]) -> list[list[float]]:
    """FLOPs of each tier's members."""
    known = {file.name: float(file.flops) for file in files}
    return [[known[name] for name in member_files(number)] for number in range(1, N_TIERS + 1)]


def latencies_of(trace: Trace) -> list[list[float]]:
    """Median seconds of each tier's members."""
    return [
        [float(np.median(trace.members[name].latency_s)) for name in member_files(number)]
        for number in range(1, N_TIERS + 1)
    ]


def chosen_rules(trace: Trace, flops: Sequence[Sequence[float]]) -> Rules:
    """The rules with most right answers on calibration, among those that keep enough in tier 1 and save FLOPs.

    Between equals, the cheaper; if none keeps enough, all are compared.
    """
    runs = {rules: decide_tiers(trace, rules) for rules in product(AGREEMENTS, repeat=N_TIERS - 1)}

    fit = [rules for rules, run in runs.items() if is_fit(run, flops)]
    return max(fit or runs, key=lambda rules: (accuracy(runs[rules], trace), -_dearest(runs[rules], flops)))


def is_fit(run: Decisions, flops: Sequence[Sequence[float]]) -> bool:
    """Whether enough leave at tier 1, and the average costs no more FLOPs than the best model in any accounting."""
    return shares(run)[0] >= LEAST_DECIDED and _dearest(run, flops) <= flops[-1][0]


def _dearest(run: Decisions, flops: Sequence[Sequence[float]]) -> float:
    return max(average_cost(shares(run), flops, accounting) for accounting in Accounting)


def ensemble_accuracy(trace: Trace, tier: int) -> float:
    """Of the plurality of a tier's members, where they must all answer."""
    labels = recorded.plurality_of({name: trace.outputs(name) for name in member_files(tier)})
    return float((labels == trace.labels).mean())


def render(
    files: Sequence[File], calibration: Trace, test: Trace, seconds: Mapping[str, float], n_train: int, note: str
) -> str:
    """The report, as Markdown.

    Args:
        files: every exported one.
        seconds: of one core, that each network's training took.
        n_train: pictures they learned from.
        note: what is to be known about the data.
    """
    flops = costs_of(files)
    rules = chosen_rules(calibration, flops)
    on_test = decide_tiers(test, rules)
    best = member_files(N_TIERS)[0]
    chosen = "most right answers among those" if is_fit(decide_tiers(calibration, rules), flops) else "none are such"
    return "\n".join(
        [
            "# CIFAR-10: what the models do",
            "",
            f"Written by `python -m recipes.cifar10`. Trained on {n_train:,} pictures; every choice was made on",
            f"{len(calibration.ids):,} calibration pictures; the {len(test.ids):,} test pictures are for this page",
            'alone. The data set: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.',
            f"{note}",
            "",
            *_files_table(files, test),
            "",
            "FLOPs are two for each multiply-add of the convolutions and linear layers, for one example. Latency:",
            "median of the test pictures, each alone, on one thread of one machine; compare, do not quote.",
            "Not bundled, for their size, and made again by the recipe:",
            f"{', '.join(_not_bundled(files))}.",
            "",
            *_ensembles_table(calibration, test),
            "",
            "## The four tiers on calibration",
            "",
            "| tier 1 | tier 2 | tier 3 | accuracy | leave at 1 / 2 / 3 / 4 |",
            "| --- | --- | --- | ---: | ---: |",
            *(_rules_row(calibration, each) for each in product(AGREEMENTS, repeat=N_TIERS - 1)),
            "",
            f"The best single model, {best}, is right on {calibration.accuracy(best):.2%}. Rules were wanted that",
            f"decide {LEAST_DECIDED:.0%} in tier 1 and cost no more FLOPs than it in any accounting; {chosen}:",
            f"{', '.join(rules)}.",
            "",
            "## The four tiers on test",
            "",
            f"{accuracy(on_test, test):.2%} right, {_shares(on_test)} leave at tier 1 / 2 / 3 / 4.",
            *_against_best(on_test, test, best),
            "",
            *_costs_table(on_test, flops, latencies_of(test)),
            "",
            *section(calibration, test, {file.name: float(file.flops) for file in files}, LEAST_DECIDED),
            "",
            *_training_table(seconds),
            "",
        ]
    )


def _not_bundled(files: Sequence[File]) -> list[str]:
    return [one.name for one in files if one.name.partition(".")[2] in NOT_BUNDLED.get(one.tier, ())]


def _files_table(files: Sequence[File], test: Trace) -> list[str]:
    def latency(file: File) -> str:
        said = test.members.get(file.name)
        return "" if said is None else f"{np.median(said.latency_s) * 1e6:.0f} us"

    return [
        "| file | tier | bytes | parameters | FLOPs | calibration | test | latency |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {f.name} | {f.tier} | {f.size_bytes:,} | {f.parameters:,} | {f.flops:,} "
            f"| {f.calibration_accuracy:.2%} | {f.test_accuracy:.2%} | {latency(f)} |"
            for f in files
        ),
    ]


def _ensembles_table(calibration: Trace, test: Trace) -> list[str]:
    lines = [
        "## The ensembles alone, and where all their members agree",
        "",
        "| tier | calibration | test | agree, calibration | right there | agree, test | right there |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for tier in range(1, N_TIERS):
        alone = [f"{ensemble_accuracy(trace, tier):.2%}" for trace in (calibration, test)]
        agreed = [part for trace in (calibration, test) for part in _agreed(trace, tier)]
        lines.append(f"| {' | '.join([str(tier), *alone, *agreed])} |")
    return lines


def _agreed(trace: Trace, tier: int) -> tuple[str, str]:
    said = np.stack([trace.members[name].predictions for name in member_files(tier)])  # (M, B)
    agree = (said == said[0]).all(axis=0)  # (B,)
    return f"{agree.mean():.1%}", f"{(said[0] == trace.labels)[agree].mean():.2%}"


def _rules_row(trace: Trace, rules: Rules) -> str:
    run = decide_tiers(trace, rules)
    return f"| {' | '.join(rules)} | {accuracy(run, trace):.2%} | {_shares(run)} |"


def _shares(run: Decisions) -> str:
    return " / ".join(f"{share:.1%}" for share in shares(run))


def _against_best(run: Decisions, test: Trace, best: str) -> list[str]:
    cascade, alone = run.labels == test.labels, test.members[best].predictions == test.labels  # (B,) each
    return [
        f"{best} alone is right on {alone.mean():.2%}: {(cascade & ~alone).sum()} pictures are right in the cascade",
        f"only, {(alone & ~cascade).sum()} in {best} only.",
    ]


def _costs_table(run: Decisions, flops: Sequence[Sequence[float]], seconds: Sequence[Sequence[float]]) -> list[str]:
    lines = [
        "| accounting | FLOPs | against best | latency | against best |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for accounting in Accounting:
        work, time_s = (average_cost(shares(run), costs, accounting) for costs in (flops, seconds))
        lines.append(
            f"| {accounting.value} | {work:.2e} | {work / flops[-1][0]:.2f}x "
            f"| {time_s * 1e6:.0f} us | {time_s / seconds[-1][0]:.2f}x |"
        )
    return lines


def _training_table(seconds: Mapping[str, float]) -> list[str]:
    return [
        "## How they were trained",
        "",
        "From seeded random weights, with bfloat16 arithmetic: another machine or number of threads gives other last",
        "bits, and so slightly other networks. Seconds are of one core, beside other programs. Where a network",
        f"learned from {TEACHER}, that is distillation: the share of the loss that {TEACHER}'s probabilities",
        f"for {N_VIEWS} views of each train picture have.",
        "",
        f"| network | tier | seed | epochs | share of {TEACHER} | seconds |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {name} | {TIERS[name]} | {RECIPES[name].seed} | {RECIPES[name].epochs} "
            f"| {RECIPES[name].teacher_share or 'none'} | {taken:.0f} |"
            for name, taken in seconds.items()
        ),
    ]
