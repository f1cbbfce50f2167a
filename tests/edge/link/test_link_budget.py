"""LinkBudget: a month's bytes over restarts, an hour's examples, and what is counted as not sent."""

from __future__ import annotations

import calendar
import json
import time

import numpy as np
import pytest
from fakes import DECODER, UNANIMOUS, Far, ListSink, Numbers, Seat
from test_link_tier import Far as FarRemote

from coe.cascade import Batch, CallCost, Cascade, LocalTier, TierUnavailable
from coe.cascade.rule import Always
from edge.agent import Agent
from edge.link import LinkConfig
from edge.link_budget import LinkBudget, OverBudget, OverCap, read_months
from edge.linked_tier import LinkedTier
from edge.spool import SpoolConfig

ONE = Batch(("x",), np.zeros((1, 1), dtype=np.int64))


class Clocks:
    def __init__(self, date: str = "2026-11-28") -> None:
        self.wall, self.now = 0.0, 100.0
        self.set(date)

    def set(self, date: str) -> None:
        self.wall = float(calendar.timegm(time.strptime(date, "%Y-%m-%d")))

    def budget(self, path, config: LinkConfig) -> LinkBudget:
        return LinkBudget(config, path / "link.json", wall_clock=lambda: self.wall, clock=lambda: self.now)


def kilobytes(n: int) -> CallCost:
    return CallCost(1, bytes_sent=n * 900, bytes_received=n * 100)


CAP = LinkConfig(max_bytes_per_month=1e6)


def test_a_month_s_bytes_are_counted_over_restarts_and_the_next_month_begins_anew(tmp_path):
    clocks = Clocks()
    for _ in range(5):
        budget = clocks.budget(tmp_path, CAP)
        budget.take("cloud")
        budget.spend(kilobytes(200))
        budget.close()
    with pytest.raises(OverCap, match=r"tier cloud: the 1 MB of this month are used up \(link.max_mb_per_month\)"):
        clocks.budget(tmp_path, CAP).take("cloud")
    assert not clocks.budget(tmp_path, CAP).allows()
    clocks.set("2026-12-01")
    assert clocks.budget(tmp_path, CAP).allows()
    clocks.set("2026-11-30")  # the clock is set back: what was counted then still counts
    assert not clocks.budget(tmp_path, CAP).allows()


def test_a_killed_agent_has_lost_at_most_a_hundredth_of_the_month(tmp_path):
    clocks = Clocks()
    budget = clocks.budget(tmp_path, CAP)
    for sent in range(1, 101):
        budget.spend(kilobytes(3))
        kept = clocks.budget(tmp_path, CAP).report()["bytes"]  # as a start after a kill would find it
        assert sent * 3000 - kept <= 0.01 * 1e6 + 3000


def test_a_clock_that_was_never_set_counts_in_the_latest_month_known(tmp_path):
    clocks = Clocks()
    budget = clocks.budget(tmp_path, CAP)
    budget.spend(kilobytes(1000))
    clocks.set("1970-01-01")
    assert not budget.allows()
    assert LinkBudget(CAP, tmp_path / "none.json", wall_clock=lambda: 0.0).allows()


def test_no_more_examples_than_the_budget_leave_in_an_hour(tmp_path):
    clocks = Clocks()
    budget = clocks.budget(tmp_path, LinkConfig(max_examples_per_hour=3))
    for _ in range(3):
        budget.take("cloud")
    with pytest.raises(OverBudget, match="3 examples were sent in this hour"):
        budget.take("cloud")
    clocks.now += 3599
    assert not budget.allows()
    clocks.now += 2
    budget.take("cloud")
    assert budget.report()["examples_in_hour"] == 1


@pytest.mark.parametrize("content", ["", "[]", '{"2026-11": 3}', '{"2026-11": {"bytes": "many"}}', "\0"])
def test_a_damaged_file_counts_as_none(tmp_path, content):
    (tmp_path / "link.json").write_text(content)
    assert read_months(tmp_path / "link.json") == {}


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    budget = LinkBudget(CAP, tmp_path / "file" / "link.json")
    budget.spend(kilobytes(500))
    budget.close()
    assert budget.report()["bytes"] == 500_000


def test_a_linked_tier_counts_its_calls_failed_ones_too_and_makes_none_beyond(tmp_path):
    budget = Clocks().budget(tmp_path, LinkConfig(max_examples_per_hour=2))
    far = FarRemote()
    tier = LinkedTier(far, budget=budget)
    far.answer = lambda batch: (_ for _ in ()).throw(TierUnavailable("cloud", "gone").with_call(kilobytes(7)))
    with pytest.raises(TierUnavailable):
        tier.vote(ONE, Always())
    far.answer = lambda batch: None
    tier.vote(ONE, Always())
    with pytest.raises(OverBudget):
        tier.vote(ONE, Always())
    assert far.did.count("call") == 2
    assert budget.report()["bytes"] == 7000
    assert tier.state.failures == 0  # a refusal of ours is no failure of the link
    tier.close()


def test_the_device_answers_what_may_not_be_sent_and_it_is_counted(tmp_path):
    budget = Clocks().budget(tmp_path, LinkConfig(max_examples_per_hour=2))
    sink = ListSink()

    def answer(batch: Batch) -> None:
        budget.take("cloud")

    device = LocalTier("device", [Seat(0), Seat(1), Seat(2)], UNANIMOUS)
    cascade = Cascade([device, Far(answer)])
    Agent(cascade, DECODER, sink, max_in_flight=0, observers=[budget]).run(Numbers(10))
    late = [outcome for outcome in sink.outcomes if outcome.reason]
    assert [outcome.reason for outcome in late] == ["budget"] * 3
    assert all(outcome.decision.exit_tier == 1 for outcome in late)
    assert budget.report()["not_sent"] == {"cap": 0, "budget": 3, "duplicate": 0}
    budget.close()
    assert json.loads((tmp_path / "link.json").read_text()) == {"2026-11": {"budget": 3}}


@pytest.mark.parametrize(
    ("window", "open_at", "closed_at"),
    [
        ("22:00-06:00", ["22:00", "00:00", "05:59"], ["06:00", "12:00", "21:59"]),
        ("01:00-02:00", ["01:00", "01:30"], ["02:00", "00:59"]),
    ],
)
def test_a_window_may_have_midnight_in_it(tmp_path, window, open_at, closed_at):
    spool = SpoolConfig(tmp_path / "spool.db", send_between=(window,))
    assert all(spool.sends_at(at) for at in open_at)
    assert not any(spool.sends_at(at) for at in closed_at)
    assert SpoolConfig(tmp_path / "spool.db").sends_at("00:00")
