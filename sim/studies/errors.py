"""`coe-sim errors`: how often members agree on a wrong label, and whether the large model is right there.

Paper: Table 3.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction

from coe.cascade import ConfigError
from sim import arguments
from sim.output import Figure, Part, Table
from sim.sweep import EnsembleVotes
from sim.traces import Trace

from .candidates import ensembles as choices_of

THETAS = (Fraction(2, 3), Fraction(1))  # the paper's 0.66 and 1.0
MOST_SHOWN = 30


@dataclass(frozen=True, slots=True)
class AgreementRow:
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
class WrongAgreements:
    trace: Trace
    large: str
    rows: Sequence[AgreementRow]


def run(trace: Trace, ensembles: Sequence[tuple[str, ...]], large: str) -> WrongAgreements:
    """Every ensemble at every threshold. Two thresholds that need as many votes are one row, the higher."""
    ensemble_votes = EnsembleVotes(trace)
    wrong_large = ~trace.right(large)
    rows = []
    for members in ensembles:
        right, count = ensemble_votes.counted(members)
        for theta in THETAS:
            needed = math.ceil(theta * len(members))
            if theta < 1 and needed == len(members):
                continue
            agreed = count >= needed
            wrong = agreed & ~right
            counts = [int(flags.sum()) for flags in (agreed, wrong, wrong & wrong_large)]
            rows.append(AgreementRow(members, str(theta), needed, *counts))
    return WrongAgreements(trace, large, rows)


def as_part(study: WrongAgreements) -> Part:
    n = len(study.trace)
    lines = [
        [" ".join(row.members), f"{row.needed} of {len(row.members)}", f"{row.agreed:,}", f"{row.agreed / n:.1%}",
         f"{row.wrong:,}", f"{row.wrong / max(row.agreed, 1):.1%}",
         f"{row.shared:,}", f"{row.shared / max(row.wrong, 1):.0%}", f"{row.lost / n:.2%}"]
        for row in study.rows
    ]  # fmt: skip
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
    name = study.trace.name
    content = {"trace": name, "n": n, "large": study.large, "rows": list(map(asdict, study.rows))}
    title = f"Wrong agreements: {name}"
    return Part(f"{name}-errors", title, verdict, [table], content, draw=lambda: _figures(study))


def _figures(study: WrongAgreements) -> list[Figure]:
    from sim.charts import stacked_bars

    n, shown = len(study.trace), study.rows[:MOST_SHOWN]
    figure = stacked_bars(
        [f"{', '.join(row.members)}: {row.needed} of {len(row.members)}" for row in shown],
        [f"{study.large} wrong too", f"{study.large} right"],
        [[row.shared / n, row.lost / n] for row in shown],
        name="wrong",
        title="Wrong agreements (Table 3)",
        axis="share of all examples",
        caption="Agreements on a wrong label, by what the large model answers on the same examples.",
        ends=[f"{row.wrong / max(row.agreed, 1):.1%} wrong of {row.agreed / n:.0%} agreed" for row in shown],
        colours=("#0072B2", "#D55E00"),
        text=lambda value: f"{value:.1%}",
    )
    return [figure]


MOST_MODELS = 5  # of more, --members names them


NAME = "errors"
HELP = "wrong agreements, and whether the large model knows better (Table 3)"
DESCRIPTION = "How often members agree on a wrong label, and how many of those the large model gets wrong too."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_trace(parser)
    of_ensembles = "of the ensembles; default: all others"
    parser.add_argument("--members", type=arguments.names, metavar="M1,M2", help=of_ensembles)
    parser.add_argument("--large", metavar="MODEL", help="the large model; default: the most accurate")
    arguments.add_output(parser)


def run_command(options: argparse.Namespace) -> Part:
    trace = arguments.open_trace(options)
    large = options.large or max(trace.models, key=trace.accuracy)
    arguments.check_models("--large", [large], trace)
    if options.members:
        arguments.check_models("--members", options.members, trace)
    return as_part(run(trace, ensembles(trace, large, options.members), large))


def ensembles(trace: Trace, large: str, members: list[str] | None = None) -> list[tuple[str, ...]]:
    """Every choice of two to five of the members; of many models, the most accurate."""
    found = members or [name for name in trace.models if name != large]
    if members is None and len(found) > MOST_MODELS:
        best = set(sorted(found, key=trace.accuracy, reverse=True)[:MOST_MODELS])
        found = [name for name in found if name in best]
    if len(found) < 2:
        raise ConfigError([f"expected at least two members besides {large}, got {', '.join(found) or 'none'}"])
    return list(choices_of(found, least=2))
