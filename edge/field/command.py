"""`coe-edge calibrate`: how often the device defers, and with which votes it decides, on examples like those to come.

It prints the `drift:` section for the config, whose bands follow from it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from coe.assembly import open_cascade
from coe.cascade.cascade import Cascade
from coe.cascade.errors import ConfigError, InputError
from coe.models.inputs import Door

from ..config import default_config, read_config
from ..onward import Onward
from ..sinks import Outcome
from ..sources import Example, SourceConfig, open_source
from .drift import AUDIT_ERROR, DEFERRED, band, category
from .hold_back import HoldBack
from .open import hold_back_of

WINDOW = 1000
FALSE_ALARMS = 1e-6


@dataclass
class Calibration:
    """What the device does with a calibration set.

    Args:
        categories: examples deferred, or decided with so many votes.
        n_bad: that could not be read.
        n_held: that may not leave the device, and were not asked about.
        n_asked: examples decided here and asked about all the same; n_differ: of those, answered otherwise.
    """

    categories: Counter[str] = field(default_factory=Counter)
    n_bad: int = 0
    n_held: int = 0
    n_asked: int = 0
    n_differ: int = 0

    def bands(self) -> dict[str, dict[str, float]]:
        """The `bands:` of a config: each share, and of how many examples."""
        n = self.categories.total()
        names = sorted({DEFERRED, *self.categories})  # none deferred is a share, too
        bands = {what: {"share": round(self.categories[what] / n, 6), "n": n} for what in names}
        if self.n_asked:
            bands[AUDIT_ERROR] = {"share": round(self.n_differ / self.n_asked, 6), "n": self.n_asked}
        return bands

    def as_yaml(self) -> str:
        """The `drift:` section of a config."""
        lines = ["drift:", f"  window: {WINDOW}", "  bands:"]
        for what, entry in self.bands().items():
            low, high = band(entry["share"], int(entry["n"]), WINDOW, FALSE_ALARMS)
            content = f"{what}: {{share: {entry['share']:g}, n: {entry['n']}}}"
            lines.append(f"    {content:<42}# a window of {WINDOW:,} stays within {low:.1%} to {high:.1%}")
        return "\n".join(lines)


def calibrate_command(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="coe-edge calibrate", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, help="YAML file; default: the bundled digits")
    parser.add_argument("--data", required=True, help="folder of images, or - for JSON lines on standard input")
    parser.add_argument("--limit", type=_positive, metavar="N", help="the first N examples")
    parser.add_argument("--audit", action="store_true", help="ask the cloud about those the device decides, too")
    parser.add_argument("--json", action="store_true", help="print JSON in place of YAML")
    options = parser.parse_args(arguments)
    config = read_config(options.config or default_config())
    kind = "stdin" if options.data == "-" else "folder"
    if kind == "folder" and not Path(options.data).expanduser().is_dir():
        raise ConfigError([f'--data: expected a folder of images or -, got "{options.data}"'])
    source = open_source(SourceConfig(kind, Path(options.data).expanduser() if kind == "folder" else None), once=True)
    cascade = open_cascade(config.cascade)
    try:
        onward = Onward(cascade, Door(config.cascade.task.contract))
        if options.audit and not onward.is_there:
            raise ConfigError(["--audit: the cascade has no tier beyond this device to ask (leave it out)"])
        examples = itertools.islice(source.examples(threading.Event()), options.limit)
        hold_back = hold_back_of(config.field, config.cascade.task.labels)
        found = calibrate(_with_progress(examples), cascade, onward, asks=options.audit, hold_back=hold_back)
    finally:
        cascade.close()
    if found.n_held:
        print(f"coe-edge: {found.n_held:,} may not leave this device, and were not asked about", file=sys.stderr)
    if not found.categories:
        raise ConfigError([f"--data: expected examples, got none that can be read in {options.data}"])
    print(
        json.dumps({"bands": found.bands(), "unreadable": found.n_bad, "held_back": found.n_held})
        if options.json
        else found.as_yaml()
    )
    return 0


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text}")
    return int(text)


def calibrate(
    examples: Iterable[Example],
    cascade: Cascade,
    onward: Onward,
    *,
    asks: bool,
    hold_back: HoldBack | None = None,
) -> Calibration:
    """Decide examples as far as this machine can, and count.

    Args:
        asks: ask the tiers beyond about those that are decided here, too.
        hold_back: why one of them may not leave; None: all may.
    Raises:
        TierError: they do not answer.
    """
    found = Calibration()
    for example in examples:
        try:
            if example.value is None:
                raise InputError(example.error or "it has no value")
            run = cascade.start(onward.door.batch([example.id], [example.value]))
            while not run.is_done and not run.next_tier.waits:
                run.step()
        except InputError:
            found.n_bad += 1
            continue
        decision = run.decisions()[0] if run.is_done else None
        what = category(Outcome(example.id, decision, 0.0, deferred=decision is None))
        assert what is not None
        found.categories[what] += 1
        if decision is not None and asks:
            if hold_back is not None and hold_back(example, run) is not None:
                found.n_held += 1
                continue
            found.n_asked += 1
            found.n_differ += onward.ask(example).label != decision.label
    return found


def _with_progress(examples: Iterable[Example]) -> Iterator[Example]:
    """Says on a terminal how far it is."""
    n = 0
    for n, example in enumerate(examples, start=1):
        if n % 50 == 0 and sys.stderr.isatty():
            print(f"\r\x1b[K{n:,} examples", end="", file=sys.stderr, flush=True)
        yield example
    if sys.stderr.isatty():
        print(f"\r\x1b[K{n:,} examples", file=sys.stderr)
