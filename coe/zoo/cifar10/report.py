"""REPORT.md: how good the files are, alone and as a cascade, on calibration and on test.

The rules of the cascade are chosen on calibration; test is looked at once, here, after everything is trained. All
numbers of the cascade come from the two traces, so that anybody can compute them again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from coe.cascade import Accounting, Decisions, average_cost
from coe.zoo import recorded
from coe.zoo.cifar10 import wide
from coe.zoo.cifar10.bundle import NOT_BUNDLED
from coe.zoo.cifar10.train import N_VIEWS, RECIPES, TEACHER, TIERS
from coe.zoo.recorded import AGREEMENTS
from coe.zoo.trace import Trace

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


def decide(trace: Trace, rules: Rules) -> Decisions:
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
    runs = {rules: decide(trace, rules) for rules in product(AGREEMENTS, repeat=N_TIERS - 1)}

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
    on_test = decide(test, rules)
    best = member_files(N_TIERS)[0]
    chosen = "most right answers among those" if is_fit(decide(calibration, rules), flops) else "none are such"
    return "\n".join(
        [
            "# CIFAR-10: what the models do",
            "",
            f"Written by `python -m coe.zoo.cifar10`. Trained on {n_train:,} pictures; every choice was made on",
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
            *wide.section(calibration, test, {file.name: float(file.flops) for file in files}, LEAST_DECIDED),
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
    run = decide(trace, rules)
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
