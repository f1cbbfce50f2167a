"""Wrong agreements: how often do members agree on a wrong label, and does the large model know better?

Paper: Table 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from ..parts import Figure, Part, Table
from ..sweep import Panel
from ..traces import Trace

THETAS = (Fraction(2, 3), Fraction(1))  # the paper's 0.66 and 1.0
MOST_SHOWN = 30


@dataclass(frozen=True, slots=True)
class Row:
    """One ensemble at one threshold.

    Args:
        agreed: examples on which at least `needed` members agree; wrong: of them, on a wrong label.
        shared: of the wrong, those the large model gets wrong too, so that asking it would not have helped.
    """

    members: tuple[str, ...]
    theta: str
    needed: int
    agreed: int
    wrong: int
    shared: int

    @property
    def lost(self) -> int:
        """Wrong agreements that the large model would have got right."""
        return self.wrong - self.shared


@dataclass(frozen=True, slots=True)
class Study:
    trace: Trace
    large: str
    rows: Sequence[Row]

    def as_json(self) -> dict[str, Any]:
        rows = [asdict(row) for row in self.rows]
        return {"trace": self.trace.name, "n": len(self.trace), "large": self.large, "rows": rows}


def run(trace: Trace, ensembles: Sequence[tuple[str, ...]], large: str) -> Study:
    """Every ensemble at every threshold. Two thresholds that need as many votes are one row, the higher."""
    panel = Panel(trace)
    wrong_large = ~trace.right(large)
    rows = []
    for members in ensembles:
        right, count = panel.counted(members)
        for theta in THETAS:
            needed = math.ceil(theta * len(members))
            if theta < 1 and needed == len(members):
                continue
            agreed = count >= needed
            wrong = agreed & ~right
            shared = wrong & wrong_large
            rows.append(Row(members, str(theta), needed, int(agreed.sum()), int(wrong.sum()), int(shared.sum())))
    return Study(trace, large, rows)


def as_part(study: Study) -> Part:
    n = len(study.trace)
    lines = [
        [
            " ".join(row.members),
            f"{row.needed} of {len(row.members)}",
            f"{row.agreed:,}",
            f"{row.agreed / n:.1%}",
            f"{row.wrong:,}",
            f"{row.wrong / max(row.agreed, 1):.1%}",
            f"{row.shared:,}",
            f"{row.shared / max(row.wrong, 1):.0%}",
            f"{row.lost / n:.2%}",
        ]
        for row in study.rows
    ]
    header = ("members", "agree", "examples", "share", "wrong", "of agreed", "large too", "of wrong", "lost")
    note = (
        f"large: {study.large}, {study.trace.accuracy(study.large):.1%} of {n:,}; large too: wrong agreements that it "
        "gets wrong as well; lost: those it would have got right, of all examples."
    )
    best = min(study.rows, key=lambda row: row.wrong / max(row.agreed, 1))
    most = max(study.rows, key=lambda row: row.lost)
    verdict = [
        f"Agreement is most to be trusted in {' '.join(best.members)} at {best.needed} of {len(best.members)}: "
        f"{best.wrong / max(best.agreed, 1):.1%} of its {best.agreed:,} agreements are wrong, "
        f"{best.shared / max(best.wrong, 1):.0%} of them wrong in {study.large} too.",
        f"Most is lost in {' '.join(most.members)} at {most.needed} of {len(most.members)}: {most.lost / n:.2%} of all "
        f"examples leave wrong that {study.large} would have got right.",
    ]
    table = Table("ensembles", "agreements", header, lines, note, 2)
    return Part(
        f"{study.trace.name}-errors",
        f"Wrong agreements: {study.trace.name}",
        verdict,
        [table],
        study.as_json(),
        draw=lambda: _figures(study),
    )


def _figures(study: Study) -> list[Figure]:
    from ..charts.bars import stacked

    n, shown = len(study.trace), study.rows[:MOST_SHOWN]
    figure = stacked(
        [f"{', '.join(row.members)}: {row.needed} of {len(row.members)}" for row in shown],
        [f"{study.large} wrong too", f"{study.large} right"],
        [[row.shared / n, row.lost / n] for row in shown],
        name="wrong",
        title="Wrong agreements (Table 3)",
        axis="share of all examples",
        caption="Agreements on a wrong label, by what the large model says of the same examples.",
        ends=[f"{row.wrong / max(row.agreed, 1):.1%} wrong of {row.agreed / n:.0%} agreed" for row in shown],
        colours=("#0072B2", "#D55E00"),
        text=lambda value: f"{value:.1%}",
    )
    return [figure]
