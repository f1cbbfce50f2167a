"""A tier behind a model of a link."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from strategies import Broken, one_hot, rows, table_tier

from coe.cascade import CallCost, TierTimeout
from coe.link import Link, Propagation, TierBehindLink, VirtualClock, bandwidth


class Called:
    """A tier whose call takes a second and so many bytes."""

    n_tiers, waits = 1, False

    def __init__(self, clock):
        self.clock, self.inner = clock, table_tier([one_hot([1])], Fraction(1), "far")
        self.name, self.rule = self.inner.name, self.inner.rule

    def vote(self, batch, rule):
        self.clock.wait(1.0)
        call = CallCost(call_s=1.0, bytes_sent=2000, bytes_received=100)
        return replace(self.inner.vote(batch, rule), call=call)


def test_a_call_waits_for_what_the_link_takes_both_ways():
    clock = VirtualClock()
    link = Link(up=[Propagation(0.2), bandwidth(1000.0)], down=[Propagation(0.1)])
    tier = TierBehindLink(Called(clock), link, clock=clock)
    clock.seconds = 50.0
    vote = tier.vote(rows(1), tier.rule)
    assert tier.waits
    assert vote.call.delay_s == pytest.approx(0.2 + 2.0 + 0.1)
    assert clock.now() == pytest.approx(50 + 1.0 + 2.3)


def test_the_queue_of_a_link_is_kept_between_calls():
    clock = VirtualClock()
    tier = TierBehindLink(Called(clock), Link(up=[bandwidth(1000.0)]), clock=clock)
    tier.vote(rows(1), tier.rule)
    clock.seconds = 0.5  # as a second thread would have called: behind the first message, which leaves at 2
    assert tier.vote(rows(1), tier.rule).call.delay_s == pytest.approx(3.5)


def test_a_call_that_fails_has_waited_for_the_link_too():
    clock = VirtualClock()
    tier = TierBehindLink(Broken(TierTimeout("far", "no answer")), Link(up=[Propagation(0.2)]), clock=clock)
    with pytest.raises(TierTimeout) as failed:
        tier.vote(rows(1), tier.rule)
    assert clock.now() == pytest.approx(0.2)
    assert failed.value.call.delay_s == pytest.approx(0.2)
