"""`coe-sim digits`: the bundled models."""

from __future__ import annotations

import argparse

from coe.zoo.digits import N_TEST

from . import arguments
from .output import finish


def add(studies: arguments.Studies) -> None:
    parser = studies.add_parser("digits", help="the bundled models: accuracy, exits, and the three accountings")
    arguments.add_output(parser, "digits.json")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from ..progress import Progress
    from ..studies import digits

    profile = digits.profile(N_TEST, Progress(1))
    return finish(options, "digits.json", profile.as_json(), digits.as_text(profile))
