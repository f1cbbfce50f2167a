"""Where examples exit, as the threshold of the tiers before the last rises. Paper: Figure 7."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from coe.cascade import Agreement

from ..parts import Figure, Part, Table
from ..traces import TierSpec, Trace
from .replayed import Replayed, replay_trace


@dataclass(frozen=True, slots=True)
class Study:
    """One replay per threshold, low to high."""

    thetas: Sequence[Fraction]
    replays: Sequence[Replayed]

    def as_json(self) -> dict[str, Any]:
        rows = [
            {
                "theta": str(theta),
                "accuracy": one.accuracy,
                "exit": one.exits,
                "wrong_exit": one.wrong_exits,
            }
            for theta, one in zip(self.thetas, self.replays, strict=True)
        ]
        return {"n": len(self.replays[0].trace), "rows": rows}


def run(trace: Trace, specs: Sequence[TierSpec]) -> Study:
    """The cascade at every share its tiers can reach from one half on; their own rules are not asked."""
    sizes = [len(spec.members) for spec in specs[:-1]]
    thetas = sorted({Fraction(count, size) for size in sizes for count in range(1, size + 1) if 2 * count > size})
    replays = []
    for theta in thetas:
        at = [*(replace(spec, rule=Agreement(theta)) for spec in specs[:-1]), specs[-1]]
        replays.append(replay_trace(trace, at))
    return Study(thetas, replays)


def as_part(study: Study) -> Part:
    trace, specs = study.replays[0].trace, study.replays[0].specs
    lines = []
    for theta, one in zip(study.thetas, study.replays, strict=True):
        for number, (share, wrong) in enumerate(zip(one.exits, one.wrong_exits, strict=True), start=1):
            left = round(share * len(trace))
            right = f"{1 - wrong / left:.1%}" if left else "-"
            lines.append([str(theta), str(number), " ".join(specs[number - 1].members), f"{share:.1%}", right])
    header = ("theta", "tier", "members", "exits", "right")
    last = specs[-1].members[0]
    note = f"right: of the examples that exit there. {last} alone: {trace.accuracy(last):.1%} of all."
    best = max(range(len(study.thetas)), key=lambda at: study.replays[at].accuracy)
    chosen = study.replays[best]
    verdict = [
        f"Most accurate at theta = {study.thetas[best]}: {chosen.accuracy:.2%}, with {chosen.exits[0]:.1%} of "
        f"{len(trace):,} examples leaving at the first tier; read on all examples, so no choice is to be made by it."
    ]
    table = Table("tiers", "exits by threshold", header, lines, note, 3)
    return Part(
        f"{trace.name}-exits",
        f"Where examples exit: {trace.name}",
        verdict,
        [table],
        study.as_json(),
        draw=lambda: _figures(study),
    )


def _figures(study: Study) -> list[Figure]:
    from ..charts.bars import stacked

    specs = study.replays[0].specs
    figure = stacked(
        [f"theta = {theta}" for theta in study.thetas],
        [f"tier {number}: {', '.join(spec.members)}" for number, spec in enumerate(specs, start=1)],
        [one.exits for one in study.replays],
        name="shares",
        title="Where examples exit (Figure 7)",
        axis="share of examples",
        caption="A tier answers where at least theta of its members agree; the last answers whatever is left.",
        ends=[f"{one.accuracy:.1%} right" for one in study.replays],
    )
    return [figure]
