"""Privacy, audit, drift and harvest, as configured."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from coe.calibration import CalibratedVote
from coe.cascade.errors import ConfigError
from coe.config.cascade import LocalTierConfig, TierConfig
from coe.config.fields import Fields, did_you_mean
from coe.config.manifest import Task
from coe.config.settings import REQUIRED, read_settings, setting

from .privacy import load_privacy_filter


@dataclass(frozen=True)
class Baseline:
    """A share as it was on calibration. `what`: "deferred", "audit_error", or "2 of 3": decided with so many votes."""

    what: str
    share: float = setting(0.0, "Share at calibration.", usual="required", low=0, high=1, example="0.023")
    n: int = setting(1000, "Number of examples at calibration.", low=1, high=1_000_000_000)
    band: tuple[float, float] | None = setting(
        None, "The lowest and the highest usual share, in place of `share` and `n`.", usual="what follows from them"
    )


@dataclass(frozen=True)
class DriftConfig:
    """Bands, and over what they are watched."""

    window: int = setting(1000, "Examples in one window.", low=20, high=1_000_000)
    false_alarms: float = setting(
        1e-6, "Chance that a window is outside its band although nothing changed.", low=1e-12, high=0.5
    )
    audits: int = setting(200, "Audited decisions in one window, for `audit_error`.", low=10, high=1_000_000)
    on_drift: str = setting(
        "report",
        "What an alarm does while it lasts, beside the event.",
        choices=("report", "gate", "defer", "hold"),
    )
    baselines: tuple[Baseline, ...] = setting(
        (),
        "Bands of `deferred`, `audit_error` or `2 of 3`, each with the three settings below.",
        key="bands",
        usual="required",
    )


@dataclass(frozen=True)
class AuditConfig:
    """A small share of the examples on which the device agreed is sent anyway."""

    share: float = setting(0.01, "Largest share of the device's decisions that is audited; 0: none.", low=0, high=1)
    max_per_hour: float = setting(60, "Most examples sent in an hour.", low=1, high=1e9)
    max_bytes_per_day: float = setting(
        10, "Most bytes sent in a day, in 10^6.", unit="MB", key="max_mb_per_day", low=0.001, high=1e6
    )
    link_share: float = setting(0.1, "Largest share of the time that audit calls take.", low=0.001, high=1)
    report_every: int = setting(100, "Answers between two `audit` events.", low=1, high=1_000_000)


@dataclass(frozen=True)
class HarvestConfig:
    """Deferred examples and the cloud's answers are kept in `path`, within a budget."""

    path: Path = setting(REQUIRED, "Folder of the kept examples.", example="harvest")
    max_bytes: float = setting(
        100, "Largest size of its files together, in 10^6 bytes.", unit="MB", low=0.001, high=1e6
    )
    max_count: int = setting(10_000, "Most examples in it.", low=1, high=100_000_000)
    when_full: str = setting("stop", "Keep no more, or drop the oldest.", choices=("stop", "drop-oldest"))

    @property
    def drop_oldest(self) -> bool:
        return self.when_full == "drop-oldest"


@dataclass(frozen=True)
class SceneConfig:
    """Pictures of a scene that was sent are not sent while it looks the same."""

    difference: float = setting(
        8, "Largest difference of a part's brightness (0 to 255) within a scene.", low=0, high=255
    )
    remember: int = setting(16, "Scenes remembered.", low=1, high=1024)
    max_age_s: float = setting(3600, "After this time a scene is sent again.", unit="s", low=1, high=1e9)


@dataclass(frozen=True)
class FieldConfig:
    """What may not leave, and how the agent checks itself. `folder`: where the filter's path starts."""

    never_send: frozenset[int] = setting(
        frozenset(), "Labels whose examples stay on the device.", usual="none", example='["3", "7"]'
    )
    privacy_filter: str = setting(
        "",
        "A `module:function` or `file.py:function` that may hold examples back.",
        usual="none",
        example="rules.py:private",
    )
    folder: Path = Path()
    audit: AuditConfig | None = setting(None, "Send a small share of what the device decided, to measure its error.")
    drift: DriftConfig | None = setting(None, "Watch shares against calibration.")
    harvest: HarvestConfig | None = setting(None, "Keep deferred examples and their answers, for training.")
    same_scene: SceneConfig | None = setting(None, "Do not send pictures of the same scene twice; `{}`: as usual.")

    @property
    def holds_back(self) -> bool:
        """True if some examples may not leave the device."""
        return bool(self.never_send or self.privacy_filter)


def read_field(
    fields: Fields,
    folder: Path,
    task: Task,
    *,
    votes_first: bool,
    tiers: Sequence[TierConfig] = (),
) -> FieldConfig:
    """`never_send:`, `privacy_filter:`, `audit:`, `drift:` and `harvest:` of an agent's whole config.

    Relative paths start at `folder`. `votes_first`: models of this device see an example before it leaves;
    `tiers`: of the cascade.
    """
    if not votes_first and fields.raw("never_send", None):
        fix = "put a tier with `members:` before it, or take a `privacy_filter:`"
        fields.wrong("never_send", f"expected models of this device to tell, got a first tier elsewhere ({fix})")
    names = fields.texts("never_send", ())
    for number, name in enumerate(names):
        if name not in task.labels:
            message = f'expected a label of the task, got "{name}"{did_you_mean(name, task.labels)}'
            fields.wrong(f"never_send[{number}]", message)
    privacy_filter = fields.text("privacy_filter", "")
    if privacy_filter:
        try:
            load_privacy_filter(privacy_filter, folder)
        except ConfigError as error:
            fields.wrong("privacy_filter", str(error))
    if fields.raw("same_scene", None) is not None and task.input_spec.kind != "image":
        fields.wrong("same_scene", f"expected a task of images, got one of {task.input_spec.kind}s (leave it out)")
    return read_settings(
        FieldConfig,
        fields,
        folder,
        finish=False,
        never_send=frozenset(task.labels.index(name) for name in names if name in task.labels),
        privacy_filter=privacy_filter,
        folder=folder,
        drift=None if fields.raw("drift", None) is None else _read_drift(fields.section("drift"), tiers),
    )


def _read_drift(fields: Fields, tiers: Sequence[TierConfig]) -> DriftConfig:
    entries = fields.entries("bands") if fields.has("bands") else ()
    baselines = tuple(_read_baseline(what, entry) for what, entry in entries)
    fields.raw("bands", None)
    if not baselines:
        fields.wrong("bands", "expected at least one band (`coe-edge calibrate` prints them)")
    config = read_settings(DriftConfig, fields, baselines=baselines)
    here = [tier.rule for tier in itertools.takewhile(lambda tier: isinstance(tier, LocalTierConfig), tiers)]
    if config.on_drift in ("gate", "defer") and (not here or len(here) == len(tiers)):
        fields.wrong("on_drift", f"expected report or hold without a tier beyond this device, got {config.on_drift}")
    elif config.on_drift == "gate" and not all(isinstance(r, CalibratedVote) and r.stricter() for r in here):
        fix = "`coe-sim plan` writes one; or write defer or hold"
        fields.wrong("on_drift", f"expected a `calibration:` with gate_threshold in each tier here, got none ({fix})")
    return config


def _read_baseline(what: str, entry: Fields) -> Baseline:
    """`{share: 0.023, n: 1000}` (from calibration) or `{band: [0.01, 0.05]}`."""
    band = entry.numbers("band", ())
    if band and (len(band) != 2 or not 0 <= band[0] <= band[1] <= 1):
        entry.wrong("band", f"expected two shares, low and high, from 0 to 1, got {list(band)}")
        band = ()
    if not entry.has("band") and not entry.has("share"):
        entry.wrong("", "expected `share:` and `n:` of calibration, or `band: [low, high]`")
    if what not in ("deferred", "audit_error") and not what.replace(" of ", "").isdigit():
        entry.wrong("", f'expected deferred, audit_error or "2 of 3" (agreed with so many votes), got "{what}"')
    return read_settings(Baseline, entry, what=what, band=(band[0], band[1]) if band else None)
