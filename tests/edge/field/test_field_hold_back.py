"""What may not leave the device does not: classes that are never sent, and a user's privacy_filter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from fakes import DECODER, UNANIMOUS, Far, ListSink, Numbers, Seat
from test_field_config import config_of

from coe.cascade import Agreement, Cascade, ConfigError, Decision, LocalTier
from edge.agent import Agent
from edge.config import read_config
from edge.field.config import FieldConfig, HarvestConfig
from edge.field.monitors import open_monitors
from edge.field.privacy import SendPolicy, describe_send_policy, load_privacy_filter, privacy_filter_digest
from edge.observe.status import RecentDecisions
from edge.sinks import Outcome
from edge.sources import Example

LABELS = ("zero", "one", "two")


def held(hold_back: SendPolicy, rule=UNANIMOUS, seats=(1, 1, 2)) -> tuple[set[str], Far]:
    """Ids held back of ten examples; the odd ones are disputed, with the seats' numbers as votes."""
    sink, far = ListSink(), Far()
    device = LocalTier("device", [Seat(seat) for seat in seats], rule)
    Agent(Cascade([device, far]), DECODER, sink, hold_back=hold_back).run(Numbers(10))
    return {outcome.id for outcome in sink.outcomes if outcome.reason == "held-back"}, far


ODD = {f"x{number}" for number in range(1, 10, 2)}


@pytest.mark.parametrize(("never", "is_held"), [({1}, True), ({2}, True), ({0}, False), (set(), False)])
def test_an_example_is_held_back_if_any_member_votes_for_a_class_that_is_never_sent(never, is_held):
    found, far = held(SendPolicy(LABELS, frozenset(never)))
    assert found == (ODD if is_held else set())
    assert len(far.deadlines) == (0 if is_held else 5)


def test_the_vote_of_a_member_that_was_not_asked_counts_too():
    """At unanimity the first two disagree, which settles it; the third would vote "two"."""
    found, far = held(SendPolicy(LABELS, frozenset({2})), seats=(0, 1, 2))
    assert found == ODD
    assert far.deadlines == []


def test_the_reason_names_the_class():
    sink = ListSink()
    device = LocalTier("device", [Seat(1), Seat(2)], UNANIMOUS)
    Agent(Cascade([device, Far()]), DECODER, sink, hold_back=SendPolicy(LABELS, frozenset({2}))).run(Numbers(2))
    (outcome,) = (outcome for outcome in sink.outcomes if outcome.reason)
    assert outcome.decision.degraded == 'held-back: tier cloud: class "two" is never sent'
    assert outcome.deferred


def test_a_hook_sees_the_example_and_the_votes_and_has_the_last_word():
    seen = []

    def privacy_filter(value, votes):
        seen.append((int(value[0]), dict(votes)))
        return {1: True, 3: "a face is in it", 5: False, 7: None, 9: ""}[int(value[0])]

    found, _ = held(SendPolicy(LABELS, frozenset(), privacy_filter))
    assert found == {"x1", "x3"}
    assert seen[0] == (1, {"one": 2, "two": 1})


def test_a_hook_that_fails_holds_the_example_back_and_says_so():
    def privacy_filter(value, votes):
        raise KeyError("nothing")

    sink = ListSink()
    device = LocalTier("device", [Seat(1), Seat(2)], UNANIMOUS)
    far = Far()
    Agent(Cascade([device, far]), DECODER, sink, hold_back=SendPolicy(LABELS, frozenset(), privacy_filter)).run(
        Numbers(2)
    )
    assert sink.outcomes[1].decision.degraded == "held-back: tier cloud: its privacy filter failed: KeyError: 'nothing'"
    assert far.deadlines == []


def test_the_members_of_every_local_tier_are_heard():
    sink, far = ListSink(), Far()
    first = LocalTier("first", [Seat(2), Seat(1)], UNANIMOUS)
    second = LocalTier("second", [Seat(0), Seat(1)], Agreement(1))
    Agent(Cascade([first, second, far]), DECODER, sink, hold_back=SendPolicy(LABELS, frozenset({2}))).run(Numbers(2))
    assert sink.outcomes[1].reason == "held-back"


def decided(label: int = 1, vote: float = 1.0, asked: int = 3, tier: int = 1, **changes: object) -> Outcome:
    degraded = changes.pop("degraded", None)
    return Outcome("a", Decision("a", label, tier, vote, 0.9, asked, 3, (vote,), (0.0,), degraded), 0.1, **changes)


@pytest.mark.parametrize(
    ("outcome", "without_hook", "with_hook"),
    [
        (decided(), True, False),  # all members gave one label that may be sent; the privacy_filter was not asked
        (decided(label=2), False, False),
        (decided(vote=2 / 3), False, False),  # the third may have voted for a class that is never sent
        (decided(asked=2), False, False),  # the third was not asked
        (decided(tier=2), False, False),  # so may a member of the first tier
        (decided(deferred=True, tier=2), True, True),  # it was let go
        (decided(deferred=True, tier=2, label=2), False, False),  # the cloud says so
        (decided(deferred=True, degraded="timeout: late"), True, True),
        (decided(deferred=True, degraded='held-back: class "two" is never sent'), False, False),
        (decided(corrects="key"), True, True),
        (Outcome("a", None, 0.1, error="held-back: no", deferred=True), False, False),
        (Outcome("a", None, 0.1, error="cannot be read"), False, False),
    ],
)
def test_an_example_is_clear_only_where_nothing_can_say_that_it_may_not_leave(outcome, without_hook, with_hook):
    assert SendPolicy(LABELS, frozenset({2})).may_be_shared(outcome) is without_hook
    assert SendPolicy(LABELS, frozenset({2}), lambda value, votes: None).may_be_shared(outcome) is with_hook


def test_pictures_and_the_harvest_leave_out_what_is_never_sent(tmp_path):
    agent = Agent(Cascade([LocalTier("device", [Seat(1)], UNANIMOUS), Far()]), DECODER, ListSink())
    field = open_monitors(
        FieldConfig(never_send=frozenset({2}), harvest=HarvestConfig(tmp_path / "harvest")), agent, LABELS, None
    )
    recent = RecentDecisions(LABELS, thumbnails=True, may_be_shared=field.may_be_shared)
    for label in (1, 2):
        example = Example(f"x{label}", np.full((4, 4), label, np.uint8))
        for observer in (recent, field.harvest):
            observer.on_outcome(example, decided(label, deferred=True, tier=2))
    assert [record["thumbnail"] for record in recent.newest()] == [False, True]
    assert field.harvest.report()["examples"] == 1
    field.close()


def test_the_policy_changes_with_the_classes_the_hooks_code_and_the_models(tmp_path):
    def text_of(**changes: object) -> str:
        config = read_config(config_of(tmp_path, **changes))
        return describe_send_policy(config.field, config.cascade)

    privacy_filter = tmp_path / "privacy_filter.py"
    privacy_filter.write_text("def hold(value, votes):\n    return False\n")
    tiers = yaml.safe_load(config_of(tmp_path).read_text())["tiers"]
    fewer = [{"name": "device", "members": ["zoo:digits/loom.onnx", "zoo:digits/stroke.onnx"]}, *tiers[1:]]
    assert text_of() == ""
    policies = [
        text_of(never_send=["3"]),
        text_of(never_send=["3", "5"]),
        text_of(privacy_filter="privacy_filter.py:hold"),
    ]
    policies.append(text_of(never_send=["3"], tiers=fewer))
    assert text_of(never_send=["3"]) == policies[0]
    privacy_filter.write_text("def hold(value, votes):\n    return True\n")
    policies.append(text_of(privacy_filter="privacy_filter.py:hold"))
    assert len(set(policies)) == len(policies)
    assert all(policies)


def test_a_hook_in_a_module_has_a_source_too(tmp_path, monkeypatch):
    (tmp_path / "hook_in_a_module.py").write_text("def hold(value, votes):\n    return False\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    load_privacy_filter("hook_in_a_module:hold", tmp_path)
    assert len(privacy_filter_digest("hook_in_a_module:hold", tmp_path)) == 64
    assert privacy_filter_digest("sys:exit", tmp_path) == ""


def test_a_hook_is_loaded_from_a_file_or_a_module(tmp_path):
    (tmp_path / "privacy.py").write_text("def hold(value, votes):\n    return 'from a file'\n")
    assert load_privacy_filter("privacy.py:hold", tmp_path)(np.zeros(1), {}) == "from a file"
    assert load_privacy_filter("operator:contains", tmp_path)({"a"}, "a") is True


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
        load_privacy_filter(reference, Path())
