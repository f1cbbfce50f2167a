"""What every command prints and writes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coe.models.base import import_runtime

from ..parts import Part, save


def require_plots(options: argparse.Namespace) -> None:
    """Where pictures will be wanted, matplotlib must be there before the work, not missing after it."""
    if options.out:
        import_runtime("matplotlib", "report", "pip install 'coe-cascade[sim]'")


def finish_part(options: argparse.Namespace, part: Part) -> int:
    """The study on standard output, and its files in the folder asked for."""
    return finish_parts(options, [part], part.content)


def finish_parts(options: argparse.Namespace, parts: Sequence[Part], content: Mapping[str, Any]) -> int:
    if options.out:
        for part in parts:
            written = save(part, options.out)
        tell(f"wrote {written[-1]}, its tables as CSV and its pictures as PNG")
    return say(options, content, "\n\n".join(part.as_text() for part in parts))


def finish(options: argparse.Namespace, name: str, content: Mapping[str, Any], text: str) -> int:
    """The JSON as `name` in the folder asked for, then the result on standard output."""
    if options.out:
        write_json(options.out, name, content)
    return say(options, content, text)


def say(options: argparse.Namespace, content: Mapping[str, Any], text: str) -> int:
    """JSON alone, or the text, on standard output."""
    print(json.dumps(content) if options.json else text, flush=True)
    return 0


def write_json(folder: Path, name: str, content: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    tell(f"wrote {path}")


def tell(line: str) -> None:
    """To the person, not into the result."""
    print(f"coe-sim: {line}", file=sys.stderr)
