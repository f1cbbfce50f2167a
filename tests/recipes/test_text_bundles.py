"""The text tasks as they are bundled: files, manifests, configs and traces agree, and REPORT.md says what they say."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from coe import zoo
from coe.cascade import Accounting, ModelError, average_cost
from coe.config.manifest import read_manifest
from coe.models import InputDecoder, TextInputSpec, load

pytest.importorskip("coe_zoo", reason="needs the tasks of coe-zoo: pip install ./zoo")

SMALL = ("bag.onnx", "filters.onnx", "attention.onnx")
BEST = "minilm.int8.onnx"
TASKS = ("sst2", "tfns")
SIZES = {"sst2": {"calibration": 1000, "test": 872}, "tfns": {"calibration": 1431, "test": 1194}}
LABELS = {"sst2": ("negative", "positive"), "tfns": ("bearish", "bullish", "neutral")}
CLEAR = {  # texts on which the three agree
    "sst2": {"a moving , funny and wonderful film": 1, "a dull , lifeless and stupid mess": 0},
    "tfns": {"$AAPL - price target raised, shares jump to a record high": 1, "$GE downgraded to sell, shares sink": 0},
}
MOST_BYTES = 700_000  # of a small model with its tokenizer
SHARED = Path(os.environ.get("COE_DATA", "../shared/data"))


@pytest.fixture(params=TASKS)
def task(request):
    return request.param


@pytest.fixture
def folder(task):
    return zoo.find(task)


@pytest.fixture
def models(folder):
    return yaml.safe_load((folder / "manifest.yaml").read_text(encoding="utf-8"))["models"]


def members_of(folder, n: int = len(SMALL)):
    manifest = read_manifest(folder)
    return [load(manifest.models[file]) for file in SMALL[:n]]


def test_the_manifest_describes_the_task_and_its_two_tiers(task, folder, models):
    manifest = read_manifest(folder)
    assert (manifest.task.name, manifest.task.labels) == (task, LABELS[task])
    assert manifest.task.input_spec == TextInputSpec()
    assert {file: entry["tier"] for file, entry in models.items()} == dict.fromkeys(SMALL, 1) | {BEST: 2}
    assert all(entry["flops"] and entry["parameters"] and entry["calibration_accuracy"] for entry in models.values())


@pytest.mark.parametrize("file", SMALL)
def test_a_file_and_its_tokenizer_are_those_their_checksums_say_and_stay_small(folder, models, file):
    model, own = folder / file, models[file]["input"]
    tokenizer = folder / own["tokenizer"]
    assert hashlib.sha256(model.read_bytes()).hexdigest() == models[file]["sha256"]
    assert hashlib.sha256(tokenizer.read_bytes()).hexdigest() == own["tokenizer_sha256"]
    assert model.stat().st_size + tokenizer.stat().st_size <= MOST_BYTES


def test_minilm_is_not_bundled_and_says_what_makes_it(task, folder, tmp_path):
    (tmp_path / "manifest.yaml").write_bytes((folder / "manifest.yaml").read_bytes())
    with pytest.raises(ModelError, match=rf"not bundled; python -m recipes.{task} --data DIR makes it"):
        load(read_manifest(tmp_path).models[BEST])


def test_the_small_models_answer_and_agree_on_what_is_clear(task, folder):
    pytest.importorskip("tokenizers")
    pytest.importorskip("onnxruntime")
    texts = list(CLEAR[task])
    batch = InputDecoder(TextInputSpec()).batch(texts, [text.encode() for text in texts])
    for member in members_of(folder):
        together = member.predict(member.prepare(batch.x))
        alone = np.concatenate([member.predict(member.prepare(batch.x[row : row + 1])) for row in range(len(texts))])
        assert together.sum(axis=1) == pytest.approx(np.ones(len(texts)), abs=1e-4)
        assert together == pytest.approx(alone, abs=1e-4)  # stored in 8 bits, computed in 32
        assert together.argmax(axis=1).tolist() == list(CLEAR[task].values()), member.name
        member.close()


def tiers_of(folder, name: str):
    from coe.config import Fields, Report, read_yaml
    from coe.config.cascade import read_cascade

    findings = Report(name)
    config = read_cascade(Fields(read_yaml(folder / name), findings), folder)
    assert (findings.findings, findings.warnings) == ([], [])
    return config.tiers


def test_the_configs_are_the_reported_cascade(task, folder):
    device, remote = tiers_of(folder, "edge.yaml")
    (best,) = tiers_of(folder, "cloud.yaml")
    assert [member.name for member in device.members] == list(SMALL)
    assert [member.name for member in best.members] == [BEST]
    assert remote.model == yaml.safe_load((folder / "cloud.yaml").read_text())["model"] == task
    rule = "unanimous" if device.rule.needed(3) == 3 else "2/3"
    assert f"so chosen: {rule}.\n" in (folder / "REPORT.md").read_text(encoding="utf-8")


# The traces


@pytest.mark.parametrize("split", ["calibration", "test"])
def test_a_trace_has_one_row_for_each_text_and_member(task, folder, split):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    from sim.traces import read_trace

    path, n = folder / f"{split}.parquet", SIZES[task][split]
    table = parquet.read_table(path)
    assert table.schema.field("probabilities").type == pa.list_(pa.float16(), len(LABELS[task]))
    assert {table.schema.field(name).type for name in ("label", "prediction")} == {pa.int16()}
    assert table.num_rows == 4 * n
    recorded = read_trace(path)
    assert set(recorded.models) == {*SMALL, BEST}
    assert len(set(recorded.ids)) == n
    assert set(recorded.labels.tolist()) == set(range(len(LABELS[task])))
    assert recorded.payload_bytes.min() > 0
    for said in recorded.models.values():
        top = said.probabilities.astype(np.float32).max(axis=1)
        assert top == pytest.approx(said.scores, abs=1e-3)
        assert (said.latency_s > 0).all()
    assert path.stat().st_size < 200_000


def test_the_manifest_repeats_what_calibration_recorded(folder, models):
    pytest.importorskip("pyarrow")
    from sim.traces import read_trace

    recorded = read_trace(folder / "calibration.parquet")
    for file, entry in models.items():
        assert entry["calibration_accuracy"] == pytest.approx(recorded.accuracy(file), abs=1e-4)


def test_the_report_says_what_traces_and_manifest_say(task, folder, tmp_path):
    pytest.importorskip("pyarrow")
    pytest.importorskip("torch")  # the report's module knows the recipes
    from recipes.report import by_agreement, read_traces, replayed
    from recipes.text import report
    from sim.studies.replay import with_limits

    calibration, test = read_traces(folder)
    text = (folder / "REPORT.md").read_text(encoding="utf-8")
    run = replayed(test, report.MEMBERS, report.chosen_agreement(by_agreement(calibration, report.MEMBERS)))
    assert f"cascade: {with_limits(run.accuracy, run.limits())} of {len(test):,} examples right" in text
    specs = read_manifest(folder).models
    flops = [[specs[file].flops for file in SMALL], [specs[BEST].flops]]
    for accounting in Accounting:
        work = average_cost(run.exits, flops, accounting)
        line = rf"^FLOPs per example +{accounting.value} +{work / 1e6:.3g} M .* {work / flops[-1][0]:.2f}x \("
        assert re.search(line, text, re.MULTILINE)
    shutil.copytree(folder, tmp_path / task)
    report.write(importlib.import_module(f"recipes.{task}").TASK, tmp_path / task, {}, 0)
    again = (tmp_path / task / "REPORT.md").read_text(encoding="utf-8")
    assert again.split("differences of")[1].split("## How")[0] == text.split("differences of")[1].split("## How")[0]


def test_the_simulator_replays_a_bundled_trace(task, folder):
    pytest.importorskip("pyarrow")
    tiers = [",".join(SMALL) + "@unanimous", BEST]
    command = [sys.executable, "-m", "sim.main", "replay", task, "--tiers", *tiers]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    block = f"$ coe-sim replay {task} --tiers {' '.join(map(repr, tiers))}\n{done.stdout}```"
    assert block in (folder / "REPORT.md").read_text(encoding="utf-8")


def test_the_files_still_say_what_the_trace_recorded(task, folder):
    """On the published test texts, where they are at hand."""
    pytest.importorskip("pyarrow")
    pytest.importorskip("torch")
    pytest.importorskip("tokenizers")
    from recipes.text import data, export
    from sim.traces import read_trace

    task_of = importlib.import_module(f"recipes.{task}").TASK
    if not (SHARED / task_of.test).exists():
        pytest.skip(f"{task_of.test} is not here (name its folder in COE_DATA)")
    test, recorded = data.load_test(task_of, SHARED), read_trace(folder / "test.parquet")
    assert test.ids == recorded.ids
    assert test.labels.tolist() == recorded.labels.tolist()
    for file, member in zip(SMALL, members_of(folder), strict=True):
        outputs, _ = export.one_by_one(member, test.texts[:60], repeats=1)
        assert outputs == pytest.approx(recorded.models[file].probabilities[:60].astype(np.float32), abs=2e-3)
        member.close()
