"""The traces that come with the project: found by name, with their FLOPs, chosen on one and reported on the other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from simulator import Program

from coe import zoo
from coe.calibration import Calibration
from coe.cascade import Accounting, ConfigError
from coe.config import Fields, Report, read_yaml
from coe.config.cascade import LocalTierConfig, read_cascade
from coe.config.manifest import read_manifest
from sim.records import message_bytes, recording_of
from sim.systems import SYSTEMS, BundledTask, Uplink, edge_config, write
from sim.traces import Trace, read_costs, read_trace
from sim.traces.files import tasks

pytest.importorskip("pyarrow")
pytest.importorskip("coe_zoo", reason="needs the tasks of coe-zoo: pip install ./zoo")

TASKS = tasks()
VOTERS = ["stride.onnx", "tiles.onnx", "gate.onnx", "weave.onnx"]


@pytest.fixture(scope="module")
def cifar10() -> Trace:
    return read_trace(Path("zoo:cifar10/test.parquet"))


def test_cifar10_has_traces():
    assert "cifar10" in TASKS


@pytest.mark.parametrize("task", TASKS)
def test_a_bundled_task_has_a_pair_of_traces_of_its_models(task: str):
    test, calibration = (read_trace(Path(f"zoo:{task}/{name}.parquet")) for name in ("test", "calibration"))
    assert (test.name, calibration.name) == (f"{task}-test", f"{task}-calibration")
    assert list(test.models) == list(calibration.models)
    assert set(test.models) <= set(read_manifest(zoo.find(task)).models)
    assert set(test.ids).isdisjoint(calibration.ids)
    for trace in (test, calibration):
        assert trace.has_probabilities
        assert trace.payload_bytes is not None
        assert all(trace.latency_s(name) for name in trace.models)
    assert [costs.kind for costs in read_costs(None, test)] == ["flops", "latency_s"]


@pytest.mark.parametrize("task", TASKS)
def test_the_task_alone_is_its_test_trace(task: str):
    assert (
        read_trace(Path(task)).ids
        == read_trace(Path(f"zoo:{task}")).ids
        == read_trace(Path(f"zoo:{task}/test.parquet")).ids
    )


def test_a_file_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("cifar10").write_text("no trace")
    with pytest.raises(ConfigError, match="expected a Parquet file"):
        read_trace(Path("cifar10"))


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("zoo:nowhere", "expected a bundled task"),
        ("zoo:cifar10/other.parquet", "zoo:cifar10/calibration.parquet"),
        ("zoo:cifar10/../cifar10/manifest.yaml", "expected a bundled trace"),
        ("zoo:digits", "expected a bundled trace"),
        ("missing.parquet", "name a bundled one: cifar10"),
    ],
)
def test_what_is_no_bundled_trace_is_told_what_there_is(reference: str, words: str):
    with pytest.raises(ConfigError, match=words):
        read_trace(Path(reference))


def test_a_replay_of_a_bundled_trace_is_what_a_plain_loop_gives(sim: Program, cifar10: Trace):
    told = json.loads(sim("replay", "cifar10", "--tiers", ",".join(VOTERS), "summit.onnx", "--json")[0])
    said = np.stack([cifar10.models[name].predictions for name in VOTERS])
    agreed = (said == said[0]).all(axis=0)
    right = np.where(agreed, said[0], cifar10.models["summit.onnx"].predictions) == cifar10.labels
    assert told["accuracy"] == pytest.approx(right.mean())
    assert told["exit"] == pytest.approx([agreed.mean(), 1 - agreed.mean()])
    models = read_manifest(zoo.find("cifar10")).models
    first = max(models[name].flops or 0 for name in VOTERS)
    expected = agreed.mean() * first + (1 - agreed.mean()) * (models["summit.onnx"].flops or 0)
    assert told["costs"]["flops"]["exit"] == pytest.approx(expected)
    assert cifar10.payload_bytes is not None
    assert told["sent_bytes"]["cascade"] == pytest.approx(np.where(agreed, 0, cifar10.payload_bytes).mean())


def test_the_bundled_calibration_keeps_its_bound_on_test_and_is_cheaper_by_every_accounting(sim: Program):
    file = zoo.find("cifar10") / "calibration.json"
    table = Calibration.read(file)
    told = json.loads(sim("replay", "zoo:cifar10/test.parquet", "--calibration", file, "--json")[0])
    assert table.bound is not None
    assert table.bound.holds
    assert told["difference"] >= -table.bound.epsilon
    for costs in told["costs"].values():
        assert all(costs[kind.value] < costs["single"][table.reference] for kind in Accounting)


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--certified",)])
def test_the_bundled_calibration_is_what_plan_chooses(options: tuple[str, ...], sim: Program, tmp_path: Path):
    pytest.importorskip("matplotlib")
    sim("plan", "zoo:cifar10/calibration.parquet", *options, "--out", tmp_path)
    made, kept = (Calibration.read(at / "calibration.json") for at in (tmp_path, zoo.find("cifar10")))
    assert replace(made, date=kept.date, bound=None) == replace(kept, bound=None)


def test_a_plan_of_a_bundled_trace_names_labels_and_files(sim: Program, tmp_path: Path):
    pytest.importorskip("matplotlib")
    sim("plan", "zoo:sst2/calibration.parquet", "--models", "bag.onnx,minilm.int8.onnx", "--out", tmp_path)
    table, manifest = Calibration.read(tmp_path / "calibration.json"), read_manifest(zoo.find("sst2"))
    assert (table.labels, table.fingerprint) == (manifest.task.labels, manifest.task.fingerprint)
    for member in (member for tier in table.tiers for member in tier):
        assert member.sha256 == manifest.models[member.name].sha256


def test_pareto_chooses_on_the_calibration_trace_and_reports_on_the_test_trace(sim: Program, cifar10: Trace):
    three = "stride.onnx,feather.onnx,summit.onnx"
    told = json.loads(sim("pareto", "cifar10", "--models", three, "--json")[0])
    assert (told["n_calibration"], told["n_report"]) == (5000, 5000)
    assert told["best_single"]["accuracy"] == pytest.approx(cifar10.accuracy("summit.onnx"))
    calibration = "zoo:cifar10/calibration.parquet"
    again = json.loads(sim("pareto", "cifar10", "--models", three, "--calibration", calibration, "--json")[0])
    assert again["methods"] == told["methods"]
    split = json.loads(sim("pareto", "cifar10", "--models", three, "--calibration", "0.2", "--json")[0])
    assert split["n_calibration"] + split["n_report"] == 5000


def test_choosing_on_what_is_reported_is_refused(sim: Program):
    _, told = sim("pareto", "cifar10", "--calibration", "zoo:cifar10/test.parquet", code=2)
    assert "expected other examples than those reported on, got 5000 of them" in told


def test_a_recording_of_a_trace_asks_members_in_turn_and_charges_what_they_took(cifar10: Trace):
    recording = recording_of(BundledTask.of("cifar10"), cifar10)
    seconds = {name: cifar10.models[name].latency_s.astype(float) for name in cifar10.models}
    assert cifar10.payload_bytes is not None
    for row in range(0, len(cifar10), 50):
        said = [int(cifar10.models[name].predictions[row]) for name in VOTERS]
        asked = next((place for place in range(2, 5) if len(set(said[:place])) > 1), 4)
        device_s = sum(seconds[name][row] for name in VOTERS[:asked])
        record = recording["cascade"][row]
        assert record.exit_tier == (1 if len(set(said)) == 1 else 2)
        assert record.local_s == pytest.approx(device_s)
        best = int(cifar10.models["summit.onnx"].predictions[row])
        assert record.label == (said[0] if record.exit_tier == 1 else best)
        assert record.call_s == pytest.approx(seconds["summit.onnx"][row] if record.left_device else 0.0)
        assert record.communication_s == pytest.approx(0.0)
        assert recording["cloud-only"][row].latency_s == pytest.approx(seconds["summit.onnx"][row])
        if record.left_device:
            assert 40 < record.bytes_sent - cifar10.payload_bytes[row] < 64 + 0.05 * cifar10.payload_bytes[row]
    assert not any(record.left_device for record in recording["edge-only"])


@pytest.mark.parametrize("task", ["digits", *TASKS])
def test_a_system_s_config_stands_anywhere(task: str, tmp_path: Path):
    """Also where the bundled one names its files relative to itself."""
    bundle = BundledTask.of(task)
    for system in SYSTEMS:
        content = edge_config(bundle, system, Uplink(1), tmp_path / "sink.jsonl", interval_s=0.0, max_in_flight=0)
        report = Report(system)
        config = read_cascade(Fields(read_yaml(write(content, tmp_path / "edge.yaml")), report), tmp_path)
        assert report.findings == []
        assert config.task.name == task
        here = [tier for tier in config.tiers if isinstance(tier, LocalTierConfig)]
        assert [spec.path for tier in here for spec in tier.members] == [
            spec.path for tier in bundle.tiers(system)[0] for spec in tier.members
        ]


def test_a_message_is_a_little_more_than_its_payload():
    assert message_bytes("m", 1000) - message_bytes("m", 900) == 100
    assert message_bytes("longer", 900) - message_bytes("m", 900) == 5


@pytest.mark.parametrize(
    "task", [pytest.param(task, marks=pytest.mark.slow if task == "cifar10" else ()) for task in TASKS]
)
def test_the_virtual_clock_replays_a_bundled_trace(task: str, sim: Program):
    trace = read_trace(Path(task))
    told = json.loads(sim("--delays", "1us,1s", "--task", task, "--clock", "virtual", "--json")[0])
    rows = {(row["system"], row["delay_s"]): row for row in told["rows"]}
    assert set(rows) == {(system, delay_s) for system in SYSTEMS for delay_s in (1e-6, 1.0)}
    assert all(row["n"] == len(trace) and row["clock"] == "virtual" for row in rows.values())
    cascade, cloud = rows["cascade", 1.0], rows["cloud-only", 1.0]
    assert len(cascade["exits"]) == BundledTask.of(task).n_tiers("cascade")
    assert cascade["communication_mean_s"] == pytest.approx(cascade["deferral_rate"], abs=1e-6)
    assert cloud["latency_mean_s"] == pytest.approx(1 + rows["cloud-only", 1e-6]["latency_mean_s"], abs=1e-5)


def test_the_page_of_a_virtual_clock_says_that_nothing_was_measured(sim: Program, tmp_path: Path):
    pytest.importorskip("matplotlib")
    sim("--delays", "1us,1s", "--task", "sst2", "--clock", "virtual", "--out", tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Means in virtual time" in page
    assert "measured mean" not in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "cifar10"], "expected a folder of labelled examples of cifar10"),
        (["--task", "cifar10", "--clock", "virtual", "--data", "x"], "decides no examples anew"),
        (["--data", "x"], "the digits are bundled"),
        (["--task", "cifar10", "--data", "/nowhere"], 'expected "digits", a folder or a file'),
        (["1us,1ms,1s", "--task", "cifar10", "--schedule"], "--data: expected a folder of labelled examples"),
        (["1us,1ms,1s", "--task", "cifar10", "--schedule", "--clock", "virtual"], "at least 4 delays"),
    ],
)
def test_arguments_of_a_task_that_do_not_fit_are_told(arguments: list[str], words: str, sim: Program):
    assert words in sim("--delays", *arguments, code=2)[1].splitlines()[-1]


def test_cifar10_has_the_paper_s_schedule_in_virtual_time(sim: Program):
    told = json.loads(sim("--schedule", "--task", "cifar10", "--clock", "virtual", "--json")[0])
    assert told["delays_s"] == [1e-6, 0.01, 0.1, 1.0]
    assert told["ratio_exit"] == pytest.approx(1 / sum(np.multiply(told["exits"], told["delays_s"])))


def pictures(folder: Path, n: int) -> Path:
    """`n` pictures of each of two labels."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for label in ("cat", "ship"):
        (folder / label).mkdir()
        for number in range(n):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number:02d}.png")
    return folder


@pytest.mark.slow
def test_cifar10_has_the_paper_s_schedule_on_a_chain_of_servers(tmp_path: Path, sim: Program):
    data = pictures(tmp_path, 8)
    told = json.loads(sim("--schedule", "--task", "cifar10", "--data", data, "--json")[0])
    assert (told["clock"], told["delays_s"], told["n"]) == ("real", [1e-6, 0.01, 0.1, 1.0], 16)
    assert told["communication_measured_s"] == pytest.approx(told["communication_reach_s"], rel=0.2)


@pytest.mark.slow
def test_the_real_clock_takes_another_task_with_its_data(tmp_path: Path, sim: Program):
    data = pictures(tmp_path, 20)
    told = json.loads(sim("--delays", "1us,50ms", "--task", "cifar10", "--data", data, "--json")[0])
    rows = {(row["system"], row["delay_s"]): row for row in told["rows"]}
    assert all(row["n"] == 40 and row["clock"] == "real" for row in rows.values())
    assert rows["cloud-only", 0.05]["achieved_delay_s"] == pytest.approx(0.05, abs=0.02)
    assert len(rows["cascade", 0.05]["exits"]) == 2
    assert rows["edge-only", 0.05]["bytes_sent_per_example"] == 0
