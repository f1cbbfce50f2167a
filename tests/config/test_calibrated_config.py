"""`calibration:` of a config, and of `coe.Cascade`: the table's rules, and what does not fit it, in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from calibrated import equal
from strategies import one_hot
from table_models import table_model

import coe
from coe.calibration import CalibratedVote, Calibration, TableMember
from coe.cascade import Agreement, Always, Confidence, ConfigError
from coe.config import Fields, Report
from coe.config.cascade import read_cascade, rule_in_words
from edge.config import read_config
from edge.session import dry_run
from edge.setup.explain import statements_of

TABLE = Calibration(
    rule="calibrated",
    task="parts",
    labels=("good", "scratched", "bent"),
    fingerprint=None,
    tiers=((TableMember("a.onnx"), TableMember("b.onnx")), (TableMember("c.onnx"),)),
    stages=(equal(2, 0.9, 0.97), equal(3)),
    thresholds=(0.9,),
    n=3000,
    date="2026-11-28",
    reference="c.onnx",
)
CONFIG = """
task: parts
labels: [good, scratched, bent]
input: {kind: tensor, shape: [1]}
calibration: calibration.json
tiers:
  - {name: device, members: [a.onnx, b.onnx]}
  - {name: best, members: [c.onnx]}
"""
REMOTE = CONFIG.replace("members: [c.onnx]", 'address: "gpu-host:8001"')


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, labels in (("a", [0, 0, 1]), ("b", [0, 1, 1]), ("c", [2, 2, 2])):
        (tmp_path / f"{name}.onnx").write_bytes(table_model(one_hot(labels)))
    TABLE.write(tmp_path / "calibration.json")
    return tmp_path


def findings(text: str, folder: Path) -> list[str]:
    report = Report("pi.yaml")
    read_cascade(Fields(yaml.safe_load(text), report), folder)
    return report.findings


def test_the_rules_are_the_tables_and_said_in_words(folder):
    for text in (CONFIG, REMOTE):
        report = Report("pi.yaml")
        config = read_cascade(Fields(yaml.safe_load(text), report), folder)
        assert report.findings == []
        first, last = config.tiers
        assert (first.rule, last.rule) == (CalibratedVote(TABLE.stages[:1]), CalibratedVote(TABLE.stages[1:], 2))
        assert "p >= 0.9" in rule_in_words(first, is_last=False)
        assert rule_in_words(last, is_last=True) == "answers by the calibrated vote of all members asked so far"


@pytest.mark.parametrize(
    ("rule", "thresholds", "expected"),
    [("agreement", ("2/2",), Agreement(1)), ("confidence", (0.75,), Confidence(0.75))],
)
def test_a_table_may_have_chosen_a_plainer_rule(folder, rule, thresholds, expected):
    replace(TABLE, rule=rule, stages=(), thresholds=thresholds).write(folder / "calibration.json")
    config = read_cascade(Fields(yaml.safe_load(CONFIG), Report("pi.yaml")), folder)
    assert [tier.rule for tier in config.tiers] == [expected, Always()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[a.onnx, b.onnx]", "[b.onnx, a.onnx]"), "tiers[0].members: expected the order a.onnx, b.onnx"),
        (("[a.onnx, b.onnx]", "[a.onnx, c.onnx]"), 'tiers[0].members: expected the members of the calibration'),
        (("[good, scratched, bent]", "[good, bent, scratched]"), "task.labels: expected the order good, scratched,"),
        (("calibration.json", "other.json"), "other.json: cannot be read: No such file"),
        (("b.onnx]}", "b.onnx], agreement: 1/2}"), "tiers[0].agreement: expected calibration or agreement, got both"),
        (("c.onnx]}", "c.onnx], confidence: 0.5}"), "tiers[1].confidence: expected calibration or confidence"),
        (("b.onnx]}", "b.onnx], order: measured}"), "tiers[0].order: expected fixed with `calibration:`"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_table_is_one_line(folder, change, message):
    (found,) = findings(CONFIG.replace(*change), folder)
    assert message in found


def test_another_file_of_the_same_name_is_another_model(folder):
    tiers = ((replace(TABLE.tiers[0][0], sha256="0" * 64), TABLE.tiers[0][1]), TABLE.tiers[1])
    replace(TABLE, tiers=tiers).write(folder / "calibration.json")
    (found,) = findings(CONFIG, folder)
    assert "calibration: " in found
    assert "a.onnx: expected the file with sha256 000" in found


def test_a_remote_tier_of_several_tiers_takes_the_place_of_as_many(folder):
    three = replace(TABLE, tiers=(*TABLE.tiers, (TableMember("d"),)), stages=(TABLE.stages[0], equal(3, 0.9), equal(4)))
    three.write(folder / "calibration.json")
    config = read_cascade(Fields(yaml.safe_load(REMOTE.replace('8001"', '8001", tiers: 2')), Report("pi.yaml")), folder)
    assert config.tiers[1].rule == CalibratedVote(three.stages[1:], 2)
    assert findings(REMOTE, folder)[0].endswith("tiers: expected 3 as calibrated, got 2; " + MADE)


MADE = "make it again: coe-sim plan, or cascade.calibrate(x, y)"


def test_the_python_interface_and_a_loaded_config_decide_by_the_table(folder, monkeypatch):
    (folder / "pi.yaml").write_text(CONFIG, encoding="utf-8")
    monkeypatch.chdir(folder)
    given = {"labels": TABLE.labels, "input": coe.Tensor(1)}
    tiers = [["a.onnx", "b.onnx"], ["c.onnx"]]
    x = np.arange(3, dtype=np.float32)[:, None]
    for cascade in (
        coe.Cascade(tiers, calibration="calibration.json", **given),
        coe.Cascade(tiers, calibration=TABLE, **given),
        coe.load(folder / "pi.yaml"),
    ):
        with cascade:
            decided = cascade.decide(x)
        assert decided.exit_tier.tolist() == [1, 2, 1]
        assert decided.names == ["good", "good", "scratched"]  # on row 1 all three differ: equal scores, lower label
    with pytest.raises(ConfigError, match=r"calibration: .*expected the order a.onnx, b.onnx"):
        coe.Cascade([["b.onnx", "a.onnx"], ["c.onnx"]], calibration="calibration.json", **given)


def test_explain_and_a_dry_run_say_by_what_it_answers(folder, capsys):
    sent = REMOTE + "source: {kind: stdin}\n"
    drift = "drift: {on_drift: gate, bands: {deferred: {share: 0.1}}}\n"
    (folder / "pi.yaml").write_text(sent + drift, encoding="utf-8")
    said = " ".join(statement.text for statement in statements_of(read_config(folder / "pi.yaml")))
    assert "gives its label a probability under 0.9 at tier device" in said
    assert "While the alarm of drift lasts, more of them leave" in said
    (folder / "pi.yaml").write_text(CONFIG + "source: {kind: stdin}\n", encoding="utf-8")
    assert dry_run(read_config(folder / "pi.yaml")) == 0
    assert "tier device: answers by the calibrated vote of all members asked so far where its label has p >= 0.9" in (
        capsys.readouterr().out
    )


def test_a_gate_needs_a_second_threshold_and_a_tier_to_defer_to(folder):
    drift = "source: {kind: stdin}\ndrift: {on_drift: gate, bands: {deferred: {share: 0.1}}}\n"
    for text, message in (
        (CONFIG + drift, "drift.on_drift: expected report or hold without a tier beyond this device, got gate"),
        (REMOTE.replace("calibration: calibration.json", "") + drift, "expected a `calibration:` with gate_threshold"),
    ):
        (folder / "pi.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=message.replace("(", "\\(")):
            read_config(folder / "pi.yaml")
