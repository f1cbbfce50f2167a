"""The vectorised engine against the cascade itself, figure by figure."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from traces_of import tier_members, trace_of, traces

from coe.cascade import Agreement, Confidence, DeferralRule, Ideal
from sim.sweep import EnsembleVotes, SweptTier, ones, packed, sweep
from sim.traces import TierSpec, Trace, to_cascade


def plain(trace: Trace, specs: list[TierSpec]) -> tuple[list[int], list[int]]:
    """Exits and wrong exits per tier, through `coe.cascade`."""
    decided = to_cascade(specs, trace).decide(trace.batch())
    exit_tier, wrong = decided.exit_tier, decided.labels != trace.labels
    tiers = range(1, len(specs) + 1)
    return [int((exit_tier == at).sum()) for at in tiers], [int((wrong & (exit_tier == at)).sum()) for at in tiers]


def assert_equal_to_plain(trace: Trace, cascades: list[tuple[list[SweptTier], list[TierSpec]]]) -> None:
    outcomes = sweep([tiers for tiers, _ in cascades], len(trace))
    for row, (tiers, specs) in enumerate(cascades):
        exits, wrong = plain(trace, specs)
        assert outcomes.exits[row, : len(tiers)].tolist() == exits
        assert outcomes.wrong[row, : len(tiers)].tolist() == wrong
        assert not outcomes.exits[row, len(tiers) :].any()
        assert outcomes.accuracy[row] == pytest.approx(1 - sum(wrong) / len(trace))


@given(st.data())
def test_many_cascades_at_once_are_each_what_the_cascade_itself_decides(data):
    trace = data.draw(traces())
    ensemble_votes = EnsembleVotes(trace)
    cascades = []
    for _ in range(data.draw(st.integers(1, 4))):
        members = data.draw(tier_members(trace))
        needed = [data.draw(st.integers(1, len(own))) for own in members]
        cascades.append(
            (
                [ensemble_votes.agreement(own, count) for own, count in zip(members, needed, strict=True)],
                [
                    TierSpec(own, Agreement(Fraction(count, len(own))))
                    for own, count in zip(members, needed, strict=True)
                ],
            )
        )
    assert_equal_to_plain(trace, cascades)


@given(st.data(), st.booleans(), st.sampled_from([0.0, 0.25, 0.5, 0.7, 1.0]))
def test_confidence_cascades_are_those_of_the_cascade_s_own_rule(data, pools, threshold):
    trace = data.draw(traces(with_probabilities=pools))
    ensemble_votes = EnsembleVotes(trace)
    members = data.draw(tier_members(trace))
    rule: DeferralRule = Confidence(threshold, pools_scores=pools)
    swept = [ensemble_votes.confidence(own, threshold, pools=pools) for own in members]
    assert_equal_to_plain(trace, [(swept, [TierSpec(own, rule) for own in members])])


@given(st.data())
def test_the_ideal_rule_is_that_of_the_cascade(data):
    trace = data.draw(traces())
    members = data.draw(tier_members(trace))
    rule = Ideal(dict(zip(trace.ids, trace.labels.tolist(), strict=True)))
    ensemble_votes = EnsembleVotes(trace)
    assert_equal_to_plain(
        trace, [([ensemble_votes.ideal(own) for own in members], [TierSpec(own, rule) for own in members])]
    )


def test_in_traces_of_top_scores_a_tie_goes_to_the_higher_mean_then_to_the_lower_label():
    said = {"a": [2, 2, 2], "b": [2, 1, 1], "c": [1, 1, 1], "d": [1, 2, 0]}
    scores = {"a": [0.9, 0.5, 0.5], "b": [0.1, 0.5, 0.5], "c": [0.6, 0.5, 0.5], "d": [0.6, 0.5, 0.99]}
    trace = trace_of([1, 1, 1], said, scores)
    right, count = EnsembleVotes(trace).counted(("a", "b", "c", "d"))
    assert count.tolist() == [2, 2, 2]
    assert right.tolist() == [True, True, True]  # 0.6 over 0.5; equal, so the lower label; the plurality


@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_packed_answers_are_counted_exactly(yes):
    words = packed(np.array(yes))
    assert ones(words) == sum(yes)
    assert ones(words & words) == sum(yes)


def test_ones_are_counted_the_same_without_numpy_2(monkeypatch):
    words = np.random.default_rng(0).integers(0, 2**63, (3, 5)).astype(np.uint64)
    expected = ones(words).tolist()
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert ones(words).tolist() == expected == [sum(int(word).bit_count() for word in row) for row in words]


def test_a_random_tier_keeps_its_share_and_is_the_same_for_the_same_seed():
    trace = trace_of([0] * 4000, {"a": [0] * 4000}, {})
    ensemble_votes = EnsembleVotes(trace)
    tiers = [ensemble_votes.random(("a",), 0.3, seed=5, number=1) for _ in range(2)]
    assert ones(tiers[0].is_final) == ones(tiers[1].is_final)
    assert ones(tiers[0].is_final) / 4000 == pytest.approx(0.3, abs=0.03)


def test_no_configurations_are_no_outcomes():
    assert len(sweep([], 10).accuracy) == 0
