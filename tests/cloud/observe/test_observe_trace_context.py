"""The W3C headers of a trace, which need no tracing package on either end."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.protocol import trace_context

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{SPAN}-01"


@pytest.fixture(autouse=True)
def _no_trace_before_or_after():
    trace_context.end()
    yield
    trace_context.end()


def test_a_device_begins_a_trace_and_sends_it_with_its_calls():
    hop = trace_context.begin()
    sent = trace_context.outgoing()
    assert set(sent) == {"traceparent"}
    match = re.fullmatch(r"00-([0-9a-f]{32})-([0-9a-f]{16})-01", sent["traceparent"])
    assert match
    assert match[1] == hop.trace_id
    assert hop.calls == [match[2]]


def test_a_server_goes_on_with_the_trace_that_came():
    hop = trace_context.begin({"traceparent": GOOD, "tracestate": "a=1"})
    assert (hop.trace_id, hop.parent_id, hop.is_sampled) == (TRACE, SPAN, True)
    sent = trace_context.outgoing()
    assert sent["traceparent"].startswith(f"00-{TRACE}-")
    assert SPAN not in sent["traceparent"]
    assert sent["tracestate"] == "a=1"


def test_a_server_that_keeps_no_spans_hands_the_trace_on_as_it_came():
    trace_context.relay({"traceparent": GOOD, "tracestate": "a=1"})
    assert trace_context.outgoing() == {"traceparent": GOOD, "tracestate": "a=1"}


def test_outside_a_trace_nothing_is_sent():
    assert trace_context.outgoing() == {}
    trace_context.relay({})
    assert trace_context.outgoing() == {}


def test_every_call_is_a_span_of_its_own():
    hop = trace_context.begin()
    assert len({trace_context.outgoing()["traceparent"] for _ in range(3)}) == 3
    assert len(hop.calls) == 3


BAD = [
    "",
    "00",
    GOOD.upper(),
    f"ff-{TRACE}-{SPAN}-01",
    f"00-{'0' * 32}-{SPAN}-01",
    f"00-{TRACE}-{'0' * 16}-01",
    f"00-{TRACE}-{SPAN}-01-more",
    f"00-{TRACE}-{SPAN}",
    f" {GOOD}",
    f"{GOOD}\n",
]


@pytest.mark.parametrize("header", BAD)
def test_a_header_that_is_none_begins_a_trace_instead(header):
    hop = trace_context.begin({"traceparent": header})
    assert hop.parent_id == ""
    assert hop.trace_id != TRACE


def test_a_later_version_may_say_more():
    assert trace_context.begin({"traceparent": f"01-{TRACE}-{SPAN}-01-more"}).parent_id == SPAN


@pytest.mark.parametrize("state", ["a\nb", "x" * 513, "é"])
def test_a_state_that_is_no_header_does_not_travel_on(state):
    trace_context.begin({"traceparent": GOOD, "tracestate": state})
    assert "tracestate" not in trace_context.outgoing()


@given(st.text(), st.text())
def test_whatever_the_headers_what_is_sent_on_is_sound(parent, state):
    trace_context.begin({"traceparent": parent, "tracestate": state})
    sent = trace_context.outgoing()
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]", sent["traceparent"])
    assert sent.get("tracestate", "x").isascii()


def test_of_the_traces_begun_here_the_share_asked_for_is_sampled():
    assert not any(trace_context.begin(share=0.0).is_sampled for _ in range(20))
    assert all(trace_context.begin(share=1.0).is_sampled for _ in range(20))
