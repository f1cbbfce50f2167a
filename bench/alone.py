"""The three models with no server around them, in a process of their own.

A worker (bench/processes.py starts it): asked for a batch's rows, it says what a second of nothing else gives.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any

from payloads import members, tensors
from processes import serve_jobs

from coe.cascade import Always, Batch, LocalTier
from coe.config.manifest import read_manifest
from coe.models import load
from coe.zoo import digits


@cache
def _tier() -> LocalTier:
    specs = read_manifest(digits.FOLDER).models
    return LocalTier("small", [load(specs[file]) for file in members()], Always(asks_all=True))


def answer(job: dict[str, Any]) -> dict[str, float]:
    """Seconds a batch of `rows` rows, for the members' own calls and for the tier with its vote."""
    rows, seconds = job["rows"], job["seconds"]
    tier = _tier()
    x, _ = tensors(rows)
    batch = Batch(tuple(map(str, range(rows))), x)

    def models() -> None:
        for member in tier.members:
            member.predict(x)

    return {
        "models_s": _seconds_a_call(models, seconds / 2),
        "tier_s": _seconds_a_call(lambda: tier.vote(batch, tier.rule), seconds / 2),
    }


def _seconds_a_call(call: Callable[[], object], seconds: float) -> float:
    call()
    n = 0
    started = now = time.perf_counter()
    while now - started < seconds or not n:
        call()
        n += 1
        now = time.perf_counter()
    return (now - started) / n


if __name__ == "__main__":
    serve_jobs(answer)
