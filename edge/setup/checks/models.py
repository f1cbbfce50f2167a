"""The device's models: their files, their checksums, and a decision timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

from coe.assembly import LocalTierConfig, open_tier
from coe.cascade.errors import CascadeError, RuntimeMissing
from coe.cascade.types import Batch
from coe.models.loading import read_verified
from coe.settings import format_seconds

from ..finding import Finding, fail, from_error, ok, warn
from .patient import Patient

N_TIMED = 20


def check_models(patient: Patient) -> Iterator[Finding]:
    if not patient.local_tiers:
        yield warn("models", "none on this device: every example goes to a server", "add a tier with `members:`")
    for tier in patient.local_tiers:
        yield from _check_tier(patient, tier)


def _check_tier(patient: Patient, tier: LocalTierConfig) -> Iterator[Finding]:
    what = f"tier {tier.name}"
    unpinned = [spec.name for spec in tier.members if spec.sha256 is None]
    try:
        for spec in tier.members:
            read_verified(spec)
        started = time.perf_counter()
        opened = open_tier(tier, patient.the_config.cascade)
    except RuntimeMissing as error:
        yield fail(what, f"the {error.runtime} runtime is not installed", error.mend)
        return
    except CascadeError as error:
        yield from_error(what, error, "mend `members:`, or the model file")
        return
    try:
        loaded_s = time.perf_counter() - started
        batch = Batch(("blank",), patient.the_config.cascade.task.contract.blank())
        decided_s = []
        for _ in range(N_TIMED):
            started = time.perf_counter()
            opened.vote(batch, opened.rule)
            decided_s.append(time.perf_counter() - started)
    finally:
        opened.close()
    n = len(tier.members)
    told = f"{n} model{'s' if n > 1 else ''} loaded in {format_seconds(loaded_s)}; a decision takes "
    told += format_seconds(statistics.median(decided_s))
    if unpinned:
        mend = f"write `sha256:` of them in a manifest beside them (sha256sum {' '.join(unpinned)})"
        yield warn(what, f"{told}; no checksum is known for {', '.join(unpinned)}", mend)
    else:
        yield ok(what, f"{told}; checksums match")
