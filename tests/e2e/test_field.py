"""Audit, harvest and what never leaves, with a real agent and a real server."""

from __future__ import annotations

import json

import pytest
from programs import Cloud, edge, edge_config, records_in

from cloud.config import read_config as read_cloud
from coe import zoo
from coe.assembly import open_cascade
from coe.models import Door
from coe.zoo import digits
from coe.zoo.harvest import read_harvest
from edge.config import read_config

N = 150
AUDIT = "audit: {share: 1.0, max_per_hour: 1000000000, max_mb_per_day: 1000, link_share: 1.0, report_every: 10}"


def decided(folder, rule: str, n: int, interval_ms: int, *more: str) -> list[dict]:
    """What an agent wrote about the first `n` digits."""
    with Cloud(folder) as cloud:
        source = f"{{kind: digits, interval_ms: {interval_ms}}}"
        config = edge_config(folder, cloud.port, *more, source=source, rule=rule, sink="out.jsonl")
        with edge(folder, config, "--limit", n) as agent:
            assert agent.end() == 0, agent.complained
    return records_in((folder / "out.jsonl").read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of an agent that had every decision audited, and what it wrote."""
    folder = tmp_path_factory.mktemp("field")
    return folder, decided(folder, "agreement: 2/3", N, 12, AUDIT, "state: state", 'never_send: ["7"]')


@pytest.fixture(scope="module")
def truth(run):
    """By id, worked out in this process: the device's votes, and the label of the server's tiers."""
    folder, _ = run
    config = read_config(folder / "edge.yaml")
    device = open_cascade(config.cascade)
    beyond = open_cascade(read_cloud(zoo.find("digits/cloud.yaml")).cascade)
    door, found = Door(config.cascade.task.contract), {}
    for name, png, _ in digits.test_examples(N):
        batch = door.batch([name], [png])
        votes = [int(member.predict(member.prepare(batch.x)).argmax()) for member in device.tiers[0].members]
        found[name] = votes, int(beyond.decide(batch).labels[0])
    device.close()
    beyond.close()
    return found


def test_the_audit_finds_as_many_wrong_agreements_as_there_are(run, truth):
    folder, records = run
    agreed = {name: max(set(votes), key=votes.count) for name, (votes, _) in truth.items() if len(set(votes)) < 3}
    asked = [name for name in agreed if 7 not in truth[name][0]]
    n_wrong = sum(agreed[name] != truth[name][1] for name in asked)
    whole = json.loads((folder / "state" / "audit.json").read_text())["whole"]
    assert whole["n"] == len(agreed)
    assert whole["n_answered"] >= len(asked) - 3  # the last may have been under way
    assert n_wrong - 3 <= whole["n_hits"] <= n_wrong
    events = [record for record in records if record.get("event") == "audit"]
    assert [event["answered"] for event in events] == list(range(10, whole["n_answered"] + 1, 10))


def test_what_a_member_takes_for_a_seven_never_left(run, truth):
    _, records = run
    outcomes = {record["id"]: record for record in records if "event" not in record}
    assert set(outcomes) == set(truth)
    for name, (votes, _) in truth.items():
        if 7 in votes:
            assert "call" not in outcomes[name]
    held = {name for name, record in outcomes.items() if (record["degraded"] or "").startswith("held-back")}
    assert held == {name for name, (votes, _) in truth.items() if 7 in votes and len(set(votes)) == 3}


def test_the_harvest_holds_what_the_cloud_answered(tmp_path):
    records = decided(tmp_path, "agreement: unanimous", 400, 0, "harvest: {path: harvest}")
    sent = {record["id"]: record["label"] for record in records if record["exit_tier"] > 1}
    assert len(sent) > 3
    harvested = list(read_harvest(tmp_path / "harvest"))
    assert {example.id: example.label for example in harvested} == sent
    pictures = {name: png for name, png, _ in digits.test_examples(400)}
    assert all(example.value == pictures[example.id] for example in harvested)
