"""What an alarm of drift does: until it ends the device answers less, or marks its answers."""

from __future__ import annotations

import numpy as np
import pytest
from calibrated import equal
from fakes import DECODER, ListSink
from strategies import members_of, one_hot

from coe.calibration import CalibratedVote
from coe.cascade import Agreement, Cascade, LocalTier
from coe.cascade.types import Batch, Vote
from edge.agent import Agent, RemoteTiers
from edge.field.drift import Baseline, Drift, DriftConfig, DriftResponse
from edge.sinks import Event, as_record
from edge.sources import Example

AGREED, SPLIT = 0, 1
TABLES = [one_hot([0, 0]), one_hot([0, 1])]
WINDOW = 20


class Server:
    """Answers 2 to everything."""

    name, n_tiers, waits = "cloud", 1, True

    def __init__(self, rule: object) -> None:
        self.rule = rule

    def vote(self, batch: Batch, rule: object) -> Vote:
        one = np.ones(len(batch), dtype=np.int64)
        return Vote(2 * one, one, one, 1, one.astype(np.float32))

    def complete(self, batch: Batch, vote: Vote) -> Vote:
        return vote

    def close(self) -> None:
        pass


class Rows:
    """Examples that are rows of the tables."""

    def __init__(self, rows: list[int]) -> None:
        self.rows = rows

    def examples(self, stop: object):
        for number, row in enumerate(self.rows):
            yield Example(f"x{number}", np.array([row]))


def run(kind: str, rows: list[int], *, calibrated: bool, gate: float = 2.0) -> tuple[list[dict], list[Event]]:
    """Records and events of an agent whose device usually decides everything on which its members agree."""
    here = CalibratedVote((equal(2, 0.9, gate),)) if calibrated else Agreement(1)
    last = CalibratedVote((equal(3),), 2) if calibrated else Agreement(1)
    tiers = [LocalTier("device", members_of(TABLES), here), Server(last)]
    config = DriftConfig(WINDOW, 0.01, on_drift=kind, baselines=(Baseline("deferred", 0.1, 1000),))
    response = DriftResponse(kind)
    response.attach(tiers)
    sink = ListSink()
    agent = Agent(Cascade(tiers), DECODER, sink, max_in_flight=0, is_uncertain=lambda: response.is_uncertain)
    agent.observers.append(Drift(config, agent.write_event, response))
    agent.run(Rows(rows))
    return [as_record(one, ("a", "b", "c")) for one in sink.outcomes], sink.events


QUIET, NOISY = [AGREED] * 60, [SPLIT] * 20


@pytest.mark.parametrize("calibrated", [False, True])
def test_while_the_alarm_lasts_everything_is_sent_and_it_ends_by_itself(calibrated, logged):
    records, events = run("defer", [*QUIET, *NOISY, *QUIET], calibrated=calibrated)
    responses = [event.facts["state"] for event in events if event.facts["what"] == "response"]
    assert responses == ["active", "ended"]
    kept = [record["exit_tier"] == 1 for record in records]
    assert all(kept[:60])
    assert not any(kept[60:80])
    again = kept[80:]
    assert not again[0]  # agreed, and sent all the same
    assert again.index(True) <= 40  # once the window is quiet
    assert all(again[again.index(True) :])
    assert any("defer ends" in line for line in logged)


def test_a_gate_holds_to_the_stricter_threshold_alone():
    noisy_then_agreed = [*QUIET, *NOISY, AGREED]
    for gate, exit_tier in ((0.95, 1), (0.99, 2)):  # two that agree have p = 0.965
        records, _ = run("gate", noisy_then_agreed, calibrated=True, gate=gate)
        assert records[59]["exit_tier"] == 1
        assert records[-1]["exit_tier"] == exit_tier


def test_hold_marks_the_devices_own_answers_and_changes_no_other():
    rows = [*QUIET, *NOISY, AGREED, SPLIT]
    held, _ = run("hold", rows, calibrated=True)
    plain, _ = run("report", rows, calibrated=True)
    assert "uncertain" not in held[0]
    assert held[-2]["uncertain"] is True
    assert "uncertain" not in held[-1]  # the cloud's
    for one, other in zip(held, plain, strict=True):
        assert (one["label"], one["exit_tier"]) == (other["label"], other["exit_tier"])
        assert one["rule"] == "calibrated"
    assert not any(record.get("uncertain") for record in plain)


def test_records_of_plain_agreement_name_no_rule():
    assert "rule" not in run("report", [AGREED, SPLIT], calibrated=False)[0][0]


def test_what_the_cloud_says_later_of_an_example_counts_with_what_the_device_said():
    """As the spool and the audit ask: the answer is that of an example which goes on at once."""
    here, last = CalibratedVote((equal(2, 2.0),)), CalibratedVote((equal(3),), 2)
    cascade = Cascade([LocalTier("device", members_of(TABLES), here), Server(last)])
    later = RemoteTiers(cascade, DECODER)
    for row, label in ((AGREED, 0), (SPLIT, 0)):
        batch = DECODER.batch(["x"], [np.array([row])])
        at_once, late = cascade.decide(batch)[0], later.ask(Example("x", np.array([row])))
        assert (late.label, late.exit_tier, late.score, late.rule) == (label, 2, at_once.score, "calibrated")
