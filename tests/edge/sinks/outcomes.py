"""Records and outcomes for tests of sinks."""

from __future__ import annotations

from typing import Any

from coe.cascade import Decision
from edge.sinks import Outcome, as_record

LABELS = ("zero", "one", "two")


def decision(name: str = "x", **changes: Any) -> Decision:
    fields: dict[str, Any] = {
        "id": name,
        "label": 1,
        "exit_tier": 1,
        "vote": 2 / 3,
        "score": 0.5,
        "asked": 3,
        "n_members": 3,
        "tier_votes": (2 / 3,),
        "tier_times_s": (0.001,),
    }
    return Decision(**(fields | changes))


def outcome(
    name: str = "x", *, spooled: str = "", corrects: str = "", truth: int | None = 1, **changes: Any
) -> Outcome:
    return Outcome(
        name, decision(name, **changes), 0.002, truth, at=1_700_000_000.0, spooled=spooled, corrects=corrects
    )


def record(name: str = "x", **changes: Any) -> dict[str, Any]:
    return as_record(outcome(name, **changes), LABELS)
