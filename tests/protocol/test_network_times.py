"""Time between servers, hop by hop, counted anew by each server of a chain."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coe.cascade.types import CallCost
from coe.protocol.trace_context import network_times, with_server_times

SECONDS = st.floats(0, 1e6)
EXACT = 1 / 1024  # sums of its multiples are exact


def call(call_s: float, server_s: float | None, told: dict[str, float]) -> CallCost:
    """What a call took, as RemoteTier has it."""
    own = {} if server_s is None else {"server_s": server_s}
    return with_server_times(CallCost(1, call_s=call_s), told | own)


def test_the_hops_of_a_chain_are_counted_from_whoever_reads_them():
    by_b = call(10 * EXACT, 4 * EXACT, {})  # b asked c
    told_by_b = network_times([by_b])
    assert told_by_b == {"hop_1_s": 6 * EXACT, "hop_1_server_s": 4 * EXACT}
    by_a = call(30 * EXACT, 20 * EXACT, told_by_b)  # a asked b
    told_by_a = network_times([CallCost(queue_s=1.0), by_a])
    assert told_by_a == {
        "hop_1_s": 10 * EXACT,
        "hop_1_server_s": 20 * EXACT,
        "hop_2_s": 6 * EXACT,
        "hop_2_server_s": 4 * EXACT,
    }
    by_device = call(50 * EXACT, 40 * EXACT, told_by_a)
    assert {key: seconds / EXACT for key, seconds in by_device.to_dict().items() if seconds} == {
        "call_s": 50,
        "server_s": 40,
        "hop_1_s": 10,
        "hop_2_s": 10,
        "hop_2_server_s": 20,
        "hop_3_s": 6,
        "hop_3_server_s": 4,
    }


def test_an_injected_delay_belongs_to_its_hop():
    cost = call(3 * EXACT, EXACT, {}) + CallCost(delay_s=8 * EXACT)
    assert network_times([cost])["hop_1_s"] == 10 * EXACT


def test_several_calls_for_one_request_add_up_hop_by_hop():
    calls = [call(3 * EXACT, EXACT, {"hop_1_s": EXACT}), call(5 * EXACT, EXACT, {})]
    assert network_times(calls) == {"hop_1_s": 6 * EXACT, "hop_1_server_s": 2 * EXACT, "hop_2_s": EXACT}


def test_a_server_that_does_not_tell_its_own_time_is_all_hop():
    assert network_times([call(3 * EXACT, None, {})]) == {"hop_1_s": 3 * EXACT}


def test_a_local_tier_is_no_hop():
    assert network_times([CallCost(queue_s=1.0), CallCost()]) == {}


@given(st.dictionaries(st.from_regex(r"(hop_)?[0-9]{0,3}(_server)?_s?", fullmatch=True), SECONDS, max_size=8))
def test_whatever_a_server_tells_a_hop_is_one_of_64_and_the_first_is_measured_here(told):
    told["server_s"] = 2.0
    hops = {key: s for key, s in with_server_times(CallCost(1, call_s=5.0), told).times.items() if "hop" in key}
    assert hops["hop_1_s"] == 3.0
    numbers = [int(key.split("_")[1]) for key in hops]
    assert all(1 <= number <= 64 for number in numbers)
    assert "hop_1_server_s" not in hops
