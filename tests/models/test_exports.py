"""Models as real exporters write them, through `init --examples` to the accuracy of the original model.

`exports/make.py` makes the files. What torch can write in a test is written here.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coe.cascade.errors import ConfigError, ModelError
from coe.models import InputSpec, ModelSpec, load
from coe.models.loading import EXPORTS, ModelSignature, TensorInfo, file_labels, format_of
from coe.models.onnx_file import external_files, labels_in, labels_of_text
from coe.zoo import digits
from edge.config import read_config
from edge.main import main
from edge.setup.found_models import _n_labels

EXPORTED = Path(__file__).parent / "exports"
RIGHT = json.loads((EXPORTED / "expected.json").read_text(encoding="utf-8"))
NAMES = ("setosa", "versicolor", "virginica")
EXAMPLES = {"int64.onnx": "whole.csv", "tfidf.onnx": "texts.csv", "sigmoid.onnx": "binary.csv"}
EXAMPLES |= dict.fromkeys(("zipmap.onnx", "float64.onnx", "forest.onnx", "network.onnx"), "iris.csv")
BY_NUMBER = "numbered.csv"
NUMBERED = InputSpec("tensor", (4,), "NHWC")


def put(folder: Path, *names: str) -> Path:
    """A folder of these models."""
    models = folder / "models"
    models.mkdir(exist_ok=True)
    for name in names:
        for file in EXPORTED.glob(f"{name}*"):
            shutil.copy(file, models)
    return models


def init(folder: Path, *arguments: str) -> Path:
    path = folder / "pi.yaml"
    assert main(["init", "--output", str(path), "--models", str(folder / "models"), "--yes", *arguments]) == 0
    return path


@pytest.mark.parametrize("name", RIGHT)
def test_an_export_is_as_right_as_the_original(tmp_path, capsys, name):
    put(tmp_path, name)
    examples = EXPORTED / EXAMPLES.get(name, BY_NUMBER)
    path = init(tmp_path, "--examples", str(examples))
    capsys.readouterr()
    assert main(["doctor", "--config", str(path), "--examples", str(examples), "--json"]) == 0
    checks = {check["what"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks[name]["level"] == "ok"
    n = int(checks[name]["message"].split(" of ")[1].split()[0])
    assert float(checks[name]["message"].split("%")[0]) == pytest.approx(100 * RIGHT[name], abs=100 / n)


@pytest.mark.parametrize("name", ["float16.tflite", "int8.tflite", "uint8.tflite"])
@pytest.mark.parametrize("has_examples", [True, False])
def test_a_quantised_model_is_given_what_its_file_says(tmp_path, capsys, name, has_examples):
    if name == "float16.tflite" and not has_examples:
        pytest.skip("such a file does not say how its input is scaled: examples are needed")
    put(tmp_path, name)
    for at, png, label in digits.test_examples(120):
        (tmp_path / "photos" / str(label)).mkdir(exist_ok=True, parents=True)
        (tmp_path / "photos" / str(label) / f"{at}.png").write_bytes(png)
    examples = ["--examples", str(tmp_path / "photos")]
    path = init(tmp_path, "--labels", ",".join("0123456789"), *(examples if has_examples else []))
    capsys.readouterr()
    assert main(["doctor", "--config", str(path), *examples, "--json"]) == 0
    check = next(one for one in json.loads(capsys.readouterr().out)["checks"] if one["what"] == name)
    assert (check["level"], float(check["message"].split("%")[0]) > 97) == ("ok", True), check


def test_labels_of_a_file_are_the_tasks_where_nobody_names_them(tmp_path):
    put(tmp_path, "zipmap.onnx", "forest.onnx", "network.onnx")
    task = read_config(init(tmp_path)).cascade.task
    assert task.labels == NAMES


@pytest.mark.parametrize(("name", "labels"), [("zipmap.onnx", NAMES), ("forest.onnx", NAMES), ("network.onnx", NAMES)])
def test_labels_are_read_from_a_file(name, labels):
    data = (EXPORTED / name).read_bytes()
    assert file_labels(EXPORTED / name, data, 3) == labels
    assert labels_in(data[: len(data) // 2]) == []
    assert labels_in(b"not a model") == []


@pytest.mark.parametrize("name", ["forest.onnx", "zipmap.onnx"])
@pytest.mark.parametrize("labels", ["virginica,Setosa,versicolor", "a,b,c"])
def test_labels_that_a_user_names_may_be_others_than_the_files(tmp_path, name, labels):
    put(tmp_path, name)
    (spec,) = read_config(init(tmp_path, "--labels", labels)).cascade.tiers[0].members
    x = np.array([[5.1, 3.5, 1.4, 0.2]], dtype=np.float32)  # a setosa
    assert spec.own_labels == (("Setosa", "versicolor", "virginica") if "Set" in labels else ("a", "b", "c"))
    assert spec.labels[int(load(spec).predict(x).argmax())] in ("Setosa", "a")


def spec_of(path: Path, labels: tuple[str, ...] = NAMES, **more) -> ModelSpec:
    return replace(ModelSpec(path.name, path, "onnx", labels, NUMBERED), **more)


def test_labels_are_read_from_the_files_behind_a_tflite_model(tmp_path):
    path = tmp_path / "a.tflite"
    shutil.copy(EXPORTED / "int8.tflite", path)
    names = tuple(f"d{number}" for number in range(10))
    with zipfile.ZipFile(path, "a") as files:
        files.writestr("labels.txt", "\n".join(names))
    assert file_labels(path, path.read_bytes(), 10) == names
    spec = ModelSpec("a.tflite", path, "tflite", names[::-1], InputSpec("image", (28, 28, 1), "NHWC"))
    with pytest.raises(ModelError, match="a file that names them d0, d1"):
        load(spec)
    load(replace(spec, labels=names)).close()


def test_labels_in_another_order_than_the_files_are_an_error_at_start():
    turned = ("virginica", "versicolor", "setosa")
    with pytest.raises(ModelError, match=r"got a file that names them setosa, versicolor, virginica \(add `labels: \["):
        load(spec_of(EXPORTED / "forest.onnx", turned))
    with pytest.raises(ModelError, match="the task's names in the order of its outputs"):
        load(spec_of(EXPORTED / "forest.onnx", ("a", "b", "c")))
    load(spec_of(EXPORTED / "forest.onnx", ("a", "b", "c"), own_labels=("c", "a", "b"))).close()


def test_labels_of_a_members_own_reorder_rename_and_leave_out():
    x = np.array([[5.1, 3.5, 1.4, 0.2], [6.3, 3.3, 6.0, 2.5]], dtype=np.float32)
    plain = load(spec_of(EXPORTED / "forest.onnx")).predict(x)
    turned = load(spec_of(EXPORTED / "forest.onnx", ("c", "a", "b"), own_labels=("a", "b", "c"))).predict(x)
    assert turned == pytest.approx(plain[:, [2, 0, 1]])
    fewer = load(spec_of(EXPORTED / "forest.onnx", ("a", "c"), own_labels=("a", "other", "c"))).predict(x)
    assert fewer == pytest.approx(plain[:, [0, 2]] / plain[:, [0, 2]].sum(axis=1, keepdims=True))
    more = load(spec_of(EXPORTED / "forest.onnx", ("z", "a", "b", "c"), own_labels=("a", "b", "c"))).predict(x)
    assert more == pytest.approx(np.c_[np.zeros(2), plain])


def test_a_members_own_labels_and_output_are_read_from_a_config(tmp_path):
    put(tmp_path, "embedding.onnx")
    (tmp_path / "pi.yaml").write_text(
        "task: iris\nlabels: [c, a, b]\ninput: {kind: tensor, shape: [4]}\n"
        "tiers: [{members: [{file: models/embedding.onnx, labels: [a, b, c], output_name: classes}]}]\n"
    )
    (spec,) = read_config(tmp_path / "pi.yaml").cascade.tiers[0].members
    assert (spec.own_labels, spec.output_name) == (("a", "b", "c"), "classes")
    x = np.array([[5.1, 3.5, 1.4, 0.2]], dtype=np.float32)
    assert load(spec).predict(x).argmax() == 1
    with pytest.raises(ModelError, match=r"expected an output named nothing, got features .*, classes"):
        load(replace(spec, output_name="nothing"))
    with pytest.raises(ModelError, match="sum to 1"):
        load(replace(spec, output_name="features", own_labels=()))


def test_external_data_is_loaded_and_hashed_with_the_file(tmp_path):
    models = put(tmp_path, "external.onnx")
    path, data = models / "external.onnx", models / "external.onnx.data"
    spec = spec_of(path, output="logits")
    assert external_files(path.read_bytes()) == [data.name]
    both = hashlib.sha256(path.read_bytes() + data.read_bytes()).hexdigest()
    assert spec.digest() == both
    load(replace(spec, sha256=both)).close()
    changed = bytearray(data.read_bytes())
    changed[0] ^= 1
    data.write_bytes(changed)
    with pytest.raises(ModelError, match="expected sha256"):
        load(replace(spec, sha256=both))
    data.unlink()
    with pytest.raises(ModelError, match=r"external.onnx.data: .*No such file .*external_data=False"):
        load(spec)


def test_external_data_elsewhere_is_refused(tmp_path):
    data = (EXPORTED / "external.onnx").read_bytes().replace(b"external.onnx.data", b"../ternal.onnx.data")
    (tmp_path / "a.onnx").write_bytes(data)
    with pytest.raises(ModelError):
        load(spec_of(tmp_path / "a.onnx", output="logits"))


@pytest.mark.parametrize(
    ("suffix", "words"),
    [
        (".joblib", "skl2onnx.to_onnx("),
        (".pkl", "skl2onnx.to_onnx("),
        (".ubj", "convert_xgboost("),
        (".keras", "model.export("),
        (".h5", "model.export("),
        (".safetensors", "optimum-cli export onnx"),
    ],
)
def test_a_format_that_is_not_run_names_the_export(tmp_path, capsys, suffix, words):
    assert suffix in EXPORTS
    with pytest.raises(ModelError) as caught:
        format_of(tmp_path / f"model{suffix}")
    assert words in str(caught.value)
    (tmp_path / f"model{suffix}").write_bytes(b"never opened")
    assert main(["init", "--output", str(tmp_path / "pi.yaml"), "--models", str(tmp_path), "--yes"]) == 2
    assert words in capsys.readouterr().err


def test_a_regression_is_refused(tmp_path, capsys):
    put(tmp_path, "regressor.onnx")
    path = tmp_path / "pi.yaml"
    assert main(["init", "--output", str(path), "--models", str(tmp_path / "models"), "--yes"]) == 2
    assert not path.exists()
    assert "regression" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("cat\ndog\n", ("cat", "dog")),
        ("0 cat\n1 hot dog\n", ("cat", "hot dog")),
        ("101 dalmatians\n7 dwarfs\n", ("101 dalmatians", "7 dwarfs")),
        ('["cat", "dog"]', ("cat", "dog")),
        ("{0: 'cat', 1: 'dog'}", ("cat", "dog")),
        ('{"1": "dog", "0": "cat"}', ("cat", "dog")),
        ("cat, dog", ("cat", "dog")),
    ],
)
def test_lists_of_labels_are_read_in_the_forms_they_come_in(text, labels):
    assert labels_of_text(text) == labels


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ([("output0", [84, 8400])], "what looks like a detector"),
        ([("boxes", [4]), ("scores", [10])], "what looks like a detector"),
        ([("y", [512])], "what looks like an embedding"),
        ([("mask", [21, 64, 64])], "what looks like a segmentation"),
    ],
)
def test_what_is_no_classifier_is_named(tmp_path, outputs, words):
    tensors = [TensorInfo(name, "float32", (None, *dims)) for name, dims in outputs]
    signature = ModelSignature((TensorInfo("x", "float32", (None, 3, 8, 8)),), tuple(tensors))
    with pytest.raises(ConfigError) as caught:
        _n_labels(tmp_path / "a.onnx", signature, 3)
    assert words in str(caught.value)
