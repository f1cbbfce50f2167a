"""What goes with a call across servers: request headers, the W3C trace context, the network time of each link.

A `TraceSpan` is one program's part of a trace. The device begins a trace, a server goes on with the one that came; what
either calls meanwhile is sent `outgoing()`.

A hop is what lies between two that speak to each other: of the asker's wait, the part that the server does not account
for. Hop 1 is the one next to whoever says it: in a server's answer it leads to the server behind, and who asked, and
has a hop of its own before that, counts one more.

    hop_1_s         seconds between here and the next server; hop_2_s between that one and the one behind it, ...
    hop_1_server_s  the whole time of the server at the end of hop 1, with what it waited for those behind it;
                    in what a call cost, that is `server_s`

So the wait for the next server is `hop_1_s + hop_1_server_s`, and `hop_2_s + hop_2_server_s` is part of the latter.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

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
_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)


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


_current: ContextVar[TraceSpan | None] = ContextVar("coe_hop", default=None)


def begin(headers: Mapping[str, str] | None = None, *, share: float = 1.0) -> TraceSpan:
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
        hop = TraceSpan(match[2], span_id, match[3], sampled, _clean(state), time.time_ns())
    else:  # what cannot be read is as if nothing had come
        trace_id = os.urandom(16)
        sampled = int.from_bytes(trace_id[-7:], "big") < share * 2**56
        hop = TraceSpan(trace_id.hex(), span_id, "", sampled, "", time.time_ns())
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


def current() -> TraceSpan | None:
    """The hop this task or thread is part of."""
    return _current.get()


def end() -> TraceSpan | None:
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


MAX_HOPS = 64
_HOP_KEY = re.compile(r"hop_([1-9][0-9]?)(_server)?_s")


def network_times(parameters: Mapping[str, float], call: Mapping[str, float]) -> dict[str, float]:
    """A call's hops, as its caller counts them.

    Args:
        parameters: of the answer, seconds.
        call: `call_s`, and `server_s` where the server said it.
    """
    return {"hop_1_s": _network_s(call), **_one_further(parameters)}


def network_times_behind(calls: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The hops behind a server, for its answer: of every call it made for a request, added up hop by hop.

    Args:
        calls: what its calls cost, local tiers' among them; an injected delay belongs to its hop.
    """
    total: dict[str, float] = {}
    for call in calls:
        if "call_s" in call or "delay_s" in call:
            hops = {key: seconds for key, seconds in call.items() if _HOP_KEY.fullmatch(key)}
            hops["hop_1_s"] = _network_s(call) + call.get("delay_s", 0.0)
            if "server_s" in call:
                hops["hop_1_server_s"] = call["server_s"]
            for key, seconds in hops.items():
                total[key] = total.get(key, 0.0) + seconds
    return total


def _one_further(parameters: Mapping[str, float]) -> dict[str, float]:
    """Each hop, counted from one server further away."""
    found: dict[str, float] = {}
    for key, seconds in parameters.items():
        hop = _HOP_KEY.fullmatch(key)
        if hop and int(hop[1]) < MAX_HOPS:
            found[f"hop_{int(hop[1]) + 1}{hop[2] or ''}_s"] = seconds
    return found


def _network_s(call: Mapping[str, float]) -> float:
    return call.get("call_s", 0.0) - call.get("server_s", 0.0)
