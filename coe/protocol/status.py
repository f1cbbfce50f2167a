"""The one table between our errors and gRPC's status codes, read in both directions.

What is not in it becomes INTERNAL with an error id: the details go to the server's log, not to a stranger.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable

import grpc

from coe.cascade.errors import (
    CascadeError,
    ConfigError,
    InputError,
    NotAllowed,
    TierError,
    TierFailed,
    TierOverloaded,
    TierRefused,
    TierRejected,
    TierTimeout,
    TierUnavailable,
    Unauthenticated,
)

from .codec import WireError
from .service import PUSHBACK

log = logging.getLogger(__name__)


class UnknownModel(CascadeError):
    """The server has no model of that name or version."""


class NotOffered(CascadeError):
    """An extension of the protocol that this server does not have."""


# Most specific first.
TABLE: tuple[tuple[type[CascadeError], grpc.StatusCode], ...] = (
    (WireError, grpc.StatusCode.INVALID_ARGUMENT),
    (InputError, grpc.StatusCode.INVALID_ARGUMENT),
    (UnknownModel, grpc.StatusCode.NOT_FOUND),
    (NotOffered, grpc.StatusCode.UNIMPLEMENTED),
    (Unauthenticated, grpc.StatusCode.UNAUTHENTICATED),
    (NotAllowed, grpc.StatusCode.PERMISSION_DENIED),
    (TierOverloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (TierTimeout, grpc.StatusCode.DEADLINE_EXCEEDED),
    (TierUnavailable, grpc.StatusCode.UNAVAILABLE),
    (TierFailed, grpc.StatusCode.INTERNAL),
    (TierRejected, grpc.StatusCode.FAILED_PRECONDITION),
    (ConfigError, grpc.StatusCode.FAILED_PRECONDITION),
)

FROM_CODE: dict[grpc.StatusCode, type[TierError]] = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: TierOverloaded,
    grpc.StatusCode.DEADLINE_EXCEEDED: TierTimeout,
    grpc.StatusCode.UNAVAILABLE: TierUnavailable,
    grpc.StatusCode.CANCELLED: TierUnavailable,
    grpc.StatusCode.INTERNAL: TierUnavailable,
    grpc.StatusCode.UNKNOWN: TierUnavailable,
    grpc.StatusCode.ABORTED: TierUnavailable,
    grpc.StatusCode.UNAUTHENTICATED: TierRefused,
    grpc.StatusCode.PERMISSION_DENIED: TierRefused,
    grpc.StatusCode.NOT_FOUND: TierRefused,
}

MOST_TEXT = 500  # characters; gRPC drops an answer whose status text is over a few kilobytes, code and all


def code_of(error: BaseException) -> grpc.StatusCode | None:
    """The status code of an error in the table; None for any other."""
    return next((code for kind, code in TABLE if isinstance(error, kind)), None)


def to_status(error: Exception) -> tuple[grpc.StatusCode, str]:
    """Code and text for the caller."""
    if (code := code_of(error)) is not None:
        text = f"{error.brief} (the server's log says why)" if isinstance(error, TierFailed) else str(error)
        return code, text if len(text) <= MOST_TEXT else text[:MOST_TEXT] + "..."
    error_id = uuid.uuid4().hex[:12]
    log.error("internal error %s", error_id, exc_info=error)
    return grpc.StatusCode.INTERNAL, f"internal error {error_id} (the server's log has the details)"


def from_rpc_error(tier: str, error: grpc.RpcError, proxy: str = "") -> TierError:
    """What a failed call means to the cascade. `proxy`: through which it went, which may be why."""
    trailing: Iterable[tuple[str, str | bytes]] = getattr(error, "trailing_metadata", tuple)() or ()
    hint = next((value for key, value in trailing if key == PUSHBACK), None)
    failure = from_status(tier, error.code(), error.details() or "", hint)
    if proxy and isinstance(failure, (TierUnavailable, TierTimeout)):
        return type(failure)(tier, f"{failure.message} (through the proxy {proxy}; `proxy: none` goes without)")
    return failure


def from_status(tier: str, code: grpc.StatusCode, details: str, retry_after_ms: str | bytes | None = None) -> TierError:
    """What a status means to the cascade, and when the caller may come again, where the server said so."""
    details = details.strip()
    text = f"{code.name}: {details}" if details else code.name
    kind = FROM_CODE.get(code, TierRejected)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        kind = TierRejected  # gRPC's own word for a message over the limit: it will be as large next time
    if kind is TierOverloaded:
        return TierOverloaded(tier, text, retry_after_s=_seconds(retry_after_ms))
    return kind(tier, text)


def _seconds(retry_after_ms: str | bytes | None) -> float | None:
    """None for no hint, and for one that says not to come again (negative, or no number)."""
    try:
        seconds = int(retry_after_ms or "") / 1000
    except (ValueError, OverflowError):
        return None
    return seconds if seconds >= 0 else None
