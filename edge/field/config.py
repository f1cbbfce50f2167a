"""Privacy, audit, drift and harvest, as configured."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from coe.cascade.errors import ConfigError
from coe.config import Fields
from coe.config.manifest import Task

from .privacy import load_privacy_filter

T = TypeVar("T")


@dataclass(frozen=True)
class Baseline:
    """A share as it was on calibration: `share` of `n` examples; `band` in place of what follows from them.

    `what`: "deferred", "audit_error", or "2 of 3": decided with two votes of three asked.
    """

    what: str
    share: float
    n: int
    band: tuple[float, float] | None = None


@dataclass(frozen=True)
class DriftConfig:
    """Bands, and over what they are watched.

    Args:
        window: examples; audits: audited decisions, for their error.
        false_alarms: chance that one window of examples like those of calibration lies outside a band.
    """

    window: int = 1000
    false_alarms: float = 1e-6
    audits: int = 200
    baselines: tuple[Baseline, ...] = ()


@dataclass(frozen=True)
class AuditConfig:
    """A small share of the examples on which the device agreed is sent anyway.

    Args:
        share: of them, at most; 0: none.
        max_per_hour, max_bytes_per_day: the budget.
        link_share: of the time, at most, that audit calls take.
        report_every: answers between two `audit` events.
    """

    share: float = 0.0
    max_per_hour: float = 60.0
    max_bytes_per_day: float = 10e6
    link_share: float = 0.1
    report_every: int = 100


@dataclass(frozen=True)
class HarvestConfig:
    """Deferred examples and the cloud's answers are kept in `path`, within a budget.

    `drop_oldest`: when it is full the oldest make room; otherwise nothing more is kept.
    """

    path: Path
    max_bytes: float = 100e6
    max_count: int = 10_000
    drop_oldest: bool = False


@dataclass(frozen=True)
class FieldConfig:
    """How honest the agent is about itself.

    Args:
        never_send: labels whose examples stay on the device.
        privacy_filter: "module:function" or "file.py:function" that may hold an example back; "": none.
        folder: where a privacy_filter's path starts.
    """

    never_send: frozenset[int] = frozenset()
    privacy_filter: str = ""
    folder: Path = Path()
    audit: AuditConfig | None = None
    drift: DriftConfig | None = None
    harvest: HarvestConfig | None = None


def read_field(fields: Fields, folder: Path, task: Task, *, votes_first: bool) -> FieldConfig:
    """`never_send:`, `privacy_filter:`, `audit:`, `drift:` and `harvest:` of an agent's config.

    Args:
        fields: of the whole file.
        folder: relative paths start here.
        votes_first: whether models of this device see an example before it leaves.
    """
    if not votes_first and fields.raw("never_send", None):
        fix = "put a tier with `members:` before it, or take a `privacy_filter:`"
        fields.wrong("never_send", f"expected models of this device to tell, got a first tier elsewhere ({fix})")
    return FieldConfig(
        never_send=_read_never_send(fields, task.labels),
        privacy_filter=_read_hook(fields, folder),
        folder=folder,
        audit=_section(fields, "audit", _read_audit),
        drift=_section(fields, "drift", _read_drift),
        harvest=_section(fields, "harvest", lambda section: _read_harvest(section, folder)),
    )


def _section(fields: Fields, key: str, read: Callable[[Fields], T]) -> T | None:
    """What a section says; None where it is not there."""
    return None if fields.raw(key, None) is None else read(fields.section(key))


def _read_never_send(fields: Fields, labels: tuple[str, ...]) -> frozenset[int]:
    names = fields.texts("never_send", ())
    for number, name in enumerate(names):
        if name not in labels:
            near = difflib.get_close_matches(name, labels, 1)
            hint = f'; did you mean "{near[0]}"?' if near else ""
            fields.wrong(f"never_send[{number}]", f'expected a label of the task, got "{name}"{hint}')
    return frozenset(labels.index(name) for name in names if name in labels)


def _read_hook(fields: Fields, folder: Path) -> str:
    reference = fields.text("privacy_filter", "")
    if reference:
        try:
            load_privacy_filter(reference, folder)
        except ConfigError as error:
            fields.wrong("privacy_filter", str(error))
    return reference


def _read_audit(fields: Fields) -> AuditConfig:
    audit = AuditConfig(
        share=fields.number("share", 0.01, 0.0, 1.0),
        max_per_hour=fields.number("max_per_hour", 60.0, 1.0, 1e9),
        max_bytes_per_day=fields.number("max_mb_per_day", 10.0, 0.001, 1e6) * 1e6,
        link_share=fields.number("link_share", 0.1, 0.001, 1.0),
        report_every=fields.integer("report_every", 100, 1, 1_000_000),
    )
    fields.finish()
    return audit


def _read_harvest(fields: Fields, folder: Path) -> HarvestConfig:
    harvest = HarvestConfig(
        path=folder / Path(fields.text("path")).expanduser(),
        max_bytes=fields.number("max_mb", 100.0, 0.001, 1e6) * 1e6,
        max_count=fields.integer("max_count", 10_000, 1, 100_000_000),
        drop_oldest=fields.choice("when_full", ("stop", "drop-oldest"), "stop") == "drop-oldest",
    )
    fields.finish()
    return harvest


def _read_drift(fields: Fields) -> DriftConfig:
    window = fields.integer("window", 1000, 20, 1_000_000)
    baselines = []
    for what, entry in fields.entries("bands") if fields.has("bands") else ():
        baselines.append(_read_baseline(what, entry))
    fields.raw("bands", None)
    drift = DriftConfig(
        window=window,
        false_alarms=fields.number("false_alarms", 1e-6, 1e-12, 0.5),
        audits=fields.integer("audits", 200, 10, 1_000_000),
        baselines=tuple(baselines),
    )
    if not baselines:
        fields.wrong("bands", "expected at least one band (`coe-edge calibrate` prints them)")
    fields.finish()
    return drift


def _read_baseline(what: str, entry: Fields) -> Baseline:
    """`{share: 0.023, n: 1000}` (from calibration) or `{band: [0.01, 0.05]}`."""
    band = entry.numbers("band", ())
    if band and (len(band) != 2 or not 0 <= band[0] <= band[1] <= 1):
        entry.wrong("band", f"expected two shares, low and high, from 0 to 1, got {list(band)}")
        band = ()
    if not entry.has("band") and not entry.has("share"):
        entry.wrong("", "expected `share:` and `n:` of calibration, or `band: [low, high]`")
    baseline = Baseline(
        what=what,
        share=entry.number("share", 0.0, 0.0, 1.0),
        n=entry.integer("n", 1 if band else (1 if not entry.has("share") else 1000), 1, 1_000_000_000),
        band=(band[0], band[1]) if band else None,
    )
    if what not in ("deferred", "audit_error") and not what.replace(" of ", "").isdigit():
        entry.wrong("", f'expected deferred, audit_error or "2 of 3" (agreed with so many votes), got "{what}"')
    entry.finish()
    return baseline
