"""Where a plan's tiers run: the link, the device's times, and the configs that are written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from simulator import Program

from cloud.config import read_config as read_cloud
from coe.calibration import Calibration
from coe.config import read_yaml
from coe.link import Link, Loss, Propagation, bandwidth
from coe.zoo.digits import test_examples
from edge.config import read_config as read_edge
from sim.studies.placement import device_seconds, read_source

pytest.importorskip("pyarrow")
pytest.importorskip("onnxruntime")


def test_a_call_takes_both_ways_its_bytes_and_what_is_lost():
    way = Propagation(0.02)
    assert Link([way], [way]).mean_call_s(5000) == pytest.approx(0.04)
    assert Link([bandwidth(1e6)]).mean_call_s(1e6) == pytest.approx(1.0, rel=0.02)
    lost = Loss(0.1)
    assert Link([lost, way], [lost, way]).mean_call_s(1000) == pytest.approx(0.04 + 2 * 0.2 * 0.1 / 0.8, rel=0.1)


def test_a_link_is_read_and_what_is_wrong_is_named(tmp_path: Path, sim: Program, trace_path: Path):
    path = tmp_path / "lte.yaml"
    path.write_text("delay_ms: 35\njitter_ms: 5\nloss: 0.01\nmbit_per_s: 5\n")
    with_link, without = (
        json.loads(sim("plan", trace_path, "--on-device", "a,b,c", "--by", "latency_s", *link, "--json")[0])
        for link in (("--link", path), ())
    )
    assert with_link["placement"]["reference_latency_s"] > without["placement"]["reference_latency_s"] + 0.07
    path.write_text("delay: 35\n")
    _, err = sim("plan", trace_path, "--link", path, code=2)
    assert "delay_ms" in err


def test_the_device_s_times_are_those_of_members_in_turn(tmp_path: Path, sim: Program, trace_path: Path):
    path = tmp_path / "bench.json"
    plans = [{"members": []}, {"members": [0.5, 0.25]}]
    path.write_text(json.dumps({"tiers": [{"name": "device", "members": ["a", "b"], "plans": plans}]}))
    assert device_seconds(path) == {"a": 0.5, "b": 0.25}
    path.write_text("{}")
    _, err = sim("plan", trace_path, "--device", path, code=2)
    assert "expected what coe-edge bench --json prints" in err


def test_a_plan_of_nothing_says_what_it_needs(sim: Program, tmp_path: Path):
    assert "expected a TRACE, or --models and --data" in sim("plan", code=2)[1]
    assert "manifest.yaml" in sim("plan", "--models", tmp_path, "--data", "digits", code=2)[1]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    device = "{name: device, members: [zoo:digits/stroke.onnx, zoo:digits/loom.onnx]}"
    cloud = '{name: cloud, address: "127.0.0.1:1", model: digits}'
    (folder / "edge.yaml").write_text(
        f"task: zoo:digits\ntiers:\n  - {device}\n  - {cloud}\nsource: {{kind: digits}}\n"
    )
    best = "{name: best, members: [zoo:digits/resnet.onnx]}"
    (folder / "cloud.yaml").write_text(f"task: zoo:digits\nmodel: digits\ntiers:\n  - {best}\n")
    return folder


def test_a_folder_with_configs_says_what_runs_on_the_device(models: Path):
    found = read_source(str(models))
    assert found.on_device == ("stroke.onnx", "loom.onnx")
    assert [spec.name for spec in found.models.specs] == ["stroke.onnx", "loom.onnx", "resnet.onnx"]
    assert found.settings == {"task": "zoo:digits"}


@pytest.mark.slow
def test_models_and_labels_become_configs_that_the_programs_read(sim: Program, models: Path, tmp_path: Path):
    pytest.importorskip("matplotlib")
    for name, png, label in test_examples(48):
        (tmp_path / "labelled" / str(label)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "labelled" / str(label) / f"{name}.png").write_bytes(png)
    (tmp_path / "lte.yaml").write_text("delay_ms: 50\n")
    arguments = ("plan", "--models", models, "--data", tmp_path / "labelled", "--link", tmp_path / "lte.yaml")
    told = json.loads(sim(*arguments, "--max-cost", 1, "--out", tmp_path / "out", "--json")[0])
    out = tmp_path / "out"
    assert json.loads((out / "plan.json").read_text()) == told
    assert told["trace"] == "digits"
    table = Calibration.read(out / "calibration.json")
    assert all(member.sha256 for tier in table.tiers for member in tier)
    edge = read_edge(out / "pi.yaml")
    placed = told["placement"]
    assert [[spec.name for spec in tier.members] for tier in edge.cascade.local_tiers] == placed["device"]
    if placed["cloud"]:
        cloud = read_cloud(out / "cloud.yaml")
        assert [[spec.name for spec in tier.members] for tier in cloud.cascade.local_tiers] == placed["cloud"]
    assert read_yaml(out / "pi.yaml").get("calibration", "none") == (
        "calibration.json" if table.rule == "calibrated" else "none"
    )
    page = (out / "plan.html").read_text()
    assert "The Pareto front" in page
    assert "each model alone, against the choice" in page
    assert placed["reference_latency_s"] is not None
