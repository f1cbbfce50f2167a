"""Decisions as JSON lines, on standard output or appended to a file."""

from __future__ import annotations

import json
import math
from typing import Any, TextIO

from .base import Outcome


class JsonLinesSink:
    """One line per example, flushed at once: whoever reads the pipe sees a decision when it is made."""

    def __init__(self, stream: TextIO, labels: tuple[str, ...], owns_stream: bool) -> None:
        self.stream = stream
        self.labels = labels
        self.owns_stream = owns_stream

    def write(self, outcome: Outcome) -> None:
        try:
            self.stream.write(json.dumps(as_record(outcome, self.labels)) + "\n")
            self.stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:  # a full disk, say: the operating system does not name the file
            raise OSError(error.errno, error.strerror, getattr(self.stream, "name", None)) from None

    def close(self) -> None:
        if self.owns_stream:
            self.stream.close()


def as_record(outcome: Outcome, labels: tuple[str, ...]) -> dict[str, Any]:
    """An outcome as plain data, for JSON."""
    record: dict[str, Any] = {"id": outcome.id}
    decision = outcome.decision
    if decision is not None:
        record |= {
            "label": decision.label,
            "name": labels[decision.label],
            "exit_tier": decision.exit_tier,
            "vote": round(decision.vote, 6),
            "score": None if math.isnan(decision.score) else round(decision.score, 6),
            "asked": decision.asked,
            "members": decision.n_members,
            "tier_votes": [round(vote, 6) for vote in decision.tier_votes],
            "tier_times_s": [round(seconds, 7) for seconds in decision.tier_times_s],
            "degraded": decision.degraded,
        }
        if decision.call:
            record["call"] = {key: round(value, 7) for key, value in decision.call.items()}
    if outcome.error is not None:
        record["error"] = outcome.error
    if outcome.truth is not None:
        record["truth"] = outcome.truth
    if outcome.trace:
        record["trace"] = outcome.trace
    record["latency_s"] = round(outcome.latency_s, 7)
    return record
