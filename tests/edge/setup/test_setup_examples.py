"""`coe-edge init|doctor --examples`: accuracy, and the input settings and the order of labels that fit."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, load, numpy_helper, save

from coe.models.input_spec import InputSpec
from coe.models.inputs import InputDecoder
from coe.zoo import digits
from edge.config import read_config
from edge.main import main
from edge.setup import accuracy
from edge.setup.accuracy import forms_of, in_words
from edge.tally import Tally, answers_warnings

N = 120
ORDER = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]  # of the outputs of a model with labels of its own


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> Path:
    """A folder per digit."""
    folder = tmp_path_factory.mktemp("examples")
    for name, png, label in digits.test_examples(N):
        (folder / str(label)).mkdir(exist_ok=True)
        (folder / str(label) / f"{name}.png").write_bytes(png)
    return folder


def put(path: Path, *, scale: float = 1.0, shift: float = 0.0, order: list[int] | None = None) -> None:
    """A bundled model that takes (x * scale + shift), whose outputs are in that order."""
    model = load(digits.FOLDER / "loom.onnx")
    graph = model.graph
    name = graph.input[0].name
    for node in graph.node:
        node.input[:] = ["scaled" if given == name else given for given in node.input]
        node.output[:] = ["before" if order and given == graph.output[0].name else given for given in node.output]
    for constant, value in (("scale_by", scale), ("shift_by", shift)):
        graph.initializer.append(numpy_helper.from_array(np.array(value, dtype=np.float32), constant))
    graph.node.insert(0, helper.make_node("Mul", [name, "scale_by"], ["multiplied"]))
    graph.node.insert(1, helper.make_node("Add", ["multiplied", "shift_by"], ["scaled"]))
    if order:
        graph.initializer.append(numpy_helper.from_array(np.array(order, dtype=np.int64), "order"))
        graph.node.append(helper.make_node("Gather", ["before", "order"], [graph.output[0].name], axis=1))
    save(model, path)


def init(folder: Path, examples: Path, *more: str) -> Path:
    path = folder / "pi.yaml"
    arguments = [
        "init",
        "--output",
        str(path),
        "--models",
        str(folder / "models"),
        "--examples",
        str(examples),
        "--yes",
    ]
    assert main([*arguments, "--force", *more]) == 0
    return path


@pytest.fixture
def models(tmp_path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def test_models_with_their_rescaling_inside_are_found_out(tmp_path, models, examples, capsys):
    put(models / "plain.onnx")  # takes 0 to 1
    put(models / "inside.onnx", scale=1 / 255)  # takes 0 to 255
    put(models / "signed.onnx", scale=0.5, shift=0.5)  # takes -1 to 1
    config = read_config(init(tmp_path, examples))
    members = {spec.name: spec.input_spec for spec in config.cascade.tiers[0].members}
    assert {name: in_words(spec) for name, spec in members.items()} == {
        "plain.onnx": "0 to 1",
        "inside.onnx": "0 to 255",
        "signed.onnx": "-1 to 1",
    }
    assert config.cascade.task.labels == tuple("0123456789")  # as the folders are called
    printed = capsys.readouterr().out
    assert "inside.onnx: its input is 0 to 255: that fits the examples best" in printed
    assert "CHECK" not in printed
    assert printed.count("% of 120 right") == 3


def test_another_order_of_labels_is_found_and_written(tmp_path, models, examples, capsys):
    put(models / "a.onnx")
    put(models / "b.onnx", order=ORDER)
    path = init(tmp_path, examples, "--labels", ",".join(f"d{number}" for number in range(10)))
    config = read_config(path)
    b = next(spec for spec in config.cascade.tiers[0].members if spec.name == "b.onnx")
    assert b.own_labels == tuple(f"d{number}" for number in ORDER)
    assert "b.onnx: its labels are in another order" in capsys.readouterr().out
    assert main(["doctor", "--config", str(path), "--examples", str(examples), "--json"]) == 0
    checks = {check["what"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["a.onnx"]["message"].split("%")[0] == checks["b.onnx"]["message"].split("%")[0]
    assert checks["b.onnx"]["level"] == "ok"


def test_doctor_says_what_to_write_where_a_config_is_wrong(tmp_path, models, examples, capsys):
    put(models / "inside.onnx", scale=1 / 255, order=ORDER)
    path = tmp_path / "pi.yaml"
    assert main(["init", "--output", str(path), "--models", str(models), "--yes"]) == 0
    capsys.readouterr()
    main(["doctor", "--config", str(path), "--examples", str(examples), "--json"])
    checks = {check["what"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["inside.onnx"]["level"] == "warn"
    fix = checks["inside.onnx"]["fix"]
    assert "scale: 1.0" in fix
    assert f"labels: [{', '.join(f'label-{number}' for number in ORDER)}]" in fix


def test_a_right_config_is_left_as_it_is(capsys, examples):
    assert main(["doctor", "--examples", str(examples), "--json"]) in (0, 1)
    checks = json.loads(capsys.readouterr().out)["checks"]
    found = {check["what"]: check for check in checks if check["what"].endswith((".onnx", ".tflite"))}
    assert len(found) == 3
    assert {check["level"] for check in found.values()} == {"ok"}
    assert all("120 right" in check["message"] for check in found.values())


def test_a_label_that_is_none_of_the_tasks_is_said(tmp_path, examples, capsys):
    other = tmp_path / "examples" / "cat"
    other.mkdir(parents=True)
    shutil.copy(next((examples / "1").iterdir()), other)
    assert main(["doctor", "--examples", str(other.parent), "--json"]) == 1
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert any('label "cat" is none of the task\'s' in check["message"] for check in checks)


def test_examples_without_labels_show_answers_that_are_all_one(tmp_path, models, examples, capsys):
    put(models / "a.onnx", scale=0.0)
    path = tmp_path / "pi.yaml"
    assert main(["init", "--output", str(path), "--models", str(models), "--yes"]) == 0
    flat = tmp_path / "flat"
    flat.mkdir()
    for folder in examples.iterdir():
        for file in folder.iterdir():
            shutil.copy(file, flat)
    capsys.readouterr()
    main(["doctor", "--config", str(path), "--examples", str(flat), "--json"])
    checks = [check for check in json.loads(capsys.readouterr().out)["checks"] if check["what"] == "a.onnx"]
    assert "100% of 120 answers are" in checks[0]["message"]


def test_grey_images_go_to_a_model_of_rows_of_pixels(tmp_path, models, examples):
    put(models / "a.onnx")
    model = load(models / "a.onnx")
    name = model.graph.input[0].name
    for node in model.graph.node:
        node.input[:] = ["image" if given == name else given for given in node.input]
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 1, 28, 28], dtype=np.int64), "as_image"))
    model.graph.node.insert(0, helper.make_node("Reshape", [name, "as_image"], ["image"]))
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 784]))
    save(model, models / "a.onnx")
    spec = read_config(init(tmp_path, examples)).cascade.task.input_spec
    assert (spec.kind, spec.layout, spec.shape) == ("image", "flat", (28, 28, 1))


def test_init_writes_no_config_whose_models_do_not_run(tmp_path, models, capsys):
    path = tmp_path / "pi.yaml"
    shutil.copy(digits.FOLDER / "loom.onnx", models / "broken.onnx")
    (models / "broken.onnx").write_bytes((models / "broken.onnx").read_bytes()[:500])
    assert main(["init", "--output", str(path), "--models", str(models), "--yes"]) == 2
    assert "broken.onnx" in capsys.readouterr().err
    assert not path.exists()


def test_the_forms_of_an_image_are_told_apart():
    colour = forms_of(InputSpec("image", (4, 4, 3), scale=1 / 255))
    assert next(iter(colour)) == "0 to 1"
    assert {"0 to 255", "-1 to 1", "0 to 1 in BGR", "ImageNet's mean and deviation"} <= set(colour)
    caffe = colour["ImageNet's mean, 0 to 255 in BGR"]
    assert (caffe.mean, caffe.channel_order) == ((103.939, 116.779, 123.68), "BGR")
    assert list(forms_of(InputSpec("tensor", (4,)))) == ["as it is"]
    x = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    plain, turned = (colour[name].prepare(x) for name in ("0 to 1", "0 to 1 in BGR"))
    assert np.array_equal(plain[:, ::-1], turned)


def test_examples_of_many_pixels_are_read_one_by_one(tmp_path, monkeypatch, capsys, examples):
    """The limit is of one request's images together, and nobody sends these in one."""
    monkeypatch.setattr(accuracy, "InputDecoder", partial(InputDecoder, max_pixels=1000))  # one digit's are 784
    main(["doctor", "--examples", str(examples)])  # without a server
    assert f"of {N} labelled examples" in capsys.readouterr().out


def test_answers_are_warned_of_only_where_they_are_many_and_alike():
    labels = ("a", "b", "c")
    assert answers_warnings(Counter({0: 49}), 0.9, labels) == []
    assert answers_warnings(Counter({0: 40, 1: 40}), 0.9, labels) == []
    (line,) = answers_warnings(Counter({2: 99, 1: 1}), 0.9, labels)
    assert line.startswith("99% of 100 answers are c")
    (line,) = answers_warnings(Counter({0: 40, 1: 40}), 0.35, labels)
    assert "nearly as probable (0.350 on average)" in line
    tally = Tally(n=60, answers=Counter({1: 60}), scores=50.0)
    assert tally.summary(labels)[-1].startswith("warning: 100% of 60 answers are b")


def test_a_run_without_examples_says_what_it_saw(tmp_path, capsys):
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").touch()
    (folder / "b.txt").touch()
    (folder / "c.nef").touch()
    shutil.copy(digits.FOLDER / "test" / "0000.png", folder / "deep")
    path = tmp_path / "pi.yaml"
    text = f"task: zoo:digits\ntiers: [{{members: [zoo:digits/loom.onnx]}}]\nsource: {{kind: folder, path: {folder}}}\n"
    path.write_text(text)
    assert main(["--config", str(path)]) == 1
    said = capsys.readouterr().err
    assert "no examples: " in said
    assert "holds 4 files: 2 .txt, 1 .nef, 1 .png (recursive: true takes those in its folders)" in said
    path.write_text(text.replace("path: ", "recursive: true, path: "))
    assert main(["--config", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == "deep/0000.png"


def test_a_folder_of_timms_is_read_as_it_says(tmp_path, capsys):
    models = tmp_path / "birds"
    models.mkdir()
    weight = numpy_helper.from_array(np.random.default_rng(0).normal(size=(192, 3)).astype(np.float32), "w")
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    opset = helper.make_opsetid("", 17)
    graph = helper.make_graph(nodes, "g", [x], [y], [weight])
    save(helper.make_model(graph, opset_imports=[opset], ir_version=8), models / "model.onnx")
    settings = {"input_size": [3, 8, 8], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "crop_pct": 0.9}
    content = {"architecture": "tiny", "label_names": ["owl", "wren", "kite"], "pretrained_cfg": settings}
    (models / "config.json").write_text(json.dumps({**content, "num_classes": 3}))
    path = tmp_path / "pi.yaml"
    assert main(["init", "--output", str(path), "--models", str(models), "--yes"]) == 0
    task = read_config(path).cascade.task
    assert (task.labels, task.input_spec.mean, task.input_spec.fit) == (("owl", "wren", "kite"), (0.5,) * 3, "crop")
    assert "manifest.yaml, of what config.json says" in capsys.readouterr().out


def test_bench_and_calibrate_warn_of_answers_that_are_all_one(tmp_path, models, examples, capsys):
    put(models / "a.onnx", scale=0.0)
    path = tmp_path / "pi.yaml"
    assert main(["init", "--output", str(path), "--models", str(models), "--yes"]) == 0
    capsys.readouterr()
    assert main(["bench", "--config", str(path), "--data", str(examples), "--seconds", "0.1", "--limit", "60"]) == 0
    assert "warning: a.onnx: 100% of 60 answers are label-" in capsys.readouterr().err
    assert main(["calibrate", "--config", str(path), "--data", str(examples)]) == 0
    assert "warning: 100% of 120 answers are label-" in capsys.readouterr().err


def test_a_model_that_takes_thousands_of_numbers_is_said_to_be_of_audio(tmp_path, models, capsys):
    weight = numpy_helper.from_array(np.ones((16000, 2), dtype=np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Softmax", ["m"], ["y"], axis=1)]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16000])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])
    graph = helper.make_graph(nodes, "g", [x], [y], [weight])
    opset = helper.make_opsetid("", 17)
    save(helper.make_model(graph, opset_imports=[opset], ir_version=8), models / "a.onnx")
    assert main(["init", "--output", str(tmp_path / "pi.yaml"), "--models", str(models), "--yes"]) == 0
    assert "16000 numbers look like raw audio" in capsys.readouterr().out
