"""`coe-sim cost`: what the GPUs of a cascade cost."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import arguments
from .output import finish_part, require_plots


def add(studies: arguments.Studies) -> None:
    parser = studies.add_parser(
        "cost",
        help="GPU prices, per hour and per million examples (Figure 4)",
        description="The average price of an example whose tiers run on GPUs of different price.",
    )
    parser.add_argument("--exits", type=arguments.shares, required=True, metavar="LIST", help="per tier: 0.7,0.2,0.1")
    parser.add_argument("--gpus", type=_gpus, required=True, metavar="LIST", help="per tier: V100,A6000,H100")
    parser.add_argument("--seconds", type=arguments.seconds, metavar="LIST", help="per example and tier: 2ms,5ms,20ms")
    parser.add_argument("--prices", type=Path, metavar="FILE", help="YAML of USD per hour; default: as in the paper")
    arguments.add_output(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from ..studies import gpu_cost

    require_plots(options)
    prices = gpu_cost.read_prices(options.prices or gpu_cost.PRICES)
    study = gpu_cost.run(options.exits, options.gpus, prices, options.seconds)
    return finish_part(options, gpu_cost.as_part(study))


def _gpus(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]  # two tiers may share a kind
