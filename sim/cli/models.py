"""`coe-sim models`: the Pareto set of a table of single models."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import arguments
from .output import finish_part, require_plots


def add(studies: arguments.Studies) -> None:
    parser = studies.add_parser(
        "models",
        help="the Pareto set of a table of single models (Figure 6)",
        description="Which models of a table no other beats in accuracy and cost, and what that leaves to a cascade.",
    )
    parser.add_argument("table", type=Path, metavar="TABLE", help="a .tsv or .csv table with a column `model`")
    parser.add_argument("--accuracy", default="top1", metavar="COLUMN", help="default: top1")
    parser.add_argument(
        "--cost",
        action="append",
        required=True,
        metavar="COLUMN",
        help="again for each; 1/COLUMN where more is cheaper, as examples per second are",
    )
    arguments.add_output(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from ..studies import model_table

    require_plots(options)
    return finish_part(options, model_table.as_part(model_table.run(options.table, options.accuracy, options.cost)))
