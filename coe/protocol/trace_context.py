"""What goes with a call across servers: request headers, the W3C trace context, the network time of each link.

A `TraceSpan` is one program's part of a trace. The device begins a trace, a server goes on with the one that came; what
either calls meanwhile is sent `outgoing()`.

The network time of a link is the part of the caller's wait that the server does not account for. Link 1 is the one
next to whoever reports it: in a server's answer it leads to the server behind, so its caller counts one more.

    hop_1_s         seconds between here and the next server; hop_2_s between that one and the one behind it, ...
    hop_1_server_s  the whole time of the server at the end of link 1, its wait for those behind it included;
                    in a `CallCost`, that is `server_s`

So the wait for the next server is `hop_1_s + hop_1_server_s`, and `hop_2_s + hop_2_server_s` is part of the latter.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

from coe.cascade.types import COST_KEYS, CallCost

Header = tuple[str, str]
Headers = Callable[[], Sequence[Header]]

OUTGOING: ContextVar[tuple[Header, ...]] = ContextVar("coe_outgoing_headers", default=())
"""Headers of every call to a remote tier made in this context, such as those of a trace that is handed on unchanged;
names in lower case."""


def headers_of(own: Headers | None) -> tuple[Header, ...]:
    """A call's headers: the tier's own, and those of the context that have other names."""
    outgoing = OUTGOING.get()
    if own is None:
        return outgoing
    mine = tuple(own())
    names = {name for name, _ in mine}
    return (*mine, *(header for header in outgoing if header[0] not in names))


HEADERS = ("traceparent", "tracestate")
MOST_STATE = 512  # characters of tracestate that travel on, as the specification asks for at least
_PARENT = re.compile(  # no version ff, no fifth field in version 00 (a later one may have more), no id of zeros
    r"(?!ff|00-.{52}-)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII
)


@dataclass(slots=True)
class TraceSpan:
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


_current: ContextVar[TraceSpan | None] = ContextVar("coe_span", default=None)


def begin(headers: Mapping[str, str] | None = None, *, share: float = 1.0) -> TraceSpan:
    """Go on with the trace in `headers`, or begin one, for what this task or thread does from here.

    Args:
        share: of the traces begun here that are sampled. One that came says itself whether it is.
    """
    headers = headers or {}
    match = _PARENT.fullmatch(headers.get("traceparent", ""))
    span_id = os.urandom(8).hex()
    if match:
        state = headers.get("tracestate", "")
        if len(state) > MOST_STATE or not state.isascii() or not state.isprintable():
            state = ""
        span = TraceSpan(match[1], span_id, match[2], bool(int(match[3], 16) & 1), state, time.time_ns())
    else:  # what cannot be read is as if nothing had come
        trace_id = os.urandom(16)
        sampled = int.from_bytes(trace_id[-7:], "big") < share * 2**56
        span = TraceSpan(trace_id.hex(), span_id, "", sampled, "", time.time_ns())
    _current.set(span)
    return span


def id_of(headers: Mapping[str, str]) -> str:
    """The trace id in `headers`; "" where there is none that can be read."""
    match = _PARENT.fullmatch(headers.get("traceparent", ""))
    return match[1] if match else ""


def relay(headers: Mapping[str, str]) -> None:
    """Hand the trace in `headers` on as it came, where nothing is recorded here."""
    if "traceparent" in headers:
        span = begin(headers)
        span.relays = span.parent_id != ""


def end() -> TraceSpan | None:
    """The span, which ends here."""
    span = _current.get()
    _current.set(None)
    return span


def outgoing() -> dict[str, str]:
    """The headers of a call made now; none outside a trace."""
    span = _current.get()
    if span is None:
        return {}
    call = span.parent_id if span.relays else os.urandom(8).hex()
    span.calls.append(call)
    headers = {"traceparent": f"00-{span.trace_id}-{call}-{'01' if span.is_sampled else '00'}"}
    return headers | {"tracestate": span.state} if span.state else headers


MAX_LINKS = 64
_LINK_KEY = re.compile(r"hop_([1-9][0-9]?)(_server)?_s")


def with_server_times(call: CallCost, reported: Mapping[str, float]) -> CallCost:
    """What a call took, with the seconds that the server reports in its answer.

    Args:
        call: as measured here; that stands, whatever the answer says.
        reported: seconds of the answer, by key.
    """
    server_s = reported.get("server_s", 0.0)
    times = {"hop_1_s": call.call_s - server_s}
    for key, seconds in reported.items():
        link = _LINK_KEY.fullmatch(key)
        if link and int(link[1]) < MAX_LINKS:  # counted from here, it is one further away
            times[f"hop_{int(link[1]) + 1}{link[2] or ''}_s"] = seconds
        elif not key.startswith("hop_") and key not in COST_KEYS:
            times[key] = seconds
    return replace(
        call, server_s=server_s, queue_s=reported.get("queue_s", 0.0), hops_s=reported.get("hops_s", 0.0), times=times
    )


def network_times(calls: Iterable[CallCost]) -> dict[str, float]:
    """The seconds on each link behind a server, for its answer, added up over the calls it made for a request.

    Args:
        calls: what its tiers' calls took, local ones among them; an injected delay belongs to the first link.
    """
    total: dict[str, float] = {}
    for call in calls:
        if call.n_calls or call.delay_s:
            links = {key: seconds for key, seconds in call.times.items() if _LINK_KEY.fullmatch(key)}
            links["hop_1_s"] = call.network_s + call.delay_s
            if call.server_s:
                links["hop_1_server_s"] = call.server_s
            for key, seconds in links.items():
                total[key] = total.get(key, 0.0) + seconds
    return total
