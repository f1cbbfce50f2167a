"""The one word for what came of a request: gRPC's names of status codes, whatever door it came through."""

from __future__ import annotations

import asyncio

from coe.cascade.errors import CascadeError, TierOverloaded
from coe.wire.status import TABLE

OK = "OK"
INTERNAL = "INTERNAL"
CANCELLED = "CANCELLED"
SERVER = "server"
BUG = "bug"  # the kind of every error that is none of ours


def code_of(error: BaseException) -> str:
    """The status code's name. One of a fixed few, so that it can be a label."""
    if isinstance(error, asyncio.CancelledError):
        return CANCELLED
    for kind, code in TABLE:
        if isinstance(error, kind):
            return code.name
    return INTERNAL


def kind_of(error: BaseException) -> str:
    """The error's own name where it is one of ours; as many as there are classes."""
    return type(error).__name__ if isinstance(error, CascadeError) else BUG


def refused_by(error: BaseException, model: str) -> str | None:
    """What shed a request for `model`; None where nothing did.

    An error with a `reason` of its own says it (such as "quota"); else it is the tier whose queue is full, or the
    server, which refuses in the model's name.
    """
    if not isinstance(error, TierOverloaded):
        return None
    if error.reason != TierOverloaded.reason:
        return error.reason
    return SERVER if error.tier == model[:64] else error.tier
