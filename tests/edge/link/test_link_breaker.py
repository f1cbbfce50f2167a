"""The breaker, on a clock of the test's own: who may call, when it is probed, and that it never gets stuck."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coe.cascade import TierOverloaded, TierTimeout, TierUnavailable
from edge.link import SPREAD, CircuitBreaker, LinkConfig, LinkState, LinkStatus

GROWTH, JITTER = 2.0, SPREAD[1] - 1.0

GONE = TierUnavailable("cloud", "refused")
LATE = TierTimeout("cloud", "no answer")
CONFIG = LinkConfig(failures=3, rebuild_after=2, backoff_s=(0.2, 5.0))
OPS = (
    "admit",
    "answer",
    "overload",
    "fail",
    "miss",
    "undecided",
    "probe up",
    "probe down",
    "rebuilt",
    "hasten",
    "pass",
)


class Watched:
    """A breaker, its clock, and the tickets that are out."""

    def __init__(self, config: LinkConfig = CONFIG, seed: int = 0) -> None:
        self.now = 100.0
        self.told: list[LinkState] = []
        self.breaker = CircuitBreaker(
            "cloud", config, clock=lambda: self.now, rng=random.Random(seed), changed=self.told.append
        )
        self.tickets: list[int] = []

    @property
    def state(self) -> LinkState:
        return self.breaker.state

    def fail(self, n: int = 1, error: TierUnavailable | TierTimeout = GONE) -> list[bool]:
        return [self.breaker.failed(self.breaker.admit(), error) for _ in range(n)]

    def to_probe(self) -> None:
        assert self.state.next_probe_at < math.inf
        self.now = max(self.now, self.state.next_probe_at)

    def half_open(self) -> None:
        self.fail(3)
        self.to_probe()
        self.breaker.probed(True)


def test_calls_pass_until_so_many_failures_in_a_row():
    link = Watched()
    link.fail(2)
    link.breaker.answered(0.01)
    link.fail(2)
    assert (link.state.status, link.state.failures) == (LinkStatus.CLOSED, 2)
    link.fail()
    assert (link.state.status, link.state.failures, link.state.error) == (LinkStatus.OPEN, 3, str(GONE))
    assert [state.status for state in link.told] == [LinkStatus.OPEN]


def test_while_open_a_call_fails_at_once_and_says_when_the_next_probe_is():
    link = Watched()
    link.fail(3)
    with pytest.raises(TierUnavailable, match=r"^tier cloud: the link is down, next probe in [12]\d\d ms$"):
        link.breaker.admit()
    link.to_probe()
    with pytest.raises(TierUnavailable, match="the link is down, a probe is under way"):
        link.breaker.admit()


def test_after_a_good_probe_one_call_may_try_and_its_answer_lets_all_pass():
    link = Watched()
    link.half_open()
    assert link.state.status is LinkStatus.HALF_OPEN
    link.breaker.admit()
    with pytest.raises(TierUnavailable, match="another call is trying it"):
        link.breaker.admit()
    link.breaker.answered(0.01)
    assert [link.breaker.admit() for _ in range(5)]
    assert [state.status for state in link.told] == [LinkStatus.OPEN, LinkStatus.HALF_OPEN, LinkStatus.CLOSED]


def test_a_trial_that_fails_opens_again_and_waits_longer():
    link = Watched()
    link.fail(3)
    first = link.state.next_probe_at - link.now
    link.to_probe()
    link.breaker.probed(True)
    link.fail()
    assert link.state.status is LinkStatus.OPEN
    assert link.state.next_probe_at - link.now > first
    assert link.state.n_opened == 1  # it was never up in between


def test_a_trial_that_tells_nothing_leaves_the_place_to_another():
    link = Watched()
    link.half_open()
    link.breaker.undecided(link.breaker.admit())
    assert link.state.status is LinkStatus.HALF_OPEN
    link.breaker.answered(link.breaker.admit())
    assert link.state.status is LinkStatus.CLOSED


def test_failures_of_calls_from_before_the_link_was_back_are_not_counted():
    link = Watched()
    old = [link.breaker.admit() for _ in range(16)]
    link.half_open()
    trial = link.breaker.admit()
    assert not any(link.breaker.failed(ticket, LATE) for ticket in old)
    assert link.state.status is LinkStatus.HALF_OPEN
    link.breaker.answered(trial)
    assert not any(link.breaker.failed(ticket, LATE) for ticket in old)
    assert (link.state.status, link.state.failures) == (LinkStatus.CLOSED, 0)


def test_so_many_deadline_misses_in_a_row_ask_for_a_new_connection_once():
    link = Watched(LinkConfig(failures=100, rebuild_after=3))
    assert link.fail(2, LATE) == [False, False]
    assert link.fail(1, GONE) == [False]  # not a miss, and it ends the row
    assert link.fail(5, LATE) == [False, False, True, False, False]
    before = link.breaker.admit()
    link.breaker.rebuilt()
    assert link.breaker.failed(before, LATE) is False  # it was on the old one
    assert (link.state.misses, link.state.n_rebuilds) == (0, 1)
    assert link.fail(3, LATE) == [False, False, True]


def test_an_overloaded_server_is_left_alone_as_long_as_it_said_and_no_longer_than_the_longest_wait():
    link = Watched()
    link.fail(2)
    link.breaker.overloaded(2.0)
    assert link.state.failures == 0  # it answered
    with pytest.raises(TierOverloaded, match="left alone for another 2 s") as caught:
        link.breaker.admit()
    assert caught.value.retry_after_s == 2.0
    link.now += 2.0
    link.breaker.admit()
    link.breaker.overloaded(1e9)
    link.now += 5.0
    link.breaker.admit()
    link.breaker.overloaded(None)
    link.breaker.admit()


def test_a_draining_server_is_not_called_and_is_known_to_drain():
    link = Watched()
    link.fail(3)
    link.to_probe()
    link.breaker.probed(False, "draining", is_draining=True)
    assert (link.state.status, link.state.is_draining, link.state.error) == (LinkStatus.OPEN, True, "draining")
    link.to_probe()
    link.breaker.probed(True)
    assert not link.state.is_draining


def test_an_answer_that_was_late_closes_and_a_probe_after_it_changes_nothing():
    link = Watched()
    link.fail(3)
    link.breaker.answered(1.9)
    assert link.state.status is LinkStatus.CLOSED
    link.breaker.probed(False, "refused")
    assert (link.state.status, link.state.next_probe_at) == (LinkStatus.CLOSED, math.inf)


def test_the_state_is_of_one_moment_and_tells_of_the_round_trips():
    link = Watched()
    before = link.state
    assert math.isnan(before.round_trip_s)
    link.breaker.answered(0.2)
    link.breaker.answered(0.1)
    assert math.isnan(before.round_trip_s)
    assert (link.state.best_s, link.state.tier) == (0.1, "cloud")
    assert 0.1 < link.state.round_trip_s < 0.2


@given(
    seed=st.integers(0, 2**32),
    first=st.floats(0.001, 10),
    times=st.floats(1, 1000),
    fates=st.lists(st.booleans(), max_size=40),
)
def test_each_wait_is_within_its_band_and_the_bands_grow_to_the_longest(seed, first, times, fates):
    """Probes fail, or are answered and the trial call fails: either way the next wait is longer."""
    longest = first * times
    link = Watched(LinkConfig(failures=1, backoff_s=(first, longest)), seed)
    link.fail()
    for number, is_up in enumerate(fates):
        wait = link.state.next_probe_at - link.now
        middle = min(longest, first * GROWTH**number)
        assert middle * (1 - JITTER) - 1e-6 <= wait <= middle * (1 + JITTER) + 1e-6
        link.to_probe()
        link.breaker.probed(is_up, "down")
        if is_up:
            link.fail()
    link.breaker.answered(0.01)
    link.fail()
    assert link.state.next_probe_at - link.now <= first * (1 + JITTER) + 1e-6  # an answer forgets how long it was


def test_two_devices_do_not_probe_at_the_same_times():
    waits = []
    for seed in range(20):
        link = Watched(seed=seed)
        link.fail(3)
        waits.append(link.state.next_probe_at - link.now)
    assert len(set(waits)) == 20
    assert max(waits) - min(waits) > 0.5 * 2 * JITTER * CONFIG.backoff_s[0]


@given(seed=st.integers(0, 99), steps=st.lists(st.tuples(st.sampled_from(OPS), st.integers(0, 30)), max_size=120))
@settings(max_examples=300)
def test_whatever_happens_and_in_whatever_order(seed, steps):
    """One trial at a time; an answer closes; a link that is down has a probe due soon, one that is not has none."""
    link = Watched(seed=seed)
    out: list[tuple[int, LinkStatus]] = []  # tickets, and what the status was when each was given
    n_trials = 0

    def back(at: int) -> int:
        nonlocal n_trials
        ticket, was = out.pop(at % len(out))
        n_trials -= was is LinkStatus.HALF_OPEN and ticket == current
        return ticket

    current = link.breaker._ticket
    for op, at in steps:
        before = link.state
        if op == "admit":
            admitted = _admitted(link.breaker.admit)
            assert admitted is not None or before.status is not LinkStatus.CLOSED or link.now < before.held_until
            if admitted is not None:
                assert before.status is not LinkStatus.OPEN
                if before.status is LinkStatus.HALF_OPEN:
                    assert n_trials == 0
                    n_trials += 1
                out.append((admitted, before.status))
        elif op == "pass":
            link.now += at / 10
        elif op.startswith("probe") and before.next_probe_at <= link.now:
            link.breaker.probed(op == "probe up", "" if op == "probe up" else "refused")
            assert link.state.status is (LinkStatus.HALF_OPEN if op == "probe up" else LinkStatus.OPEN)
        elif op == "hasten":
            link.breaker.hasten()
            assert link.state.next_probe_at <= before.next_probe_at
        elif op == "rebuilt" and before.status is not LinkStatus.HALF_OPEN:
            link.breaker.rebuilt()
        elif out and op in ("answer", "overload"):
            back(at)
            if op == "answer":
                link.breaker.answered(at / 100)
            else:
                link.breaker.overloaded(at / 10)
            assert (link.state.status, link.state.failures) == (LinkStatus.CLOSED, 0)
        elif out and op in ("fail", "miss"):
            link.breaker.failed(back(at), GONE if op == "fail" else LATE)
        elif out and op == "undecided":
            link.breaker.undecided(back(at))
        if link.breaker._ticket != current:
            current, n_trials = link.breaker._ticket, 0
        state = link.state
        longest = CONFIG.backoff_s[1] * (1 + JITTER)
        if state.status is LinkStatus.OPEN:
            assert state.next_probe_at <= max(link.now, before.next_probe_at if before == state else link.now) + longest
        else:
            assert state.next_probe_at == math.inf
        if state.status is not before.status:
            assert link.told[-1] == state
            assert state.since == link.now


def _admitted(admit: Callable[[], int]) -> int | None:
    try:
        return admit()
    except (TierUnavailable, TierOverloaded):
        return None


def test_a_change_of_the_devices_own_network_brings_the_next_probe_forward_and_never_back():
    link = Watched()
    link.breaker.hasten()
    assert link.state.next_probe_at == math.inf  # it is not down
    link.fail(3)
    for _ in range(6):
        link.to_probe()
        link.breaker.probed(False, "no network")
    assert link.state.next_probe_at - link.now > 3.0
    link.breaker.hasten()
    assert link.state.next_probe_at - link.now <= 0.2 * (1 + JITTER)
    due = link.state.next_probe_at
    link.now = due - 0.01
    link.breaker.hasten()
    assert link.state.next_probe_at == due


@given(seed=st.integers(0, 99), n_failed=st.integers(0, 30))
def test_when_the_link_works_again_it_is_open_for_the_longest_wait_at_most(seed, n_failed):
    link = Watched(seed=seed)
    link.fail(3)
    for _ in range(n_failed):
        link.to_probe()
        link.breaker.probed(False, "refused")
    works_from = link.now
    link.to_probe()
    link.breaker.probed(True)
    link.breaker.admit()
    assert link.now - works_from <= CONFIG.backoff_s[1] * (1 + JITTER)
