"""What the server tells of the models it serves, read from a config."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cloud.observe.status import describe
from coe import zoo
from coe.config import Fields, Report, read_yaml
from coe.config.cascade import CascadeConfig, read_cascade

CLOUD = zoo.find("digits/cloud.yaml")


def cascade(path: Path) -> CascadeConfig:
    report = Report(str(path))
    config = read_cascade(Fields(read_yaml(path), report), path.parent, parallel=True)
    report.check()
    return config


def test_the_cascade_and_each_tier_alone_are_told_with_rules_members_and_checksums():
    whole, medium, best = describe(cascade(CLOUD), "digits")
    assert (whole.name, medium.name, best.name) == ("digits", "digits-medium", "digits-best")
    assert [tier.name for tier in whole.tiers] == ["medium", "best"]
    assert whole.tiers[0].rule == "answers when all members agree"
    assert whole.tiers[-1].rule == "always answers"
    for tier in whole.tiers:
        for member in tier.members:
            data = (CLOUD.parent / member.name).with_suffix(".onnx").read_bytes()
            assert member.sha256 == hashlib.sha256(data).hexdigest()
            assert member.runs_on.startswith("onnx, cpu, ")
            assert member.accuracy is not None


def test_what_a_member_turned_out_to_run_on_goes_before_what_was_asked_for():
    names = [member.name for tier in describe(cascade(CLOUD), "digits")[0].tiers for member in tier.members]
    told = describe(cascade(CLOUD), "digits", {name: f"CUDA for {name}" for name in names})
    assert told[0].tiers[0].members[0].runs_on == f"CUDA for {names[0]}"


def test_a_tier_on_another_server_is_told_with_its_address_and_not_served_alone(tmp_path):
    path = tmp_path / "cloud.yaml"
    path.write_text(
        "task: zoo:digits\ntiers:\n"
        "  - name: medium\n    agreement: 2/3\n"
        "    members: [zoo:digits/ripple.onnx, zoo:digits/pyramid.onnx, zoo:digits/lattice.onnx]\n"
        "  - {name: far, address: 'east:8001', model: digits-best}\n",
        encoding="utf-8",
    )
    whole, *alone = describe(cascade(path), "digits")
    assert whole.tiers[0].rule == "answers when 2 of 3 members agree"
    assert whole.tiers[1].address == "digits-best at east:8001"
    assert whole.tier_name(3) == "3"  # what lies behind it has a number alone
    assert [model.name for model in alone] == ["digits-medium"]


def test_a_member_without_a_declared_checksum_is_hashed(tmp_path):
    copy = tmp_path / "copy.onnx"
    copy.write_bytes((CLOUD.parent / "resnet.onnx").read_bytes())
    path = tmp_path / "cloud.yaml"
    path.write_text("task: zoo:digits\ntiers: [{name: best, members: [copy.onnx]}]\n", encoding="utf-8")
    (member,) = describe(cascade(path), "digits")[0].tiers[0].members
    assert member.sha256 == hashlib.sha256(copy.read_bytes()).hexdigest()
