"""REPORT.md of the CIFAR-10 models, and the search for a wider first tier.

Wrong agreements of tier 1 are what costs a cascade its accuracy: a tier behind it cannot correct what never reaches it.
More voters of unlike architectures agree wrongly less often, so members of tier 2 may vote in tier 1 as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from recipes.bundle import read_entries
from recipes.report import (
    Members,
    Rules,
    by_agreement,
    cascade_section,
    files_table,
    read_traces,
    replayed,
    rules_table,
    table,
    write_report,
)
from sim.studies.replay import Replayed, lead, with_limits
from sim.traces import Costs, Trace

from .training import N_VIEWS, RECIPES, TEACHER, TIERS

BEST = f"{TEACHER}.onnx"
VOTERS = [f"{name}.onnx" for name, tier in TIERS.items() if tier <= 2]
N_TIERS = 4
LEAST_DECIDED = 0.6  # of the examples, in tier 1


@dataclass(frozen=True, slots=True)
class Plan:
    """A unanimous first tier of these members, then the best model.

    Args:
        exits: (share decided in tier 1, share of the best model).
        gain: accuracy over the best model's; limits: its 95% interval, of the same examples.
        flops: accounting -> average against the best model's.
    """

    members: tuple[str, ...]
    accuracy: float
    exits: tuple[float, float]
    gain: float
    limits: tuple[float, float]
    flops: Mapping[str, float]

    @property
    def dearest(self) -> float:
        return max(self.flops.values())

    @property
    def is_level(self) -> bool:
        """True if its accuracy cannot be told from the best model's on these examples, or is better."""
        return self.limits[1] >= 0


def plan(trace: Trace, members: Sequence[str], flops: Mapping[str, float]) -> Plan:
    """What the cascade does on a trace."""
    run = replayed(trace, [members, [BEST]], ("unanimous",))
    gain, *limits = lead(run.right, trace.right(BEST))
    costs = {kind: cost / flops[BEST] for kind, cost in run.average_costs(Costs("flops", flops)).items()}
    first, last = run.exits
    return Plan(tuple(members), run.accuracy, (first, last), gain, (limits[0], limits[1]), costs)


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


def member_files(tier: int) -> list[str]:
    """The files of a tier's members, as traces name them."""
    return [f"{name}.onnx" for name, number in TIERS.items() if number == tier]


FOUR_TIERS: Members = [member_files(number) for number in range(1, N_TIERS + 1)]


def chosen_rules(found: Mapping[Rules, Replayed], flops: Mapping[str, float]) -> Rules:
    """The rules with most right answers on calibration, among those that keep enough in tier 1 and save FLOPs.

    Between equals, the cheaper; if none keeps enough, all are compared.
    """
    fit = [rules for rules, run in found.items() if is_fit(run, flops)]
    return max(fit or found, key=lambda rules: (found[rules].accuracy, -_dearest(found[rules], flops)))


def is_fit(run: Replayed, flops: Mapping[str, float]) -> bool:
    """True if enough leave at tier 1, and the average costs no more FLOPs than the best model in any accounting."""
    return run.exits[0] >= LEAST_DECIDED and _dearest(run, flops) <= flops[BEST]


def _dearest(run: Replayed, flops: Mapping[str, float]) -> float:
    return max(run.average_costs(Costs("flops", flops)).values())


def flops_in(folder: Path) -> dict[str, float]:
    """FLOPs of each file of the manifest."""
    return {entry.file: float(entry.flops) for entry in read_entries(folder)}


def write(folder: Path, seconds: Mapping[str, float], n_train: int, note: str) -> None:
    """Writes REPORT.md, of the manifest and the traces in `folder`.

    Args:
        seconds: of one core, that each network's training took.
        n_train: pictures they learned from.
        note: what is to be known about the data.
    """
    calibration, test = read_traces(folder)
    flops = flops_in(folder)
    found = by_agreement(calibration, FOUR_TIERS)
    rules = chosen_rules(found, flops)
    best = "most right answers among those" if is_fit(found[rules], flops) else "none are such"
    lines = [
        f"Written by `python -m recipes.cifar10`. Trained on {n_train:,} pictures; every choice was made on",
        f"{len(calibration):,} calibration pictures; the {len(test):,} test pictures are for this page",
        'alone. The data set: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.',
        note,
        "",
        *files_table(folder, calibration, test),
        "",
        *rules_table(found),
        "",
        f"The best single model, {BEST}, is right on {calibration.accuracy(BEST):.2%}. Rules were wanted that",
        f"decide {LEAST_DECIDED:.0%} in tier 1 and cost no more FLOPs than it in any accounting; {best}:",
        f"{', '.join(rules)}.",
        "",
        *cascade_section("## The four tiers on test", "cifar10", folder, FOUR_TIERS, rules),
        "",
        *wider_section(folder, calibration, flops),
        "",
        *training_section(seconds),
    ]
    write_report(folder, "CIFAR-10", lines)


def wider_section(folder: Path, calibration: Trace, flops: Mapping[str, float]) -> list[str]:
    """The report's lines on the wider first tier."""
    found = plans(calibration, flops)
    chosen = choose(found, LEAST_DECIDED)
    level = "is the cheapest that" if chosen.is_level else "is the most accurate; there is none that"
    rows = [
        [names(one), f"{one.accuracy:.2%}", with_limits(one.gain, one.limits, "+.2%"), f"{one.exits[0]:.1%}",
         f"{one.dearest:.2f}x"]
        for one in frontier(found)
    ]  # fmt: skip
    return [
        "## A wider first tier",
        "",
        "The four tiers lose accuracy where tier 1 agrees on a wrong label. With more voters it does so less often:",
        f"every set of members of tiers 1 and 2, all of whom must agree, and then {BEST}; on calibration, those",
        "that no cheaper set equals. Cost: FLOPs against the best model's in the dearest accounting.",
        "",
        *table(("voters", "accuracy", "against the best model", "decided in tier 1", "cost"), rows),
        "",
        f"Among those that decide {LEAST_DECIDED:.0%} in tier 1 and cost no more than {BEST},",
        f"{names(chosen)} {level}",
        f"cannot be told from it on calibration (95%; {len(found)} sets were compared, which flatters the chosen one).",
        "It is what `edge.yaml` holds. The test pictures had been looked at before this was chosen, for the four",
        "tiers above; nothing was chosen on them.",
        "",
        *cascade_section("On test:", "cifar10", folder, [chosen.members, [BEST]], ("unanimous",)),
    ]


def names(one: Plan) -> str:
    """The members without their suffix, smallest first."""
    return ", ".join(name.removesuffix(".onnx") for name in one.members)


def training_section(seconds: Mapping[str, float]) -> list[str]:
    rows = [
        [name, str(TIERS[name]), str(RECIPES[name].seed), str(RECIPES[name].epochs),
         str(RECIPES[name].teacher_share or "none"), f"{taken:.0f}"]
        for name, taken in seconds.items()
    ]  # fmt: skip
    return [
        "## How they were trained",
        "",
        "From seeded random weights, with bfloat16 arithmetic: another machine or number of threads gives other last",
        "bits, and so slightly other networks. Seconds are of one core, beside other programs. Where a network",
        f"learned from {TEACHER}, that is distillation: the share of the loss that {TEACHER}'s probabilities",
        f"for {N_VIEWS} views of each train picture have.",
        "",
        *table(("network", "tier", "seed", "epochs", f"share of {TEACHER}", "seconds"), rows),
    ]
