"""`coe-edge init`: the real program, and configs that the real agent takes."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from coe import zoo
from coe.cascade.errors import ConfigError
from coe.config.cascade import LocalTierConfig
from coe.models.loading import TensorInfo
from coe.zoo import digits
from edge.config import read_config
from edge.main import main
from edge.setup.found_models import input_spec_of
from edge.setup.init import _quoted


def a_folder_of(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        shutil.copy(digits.FOLDER / name, folder)
    return folder


def init(path: Path, *arguments: str) -> int:
    return main(["init", "--output", str(path), "--yes", *arguments])


def test_the_bundled_models_make_a_config_that_decides(tmp_path, capsys):
    path = tmp_path / "pi.yaml"
    assert init(path) == 0
    printed = capsys.readouterr().out
    assert f"coe-edge doctor --config {path}" in printed
    assert f"coe-edge install-service --config {path}" in printed
    done = subprocess.run(
        [sys.executable, "-m", "edge.main", "--config", str(path), "--limit", "3"],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0
    assert done.stdout.count("\n") == 3
    assert main(["--config", str(path), "--dry-run"]) == 0
    assert capsys.readouterr().out.endswith("ready\n")


@pytest.mark.parametrize("task", zoo.TASKS)
def test_each_bundled_task_keeps_its_models_their_order_and_its_rule(tmp_path, task):
    if task not in zoo.installed():
        pytest.skip("needs the tasks of coe-zoo: pip install ./zoo")
    path = tmp_path / "pi.yaml"
    assert init(path, "--models", f"zoo:{task}", "--cloud", "127.0.0.1:8001", "--source", "stdin") == 0
    ours, bundled = read_config(path).cascade, read_config(zoo.find(f"{task}/edge.yaml")).cascade
    assert ours.task == bundled.task
    assert (ours.tiers[0].members, ours.tiers[0].rule) == (bundled.tiers[0].members, bundled.tiers[0].rule)


def test_a_folder_of_models_in_two_formats_makes_one_ensemble(tmp_path, capsys):
    models = a_folder_of(tmp_path / "my models", "loom.onnx", "loom.tflite", "stroke.onnx", "mosaic.int8.tflite")
    path = tmp_path / "pi.yaml"
    labels = ",".join(f"d{number}" for number in range(10))
    assert init(path, "--models", str(models), "--labels", labels, "--cloud", "gpu-host:8001", "--source", "stdin") == 0
    config = read_config(path)
    tier = config.cascade.tiers[0]
    assert isinstance(tier, LocalTierConfig)
    assert sorted(spec.name for spec in tier.members) == ["loom.onnx", "mosaic.int8.tflite", "stroke.onnx"]
    assert config.cascade.task.labels == tuple(labels.split(","))
    assert config.cascade.task.input_spec.shape == (28, 28, 1)
    assert config.cascade.tiers[1].address == "gpu-host:8001"
    assert config.source.kind == "stdin"
    assert config.warnings == ()
    assert "CHECK `input:`" in capsys.readouterr().out
    assert "CHECK how your models were trained" in path.read_text()


def test_a_folder_with_a_manifest_is_described_by_it(tmp_path):
    models = a_folder_of(tmp_path / "models", "loom.onnx", "stroke.onnx", "mosaic.onnx")
    text = digits.MANIFEST.read_text(encoding="utf-8")
    kept = text[: text.index("models:")] + "models:\n"
    for name in ("loom", "stroke", "mosaic"):
        at = text.index(f"  {name}.onnx:")
        end = text.index("    format: onnx", at) + len("    format: onnx\n")
        kept += text[at:end]
    (models / "manifest.yaml").write_text(kept, encoding="utf-8")
    path = tmp_path / "pi.yaml"
    assert init(path, "--models", str(models), "--cloud", "127.0.0.1:8001") == 0
    config = read_config(path)
    assert config.cascade.task.name == "digits"
    assert all(spec.sha256 for spec in config.cascade.tiers[0].members)
    assert "labels:" not in path.read_text()


def test_a_model_that_ends_before_the_softmax_is_found_out(tmp_path):
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper, save

    def put(name: str, shape: list, flat: int) -> None:
        rng = np.random.default_rng(len(name))
        weight = numpy_helper.from_array(rng.normal(size=(flat, 3)).astype(np.float32), "w")
        bias = numpy_helper.from_array(np.array([3.0, -1.0, 2.0], dtype=np.float32), "b")
        nodes = [
            helper.make_node("Flatten", ["x"], ["f"]),
            helper.make_node("MatMul", ["f", "w"], ["m"]),
            helper.make_node("Add", ["m", "b"], ["y"]),
        ]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
        model = helper.make_model(
            helper.make_graph(nodes, "g", [x], [y], [weight, bias]),
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=8,
        )
        save(model, models / name)

    models = tmp_path / "models"
    models.mkdir()
    put("a.onnx", [3, 8, 8], 192)
    put("wide.onnx", [3, 16, 16], 768)
    (models / "labels.txt").write_text("good\nscratched\nbent, badly\n")
    path = tmp_path / "pi.yaml"
    assert init(path, "--models", str(models)) == 0
    config = read_config(path)
    assert config.cascade.task.labels == ("good", "scratched", "bent, badly")
    assert [spec.output for spec in config.cascade.tiers[0].members] == ["logits", "logits"]
    assert [spec.input_spec.shape for spec in config.cascade.tiers[0].members] == [(8, 8, 3), (16, 16, 3)]
    assert main(["--config", str(path), "--dry-run"]) == 0


def test_a_config_that_is_there_is_not_replaced_unless_forced(tmp_path, capsys):
    path = tmp_path / "pi.yaml"
    path.write_text("mine")
    assert init(path) == 2
    assert path.read_text() == "mine"
    assert "--force replaces it" in capsys.readouterr().err
    assert init(path, "--force") == 0
    assert read_config(path).cascade.task.name == "digits"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["pi.yaml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "none"], "--models: expected a folder"),
        (["--models", "empty"], "expected .onnx or .tflite files, got none"),
        (["--models", "zoo:nothing"], "expected a bundled task"),
        (["--models", "models", "--labels", "a,b,c"], "--labels: expected 10 different labels"),
        (["--models", "models", "--labels", "a,a,c,d,e,f,g,h,i,j"], "--labels: expected 10 different labels"),
        (["--labels", "a,b"], "--labels: expected none for models with a manifest"),
        (["--cloud", "gpu-host"], "--cloud: expected host:port"),
        (["--source", "microphone"], "--source: expected folder:/path"),
        (["--source", "folder:"], "--source: expected folder:/path"),
        (["--models", "text"], "expected an onnx model, got something else"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_nothing_is_written(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    a_folder_of(tmp_path / "models", "loom.onnx")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.onnx").write_text("not a model")
    assert init(tmp_path / "pi.yaml", *arguments) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "pi.yaml").exists()


def test_a_watched_folder_is_made_and_any_path_survives(tmp_path):
    photos = tmp_path / "it's a: folder #1"
    path = tmp_path / "pi.yaml"
    assert init(path, "--source", f"folder:{photos}") == 0
    assert photos.is_dir()
    assert read_config(path).source.path == photos
    assert read_config(path).source.watch


def test_a_table_is_a_source(tmp_path):
    path = tmp_path / "pi.yaml"
    assert init(path, "--source", "csv:rows.csv") == 0
    source = read_config(path).source
    assert (source.kind, source.path) == ("csv", Path("rows.csv").absolute())


@pytest.mark.parametrize("text", ["yes", "No", "1", "a: b", "x#y", "é", "null", "- a", "[b]", "'q'", '"', "ok-1", ".5"])
def test_a_text_comes_back_from_yaml_as_it_was(text):
    import yaml

    assert yaml.safe_load(f"[{_quoted(text)}, x]") == [text, "x"]


def test_on_a_terminal_it_asks_for_what_is_left_open(tmp_path):
    outer, inner = pty.openpty()
    path = tmp_path / "pi.yaml"
    command = [sys.executable, "-m", "edge.main", "init", "--output", str(path), "--cloud", ""]
    with subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner) as program:
        os.close(inner)
        os.write(outer, b"nowhere\nzoo:digits\nphotos/new\nstdin\n")
        printed = b""
        while True:
            try:
                part = os.read(outer, 4096)
            except OSError:  # the other end is gone
                break
            if not part:
                break
            printed += part
        assert program.wait(60) == 0
    os.close(outer)
    text = printed.decode()
    assert "Models: a folder of .onnx or .tflite files, or zoo:digits [zoo:digits]:" in text
    assert "Where examples come from" in text
    assert "Server to ask" not in text  # the flag is given
    assert text.count("Models: a folder") == text.count("Where examples come from") == 2  # again, where it was wrong
    assert "  --models: expected a folder of .onnx or .tflite files or zoo:digits, got nowhere" in text
    assert 'got "photos/new" (write folder:photos/new)' in text
    assert read_config(path).source.kind == "stdin"


@pytest.mark.parametrize(
    ("tensor", "kind", "shape", "layout", "dtype", "scale"),
    [
        (TensorInfo("x", "float32", (None, 3, 96, 128)), "image", (96, 128, 3), "NCHW", "float32", 1 / 255),
        (TensorInfo("x", "float32", (1, 96, 128, 3)), "image", (96, 128, 3), "NHWC", "float32", 1 / 255),
        (TensorInfo("x", "uint8", (1, 28, 28, 1)), "image", (28, 28, 1), "NHWC", "uint8", 1.0),
        (TensorInfo("x", "int8", (1, 28, 28, 1)), "image", (28, 28, 1), "NHWC", "float32", 1 / 255),
        (TensorInfo("x", "float32", (None, 12)), "tensor", (12,), "NHWC", "float32", 1.0),
        (TensorInfo("x", "int64", (None, 3, 8, 8)), "tensor", (3, 8, 8), "NHWC", "int64", 1.0),
        (TensorInfo("x", "float32", (None, 7, 8, 9)), "tensor", (7, 8, 9), "NHWC", "float32", 1.0),
    ],
)
def test_an_input_becomes_a_contract(tmp_path, tensor, kind, shape, layout, dtype, scale):
    input_spec = input_spec_of(tmp_path / "m.onnx", tensor)
    got = (input_spec.kind, input_spec.shape, input_spec.layout, input_spec.dtype, input_spec.scale)
    assert got == (kind, shape, layout, dtype, scale)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (TensorInfo("x", "float32", (None, 3, None, None)), "got [free, 3, free, free]"),
        (TensorInfo("x", "float32", (None,)), "got [free]"),
        (TensorInfo("x", "type 9", (None, 3)), "got type 9"),
    ],
)
def test_an_input_that_no_member_could_take_is_message(tmp_path, tensor, message):
    with pytest.raises(ConfigError) as found:
        input_spec_of(tmp_path / "m.onnx", tensor)
    assert message in str(found.value)
