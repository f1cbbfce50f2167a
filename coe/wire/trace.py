"""W3C trace context: one trace from the device through every server it reaches. Needs no tracing package.

A `Hop` is one program's part of a trace. The device begins a trace, a server goes on with the one that came; what
either calls meanwhile is sent `outgoing()`.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

HEADERS = ("traceparent", "tracestate")
MOST_STATE = 512  # characters of tracestate that travel on, as the specification asks for at least
_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)


@dataclass(slots=True)
class Hop:
    """One program's part of a trace.

    Args:
        trace_id, span_id: 32 and 16 hex digits; parent_id: the caller's span, "" where the trace begins here.
        is_sampled: whether somebody keeps it.
        started_ns: `time.time_ns()` as it began.
        calls: the spans of the calls made meanwhile, in order.
        relays: nothing is recorded here, so that calls go on in the caller's own span.
    """

    trace_id: str
    span_id: str
    parent_id: str
    is_sampled: bool
    state: str
    started_ns: int
    calls: list[str] = field(default_factory=list)
    relays: bool = False


_current: ContextVar[Hop | None] = ContextVar("coe_hop", default=None)


def begin(headers: Mapping[str, str] | None = None, *, share: float = 1.0) -> Hop:
    """Go on with the trace in `headers`, or begin one, for what this task or thread does from here.

    Args:
        share: of the traces begun here that are sampled. One that came says itself whether it is.
    """
    headers = headers or {}
    match = _PARENT.fullmatch(headers.get("traceparent", ""))
    span_id = os.urandom(8).hex()
    if match and _is_usable(match):
        sampled = bool(int(match[4], 16) & 1)
        state = headers.get("tracestate", "")
        hop = Hop(match[2], span_id, match[3], sampled, _clean(state), time.time_ns())
    else:  # what cannot be read is as if nothing had come
        trace_id = os.urandom(16)
        sampled = int.from_bytes(trace_id[-7:], "big") < share * 2**56
        hop = Hop(trace_id.hex(), span_id, "", sampled, "", time.time_ns())
    _current.set(hop)
    return hop


def id_of(headers: Mapping[str, str]) -> str:
    """The trace id in `headers`; "" where there is none that can be read."""
    match = _PARENT.fullmatch(headers.get("traceparent", ""))
    return match[2] if match and _is_usable(match) else ""


def relay(headers: Mapping[str, str]) -> None:
    """Hand the trace in `headers` on as it came, where nothing is recorded here."""
    if "traceparent" in headers:
        hop = begin(headers)
        hop.relays = hop.parent_id != ""


def current() -> Hop | None:
    """The hop this task or thread is part of."""
    return _current.get()


def end() -> Hop | None:
    """The hop that ends here."""
    hop = _current.get()
    if hop is not None:
        _current.set(None)
    return hop


def outgoing() -> dict[str, str]:
    """The headers of a call made now; none outside a trace."""
    hop = _current.get()
    if hop is None:
        return {}
    call = hop.parent_id if hop.relays else os.urandom(8).hex()
    hop.calls.append(call)
    headers = {"traceparent": f"00-{hop.trace_id}-{call}-{'01' if hop.is_sampled else '00'}"}
    return headers | {"tracestate": hop.state} if hop.state else headers


def _is_usable(match: re.Match[str]) -> bool:
    known = match[1] != "00" or match[5] is None  # version 00 has four fields; a later one may have more
    return known and match[1] != "ff" and match[2].strip("0") != "" and match[3].strip("0") != ""


def _clean(state: str) -> str:
    return state if len(state) <= MOST_STATE and state.isascii() and state.isprintable() else ""
