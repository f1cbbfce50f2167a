"""What may not leave the device does not: classes that are never sent, and a user's hook."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fakes import DOOR, UNANIMOUS, Far, ListSink, Numbers, Seat

from coe.cascade import Agreement, Cascade, ConfigError, LocalTier
from edge.agent import Agent
from edge.field.hold_back import HoldBack, load_hook

LABELS = ("zero", "one", "two")


def held(hold_back: HoldBack, rule=UNANIMOUS, seats=(1, 1, 2)) -> tuple[set[str], Far]:
    """Ids held back of ten examples; the odd ones are disputed, with the seats' numbers as votes."""
    sink, far = ListSink(), Far()
    device = LocalTier("device", [Seat(seat) for seat in seats], rule)
    Agent(Cascade([device, far]), DOOR, sink, hold_back=hold_back).run(Numbers(10))
    return {outcome.id for outcome in sink.outcomes if outcome.reason == "held-back"}, far


ODD = {f"x{number}" for number in range(1, 10, 2)}


@pytest.mark.parametrize(("never", "is_held"), [({1}, True), ({2}, True), ({0}, False), (set(), False)])
def test_an_example_is_held_back_if_any_member_votes_for_a_class_that_is_never_sent(never, is_held):
    found, far = held(HoldBack(LABELS, frozenset(never)))
    assert found == (ODD if is_held else set())
    assert len(far.deadlines) == (0 if is_held else 5)


def test_the_vote_of_a_member_that_was_not_asked_counts_too():
    """At unanimity the first two disagree, which settles it; the third would have said "two"."""
    found, far = held(HoldBack(LABELS, frozenset({2})), seats=(0, 1, 2))
    assert found == ODD
    assert far.deadlines == []


def test_the_reason_names_the_class():
    sink = ListSink()
    device = LocalTier("device", [Seat(1), Seat(2)], UNANIMOUS)
    Agent(Cascade([device, Far()]), DOOR, sink, hold_back=HoldBack(LABELS, frozenset({2}))).run(Numbers(2))
    (outcome,) = (outcome for outcome in sink.outcomes if outcome.reason)
    assert outcome.decision.degraded == 'held-back: tier cloud: class "two" is never sent'
    assert outcome.deferred


def test_a_hook_sees_the_example_and_the_votes_and_has_the_last_word():
    seen = []

    def hook(value, votes):
        seen.append((int(value[0]), dict(votes)))
        return {1: True, 3: "a face is in it", 5: False, 7: None, 9: ""}[int(value[0])]

    found, _ = held(HoldBack(LABELS, frozenset(), hook))
    assert found == {"x1", "x3"}
    assert seen[0] == (1, {"one": 2, "two": 1})


def test_a_hook_that_fails_holds_the_example_back_and_says_so():
    def hook(value, votes):
        raise KeyError("nothing")

    sink = ListSink()
    device = LocalTier("device", [Seat(1), Seat(2)], UNANIMOUS)
    far = Far()
    Agent(Cascade([device, far]), DOOR, sink, hold_back=HoldBack(LABELS, frozenset(), hook)).run(Numbers(2))
    assert sink.outcomes[1].decision.degraded == "held-back: tier cloud: its hook failed: KeyError: 'nothing'"
    assert far.deadlines == []


def test_the_members_of_every_local_tier_are_heard():
    sink, far = ListSink(), Far()
    first = LocalTier("first", [Seat(2), Seat(1)], UNANIMOUS)
    second = LocalTier("second", [Seat(0), Seat(1)], Agreement(1))
    Agent(Cascade([first, second, far]), DOOR, sink, hold_back=HoldBack(LABELS, frozenset({2}))).run(Numbers(2))
    assert sink.outcomes[1].reason == "held-back"


def test_a_hook_is_loaded_from_a_file_or_a_module(tmp_path):
    (tmp_path / "privacy.py").write_text("def hold(value, votes):\n    return 'from a file'\n")
    assert load_hook("privacy.py:hold", tmp_path)(np.zeros(1), {}) == "from a file"
    assert load_hook("operator:contains", tmp_path)({"a"}, "a") is True


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("nothing", 'expected "module:function"'),
        ("no_such_module:f", "cannot be loaded: ModuleNotFoundError"),
        ("missing.py:f", "cannot be loaded: FileNotFoundError"),
        ("os:nothing_there", "cannot be loaded: AttributeError"),
        ("os:sep", "expected a function"),
    ],
)
def test_a_hook_that_is_not_there_is_a_finding(reference, words):
    with pytest.raises(ConfigError, match=words):
        load_hook(reference, Path())
