"""The time between servers, hop by hop, as it comes back through a chain.

A hop is what lies between two that speak to each other: of the asker's wait, the part that the server does not account
for. Hop 1 is the one next to whoever says it: in a server's answer it leads to the server behind, and who asked, and
has a hop of its own before that, counts one more.

    hop_1_s         seconds between here and the next server; hop_2_s between that one and the one behind it, ...
    hop_1_server_s  the whole time of the server at the end of hop 1, with what it waited for those behind it;
                    in what a call cost, that is `server_s`

So the wait for the next server is `hop_1_s + hop_1_server_s`, and `hop_2_s + hop_2_server_s` is part of the latter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

MOST_HOPS = 64
_HOP = re.compile(r"hop_([1-9][0-9]?)(_server)?_s")


def hops_of(parameters: Mapping[str, float], call: Mapping[str, float]) -> dict[str, float]:
    """A call's hops, as its caller counts them.

    Args:
        parameters: of the answer, seconds.
        call: `call_s`, and `server_s` where the server said it.
    """
    return {"hop_1_s": _wire(call), **_farther(parameters)}


def hops_behind(calls: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The hops behind a server, for its answer: of every call it made for a request, added up hop by hop.

    Args:
        calls: what its calls cost, local tiers' among them; an injected delay belongs to its hop.
    """
    total: dict[str, float] = {}
    for call in calls:
        if "call_s" in call or "delay_s" in call:
            hops = {key: seconds for key, seconds in call.items() if _HOP.fullmatch(key)}
            hops["hop_1_s"] = _wire(call) + call.get("delay_s", 0.0)
            if "server_s" in call:
                hops["hop_1_server_s"] = call["server_s"]
            for key, seconds in hops.items():
                total[key] = total.get(key, 0.0) + seconds
    return total


def _farther(parameters: Mapping[str, float]) -> dict[str, float]:
    """Each hop, counted from one server further away."""
    found: dict[str, float] = {}
    for key, seconds in parameters.items():
        hop = _HOP.fullmatch(key)
        if hop and int(hop[1]) < MOST_HOPS:
            found[f"hop_{int(hop[1]) + 1}{hop[2] or ''}_s"] = seconds
    return found


def _wire(call: Mapping[str, float]) -> float:
    return call.get("call_s", 0.0) - call.get("server_s", 0.0)
