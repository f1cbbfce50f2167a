"""One contract that every tier passes: the cascade cannot tell them apart."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import VERSION, served, servicer, serving
from loops import Loop, LoopedBatcher
from strategies import Broken, one_hot, rows, table_tier, tables, thetas

from coe.cascade import Agreement, Always, Batch, Cascade, Confidence, Tier, TierUnavailable, Vote
from coe.cascade.types import Array
from coe.link import Delay, DelayedTier, VirtualClock
from coe.protocol.remote import RemoteTier
from edge.linked_tier import LinkedTier

KINDS = (
    "local",
    "local, everybody asked",
    "local, side by side",
    "remote",
    "remote, on a stream",
    "delayed local",
    "delayed remote",
    "linked remote",
    "batched local",
    "batched local, in pieces",
)
ASK_ALL = Always(asks_all=True)
Make = Callable[..., Tier]


@pytest.fixture(scope="module")
def cloud() -> Iterator[SimpleNamespace]:
    """A server to which a test adds what it serves."""
    service = servicer()
    names = (f"model-{number}" for number in count())
    with serving(service.handler()) as address, ExitStack() as opened:

        def ask(cascade: Cascade, n_labels: int, rule: object = None, **options: object) -> RemoteTier:
            """A remote tier that asks `cascade` on the server."""
            name = next(names)
            service.plane.models[name] = served(name, cascade, n_labels)
            remote = RemoteTier(
                "cloud",
                address,
                name,
                rule or Always(),
                n_labels=n_labels,
                fingerprint=VERSION,
                n_tiers=cascade.n_tiers,
                deadline_s=20.0,
                **options,  # type: ignore[arg-type]
            )
            opened.callback(remote.close)
            return remote

        loop = Loop()
        opened.callback(loop.close)
        yield SimpleNamespace(ask=ask, address=address, loop=loop)


def make_tier(kind: str, cloud: SimpleNamespace, outputs: list[Array], rule: object, stack: ExitStack) -> Tier:
    """A tier of that kind whose members answer from `outputs`, one table each."""
    inner: Tier
    if "remote" in kind:
        alone = Cascade([table_tier(outputs, ASK_ALL)])
        inner = cloud.ask(alone, outputs[0].shape[1], rule, stream="stream" in kind)
    else:
        side_by_side, everybody = "side by side" in kind, "everybody" in kind
        inner = table_tier(outputs, rule, "local", parallel=side_by_side, early=not everybody)
    tier = inner
    if "delayed" in kind:
        tier = DelayedTier(inner, Delay(0.1, one_way=True), VirtualClock())
    if "linked" in kind:
        tier = LinkedTier(inner)
    if "batched" in kind:
        tier = LoopedBatcher(cloud.loop, inner, max_batch=2 if "pieces" in kind else 64)
    stack.callback(tier.close)
    return tier


def said(vote: Vote) -> list[list[float]]:
    return [vote.labels.tolist(), vote.count.tolist(), vote.asked.tolist(), vote.score.tolist()]


@pytest.mark.parametrize("kind", KINDS)
@given(outputs=tables())
@settings(max_examples=25)
def test_where_the_vote_itself_is_wanted_every_tier_says_the_same(cloud, kind, outputs):
    batch = rows(len(outputs[0]))
    wanted = table_tier(outputs, ASK_ALL, early=False).vote(batch, ASK_ALL)
    with ExitStack() as stack:
        vote = make_tier(kind, cloud, outputs, ASK_ALL, stack).vote(batch, ASK_ALL)
    assert said(vote) == said(wanted)
    assert vote.n_members == len(outputs)


@pytest.mark.parametrize("kind", KINDS)
@given(outputs=tables(), theta=thetas())
@settings(max_examples=25)
def test_the_same_examples_exit_with_the_same_label_under_a_rule(cloud, kind, outputs, theta):
    rule = Agreement(theta)
    batch = rows(len(outputs[0]))
    wanted = table_tier(outputs, rule, early=False).vote(batch, rule)
    with ExitStack() as stack:
        vote = make_tier(kind, cloud, outputs, rule, stack).vote(batch, rule)
    exits = rule.exits(batch, vote)
    assert exits.tolist() == rule.exits(batch, wanted).tolist()
    assert vote.labels[exits].tolist() == wanted.labels[exits].tolist()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "remote" not in kind])
@given(outputs=tables(), threshold=st.floats(0, 1))
@settings(max_examples=15)
def test_a_local_tier_pools_scores_where_the_rule_asks_for_it(cloud, kind, outputs, threshold):
    rule = Confidence(threshold)
    batch = rows(len(outputs[0]))
    with ExitStack() as stack:
        vote = make_tier(kind, cloud, outputs, rule, stack).vote(batch, rule)
    assert said(vote) == said(table_tier(outputs, rule, early=False).vote(batch, rule))


@pytest.mark.parametrize("kind", KINDS)
@given(outputs=tables(), theta=thetas())
@settings(max_examples=15)
def test_a_batch_is_its_rows_one_by_one(cloud, kind, outputs, theta):
    rule = Agreement(theta)
    with ExitStack() as stack:
        tier = make_tier(kind, cloud, outputs, rule, stack)
        whole = tier.vote(rows(len(outputs[0])), rule)
        ones = [tier.vote(rows(1, row), rule) for row in range(len(outputs[0]))]
    exits = rule.exits(rows(len(whole)), whole)
    for row, one in enumerate(ones):
        assert bool(rule.exits(rows(1, row), one)[0]) == bool(exits[row])
        if exits[row] and "side by side" in kind:  # how many were asked by then is a matter of time
            assert one.labels[0] == whole.labels[row]
        elif exits[row]:
            assert said(one) == said(whole.take(np.array([row])))


@pytest.mark.parametrize("kind", KINDS)
def test_answers_come_back_in_the_order_of_the_rows(cloud, kind):
    outputs = [one_hot([0, 1, 2, 1, 0, 2]), one_hot([0, 1, 2, 2, 0, 1])]
    order = np.array([5, 0, 3, 2, 2, 1, 4])
    batch = Batch(tuple(f"x{at}" for at in range(len(order))), order[:, None])
    with ExitStack() as stack:
        tier = make_tier(kind, cloud, outputs, ASK_ALL, stack)
        shuffled = tier.vote(batch, ASK_ALL)
        straight = tier.vote(rows(6), ASK_ALL)
    assert said(shuffled) == said(straight.take(order))


@pytest.mark.parametrize("kind", KINDS)
@given(outputs=tables(), theta=thetas())
@settings(max_examples=15)
def test_complete_asks_the_members_that_were_not_asked(cloud, kind, outputs, theta):
    rule = Agreement(theta)
    batch = rows(len(outputs[0]))
    with ExitStack() as stack:
        tier = make_tier(kind, cloud, outputs, rule, stack)
        whole = tier.complete(batch, tier.vote(batch, rule))
    assert said(whole) == said(table_tier(outputs, rule, early=False).vote(batch, rule))


@pytest.mark.parametrize("kind", KINDS)
def test_a_vote_has_the_shapes_and_kinds_that_types_promises(cloud, kind):
    rule = Agreement(Fraction(2, 3))
    outputs = [one_hot([0, 1, 2]), one_hot([0, 1, 1]), one_hot([0, 2, 0])]
    with ExitStack() as stack:
        tier = make_tier(kind, cloud, outputs, rule, stack)
        vote = tier.vote(rows(3), rule)
        assert tier.rule == rule
        assert tier.name
        assert tier.n_tiers == 1
        assert tier.waits is ("remote" in kind or "delayed" in kind)
    for column, dtype in (
        (vote.labels, "int64"),
        (vote.count, "int64"),
        (vote.asked, "int64"),
        (vote.score, "float32"),
    ):
        assert column.shape == (3,)
        assert column.dtype == dtype
    assert vote.n_members == 3
    assert (vote.asked <= 3).all()
    assert (vote.count <= vote.asked).all()
    assert all(isinstance(value, int | float) for value in vote.call.to_dict().values())


@pytest.mark.parametrize("kind", KINDS)
def test_closing_twice_is_fine(cloud, kind):
    outputs = [one_hot([0, 1]), one_hot([0, 1])]
    with ExitStack() as stack:
        tier = make_tier(kind, cloud, outputs, ASK_ALL, stack)
        tier.vote(rows(2), ASK_ALL)
        tier.close()
        tier.close()


@given(data=st.data(), theta=thetas(), n_rows=st.integers(1, 6))
@settings(max_examples=40)
def test_a_remote_tier_in_the_middle_with_its_own_rule_exits_as_the_same_tier_at_home(cloud, data, theta, n_rows):
    outputs = [data.draw(tables(n_rows=n_rows, n_labels=3)) for _ in range(3)]
    rules = [Agreement(Fraction(1)), Agreement(theta), Always()]
    at_home = Cascade([table_tier(own, rule, early=False) for own, rule in zip(outputs, rules, strict=True)])
    remote = cloud.ask(Cascade([table_tier(outputs[1], ASK_ALL)]), 3, rules[1])
    split = Cascade([at_home.tiers[0], remote, at_home.tiers[2]])
    here, there = at_home.decide(rows(n_rows)), split.decide(rows(n_rows))
    remote.close()
    assert there.labels.tolist() == here.labels.tolist()
    assert there.exit_tier.tolist() == here.exit_tier.tolist()
    np.testing.assert_array_equal(there.tier_votes, here.tier_votes)
    assert there.asked.tolist() == here.asked.tolist()
    assert not any(there.reasons())


@given(outputs=tables(n_members=5), theta=thetas())
@settings(max_examples=20)
def test_shares_survive_fp32_whatever_a_foreign_server_leaves_out(outputs, theta):
    """Without the output `members` a share is read back as the fraction it was."""
    vote = table_tier(outputs, ASK_ALL).vote(rows(len(outputs[0])), ASK_ALL)
    back = [Fraction(float(share)).limit_denominator(64) for share in vote.share]
    assert back == [Fraction(int(count), int(asked)) for count, asked in zip(vote.count, vote.asked, strict=True)]


@given(data=st.data(), n_rows=st.integers(1, 6), theta=thetas())
@settings(max_examples=40)
def test_a_remote_cascade_of_two_tiers_numbers_its_tiers_after_ours(cloud, data, n_rows, theta):
    outputs = [data.draw(tables(n_rows=n_rows, n_labels=3)) for _ in range(3)]
    tiers = [table_tier(own, Agreement(theta), f"tier-{at}", early=False) for at, own in enumerate(outputs)]
    remote = cloud.ask(Cascade(tiers[1:]), 3)
    here, there = Cascade(tiers).decide(rows(n_rows)), Cascade([tiers[0], remote]).decide(rows(n_rows))
    remote.close()
    assert there.labels.tolist() == here.labels.tolist()
    assert there.exit_tier.tolist() == here.exit_tier.tolist()
    width = here.tier_votes.shape[1]  # the remote cascade always tells of both its tiers, reached or not
    np.testing.assert_array_equal(there.tier_votes[:, :width], here.tier_votes)
    assert np.isnan(there.tier_votes[:, width:]).all()
    assert [decision.tier_votes for decision in there] == [
        pytest.approx(decision.tier_votes, abs=1e-6) for decision in here
    ]
    np.testing.assert_array_equal(there.score, here.score)


def test_a_remote_cascade_tells_how_many_tiers_it_holds(cloud):
    tiers = [table_tier([one_hot([0]), one_hot([1])], Fraction(1)), table_tier([one_hot([1])], Always())]
    remote = cloud.ask(Cascade(tiers), 3)
    remote.n_tiers = 1  # as a config that does not say `tiers: 2`
    remote.vote(rows(1), Always())
    assert remote.n_tiers == 2


def test_the_reason_of_a_server_that_had_to_fall_back_reaches_the_device(cloud):
    disagree = [one_hot([0, 0]), one_hot([1, 0])]
    gone = Broken(TierUnavailable("best", "connection refused"))
    remote = cloud.ask(Cascade([table_tier(disagree, Fraction(1), "medium"), gone]), 3)
    told = Cascade([table_tier(disagree, Fraction(3, 4)), remote]).decide(rows(2))
    assert told.exit_tier.tolist() == [2, 1]
    assert told.reasons() == ["unavailable: tier best: connection refused", None]
    assert told[0].degraded == "unavailable: tier best: connection refused"
    assert told[1].degraded is None


def test_a_server_whose_next_server_is_too_slow_answers_itself_and_says_so(cloud):
    ended = threading.Event()

    class Slow(Broken):
        def vote(self, batch: Batch, rule: object) -> Vote:
            ended.wait(20)
            return super().vote(batch, rule)  # type: ignore[arg-type]

    slow = cloud.ask(Cascade([Slow(TierUnavailable("best", "woke too late"))]), 3)
    slow.deadline_s = 0.15
    disagree = [one_hot([0]), one_hot([1])]
    remote = cloud.ask(Cascade([table_tier(disagree, Fraction(1), "medium"), slow]), 3)
    vote = remote.vote(rows(1), Always())
    ended.set()
    assert vote.labels.tolist() == [0]
    assert vote.asked.tolist() == [2]
    assert vote.degraded[0].startswith("timeout: tier cloud: DEADLINE_EXCEEDED")


def test_a_tier_behind_an_early_decided_cascade_tells_how_many_were_asked(cloud):
    agree = [one_hot([1]), one_hot([1]), one_hot([1])]
    split = Cascade([table_tier(agree, Fraction(2, 3)), table_tier([one_hot([0])], Always())])
    vote = cloud.ask(split, 3).vote(rows(1), Always())
    assert said(vote) == [[1], [2], [2], [1.0]]
    assert vote.n_members == 3
