"""A wider first tier, and then the best model: every such cascade on calibration, and the one that is bundled.

Wrong agreements of tier 1 are what costs a cascade its accuracy: a tier behind cannot mend what never reaches it.
More voters of unlike architectures agree wrongly less often, so members of tier 2 may vote in tier 1 as well.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from coe.cascade import Accounting, average_cost
from coe.zoo.cifar10.train import TEACHER, TIERS
from coe.zoo.recorded import Outputs, decide
from coe.zoo.trace import Trace

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
