"""What may come in at once, and what those who may not are told."""

from __future__ import annotations

import numpy as np
import pytest

from cloud.limits import LEAST_RETRY_S, MOST_RETRY_S, CallGate, Limits
from coe.cascade import InputError
from coe.cascade.errors import TooManyCalls
from coe.protocol.core import Request


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def request(**fields: object) -> Request:
    return Request("digits", "", "", {"input": np.zeros((1, 1), np.float32)}, **fields)  # type: ignore[arg-type]


def hint(calls: CallGate) -> float:
    with pytest.raises(TooManyCalls, match="2 calls are under way, at most 2 may be") as caught:
        calls.enter(request())
    assert caught.value.retry_after_s is not None
    return caught.value.retry_after_s


def full(clock: Clock) -> CallGate:
    calls = CallGate(Limits(max_calls=2), clock)
    calls.enter(request())
    calls.enter(request())
    return calls


def test_a_place_is_free_again_when_a_call_leaves():
    calls = full(Clock())
    hint(calls)
    calls.leave(request())
    calls.enter(request())
    assert calls.n_inside == 2


def test_the_hint_grows_while_many_are_refused_and_shrinks_after():
    clock = Clock()
    calls = full(clock)
    assert 0.5 * LEAST_RETRY_S <= hint(calls) <= 1.5 * LEAST_RETRY_S
    for _ in range(40):
        clock.now += 1.0
        hint(calls)
    assert calls.retry_s == MOST_RETRY_S
    clock.now += 20.0  # nobody was refused
    hint(calls)
    assert calls.retry_s < 0.1


def test_hints_are_spread_so_that_callers_do_not_come_back_together():
    calls = full(Clock())
    assert len({hint(calls) for _ in range(20)}) == 20


def test_a_call_without_a_deadline_or_with_a_far_one_gets_the_servers():
    calls = CallGate(Limits(max_s=5.0))
    for remaining_s, given in ((None, 5.0), (3600.0, 5.0), (2.0, 2.0)):
        asked = request(remaining_s=remaining_s)
        calls.enter(asked)
        assert asked.remaining_s == given


def test_a_text_over_the_limit_is_refused_and_an_image_is_not_taken_for_one():
    calls = CallGate(Limits(max_text_bytes=8))
    column = np.empty(2, dtype=object)
    column[:] = [b"\x89PNG" + bytes(100), b"longer than eight"]
    with pytest.raises(InputError, match="row 1: expected a text of at most 8 bytes, got 17"):
        calls.enter(Request("digits", "", "", {"input": column}))
    assert calls.n_inside == 0
