"""`coe-edge explain`: what leaves this device, when and to whom, and what it keeps; read from its config alone."""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..config import default_config, read_config
from .privacy import HEADINGS, Statement, state

MOST_WIDTH = 100


def explain_command(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    path = options.config or default_config()
    statements = state(read_config(path))
    if options.json:
        print(json.dumps({"config": str(path), "statements": [asdict(one) for one in statements]}, indent=2))
    else:
        print("\n".join(_lines(path, statements)))
    return 0


def _lines(path: Path, statements: Sequence[Statement]) -> list[str]:
    width = min(shutil.get_terminal_size((80, 24)).columns, MOST_WIDTH) - 1
    lines = [str(path)]
    for topic, heading in HEADINGS.items():
        said = [statement for statement in statements if statement.topic == topic]
        if not said:
            continue
        lines += ["", heading]
        for statement in said:
            source = f" [{statement.about}]" if statement.about else ""
            lines += textwrap.wrap(
                statement.text + source,
                width,
                initial_indent="  - ",
                subsequent_indent="    ",
                break_long_words=False,
                break_on_hyphens=False,
            )
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="coe-edge explain",
        description="Say in plain sentences what leaves this device, and what it keeps. Asks nobody, changes nothing.",
    )
    parser.add_argument("--config", type=Path, help="YAML file; default: the bundled digits")
    parser.add_argument("--json", action="store_true", help="for programs")
    return parser
