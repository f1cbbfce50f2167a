"""`coe-sim paper`: the paper's own numbers, and what follows from them."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import arguments
from .output import finish_part, require_plots


def add(studies: arguments.Studies) -> None:
    parser = studies.add_parser(
        "paper",
        help="the paper's own numbers, recomputed (Tables 1 to 3, Figures 4 and 5)",
        description="The printed numbers that are carried, each column that follows from them, in three accountings, "
        "and which cells are not carried. With the paper at hand: fill a copy of the tables, and give it.",
    )
    parser.add_argument("--tables", type=Path, metavar="FILE", help="YAML of the tables; default: the bundled ones")
    arguments.add_output(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from .. import paper

    require_plots(options)
    return finish_part(options, paper.as_part(paper.recompute(paper.read_tables(options.tables or paper.TABLES))))
