"""`coe-sim record`: bundled models over bundled digits, and over folders."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from simulator import Program

from coe import zoo
from coe.zoo.digits import test_examples
from sim.traces import read_trace

pytest.importorskip("pyarrow")
pytest.importorskip("onnxruntime")

CONFIG = """
task: zoo:digits
tiers:
  - name: device
    members: [zoo:digits/stroke.onnx, zoo:digits/loom.onnx]
  - {name: cloud, address: "127.0.0.1:1", model: digits}
source: {kind: digits}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "edge.yaml"
    path.write_text(CONFIG)
    return path


def test_a_recorded_trace_holds_what_the_models_say(sim: Program, config: Path, tmp_path: Path):
    path = tmp_path / "t.parquet"
    arguments = ("record", path, "--models", config, "--limit", 80, "--latencies", "--json")
    told = json.loads(sim(*arguments)[0])
    trace = read_trace(path)
    assert list(trace.models) == ["stroke.onnx", "loom.onnx"]
    assert len(trace) == told["n"] == 80
    examples = test_examples(80)
    assert trace.labels.tolist() == [label for _, _, label in examples]
    assert trace.payload_bytes.tolist() == [len(png) for _, png, _ in examples]
    for name, said in trace.models.items():
        assert told["single"][name] == trace.accuracy(name) > 0.9
        assert said.probabilities.shape == (80, 10)
        assert np.array_equal(said.probabilities.argmax(axis=1), said.predictions)
        assert said.probabilities.sum(axis=1) == pytest.approx(1, abs=5e-3)
        assert 0 < trace.latency_s(name) < 1


def save_one_that_looks_at_its_batch(path: Path) -> None:
    """Label 1 for a digit darker than the mean of its batch, 0 for every other, and so for one alone."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("ReduceMean", ["x"], ["own"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("ReduceMean", ["own"], ["all"], axes=[0], keepdims=0),
        helper.make_node("Sub", ["all", "own"], ["darker"]),
        helper.make_node("Unsqueeze", ["darker", "axis"], ["column"]),
        helper.make_node("Mul", ["column", "weights"], ["logits"]),
    ]
    constants = [
        helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
        helper.make_tensor("weights", TensorProto.FLOAT, [1, 10], [0.0, 1.0] + [-9.0] * 8),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 28, 28])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])
    graph = helper.make_graph(nodes, "looks", [x], [logits], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


def test_with_latencies_each_example_is_answered_alone(sim: Program, tmp_path: Path):
    save_one_that_looks_at_its_batch(tmp_path / "looks.onnx")
    config, path = tmp_path / "edge.yaml", tmp_path / "t.parquet"
    member = "{file: looks.onnx, output: logits}"
    config.write_text(f"task: zoo:digits\ntiers:\n  - {{name: device, members: [{member}]}}\n")
    sim("record", path, "--models", config, "--limit", 20)
    assert set(read_trace(path).models["looks.onnx"].predictions.tolist()) != {0}
    sim("record", path, "--models", config, "--limit", 20, "--latencies")
    assert set(read_trace(path).models["looks.onnx"].predictions.tolist()) == {0}


def test_a_folder_per_label_and_a_list_give_the_same_trace(sim: Program, config: Path, tmp_path: Path):
    listed = tmp_path / "list"
    listed.mkdir()
    lines = ["file\tlabel"]
    for name, png, label in test_examples(12):
        (tmp_path / "folders" / str(label)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "folders" / str(label) / f"{name}.png").write_bytes(png)
        (listed / f"{name}.png").write_bytes(png)
        lines.append(f"{name}.png\t{label}")
    (listed / "labels.tsv").write_text("\n".join(lines) + "\n")
    found = []
    for folder in ("folders", "list"):
        path = tmp_path / f"{folder}.parquet"
        sim("record", path, "--models", config, "--data", tmp_path / folder)
        trace = read_trace(path)
        predictions = trace.models["loom.onnx"].predictions.tolist()
        found.append({Path(name).name: answer for name, answer in zip(trace.ids, predictions, strict=True)})
        assert trace.accuracy("loom.onnx") > 0.8
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["t.csv"], "expected a name that ends in .parquet"),
        pytest.param(
            ["t.parquet", "--models", "cifar10"],
            "expected examples of cifar10, got the bundled digits",
            marks=pytest.mark.skipif("cifar10" not in zoo.installed(), reason="pip install ./zoo"),
        ),
        (["t.parquet", "--data", "nowhere"], 'expected "digits", a folder or a file, got "nowhere"'),
        (["t.parquet", "--models", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
    ],
)
def test_what_cannot_be_recorded_is_one_line(sim: Program, tmp_path: Path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    _, err = sim("record", *arguments, code=2)
    assert words in err
    assert len(err.splitlines()) == 1


def test_labels_that_the_task_does_not_have_are_named(sim: Program, config: Path, tmp_path: Path):
    (tmp_path / "data" / "eleven").mkdir(parents=True)
    (tmp_path / "data" / "eleven" / "a.png").write_bytes(b"")
    _, err = sim("record", tmp_path / "t.parquet", "--models", config, "--data", tmp_path / "data", code=2)
    assert 'label "eleven" is none of the task\'s (0, 1, 2' in err


def test_a_config_without_local_models_is_refused(sim: Program, tmp_path: Path):
    path = tmp_path / "remote.yaml"
    path.write_text('task: zoo:digits\ntiers:\n  - {name: cloud, address: "127.0.0.1:1", model: digits}\n')
    _, err = sim("record", tmp_path / "t.parquet", "--models", path, code=2)
    assert "expected local tiers, got none" in err


def test_models_of_one_name_in_different_folders_are_told_apart(sim: Program, config: Path, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "stroke.onnx").write_bytes((zoo.find("digits") / "loom.onnx").read_bytes())
    (tmp_path / "other.yaml").write_text(CONFIG.replace("zoo:digits/stroke.onnx", "mine/stroke.onnx"))
    path = tmp_path / "t.parquet"
    sim("record", path, "--models", config, tmp_path / "other.yaml", "--limit", 20)
    models = read_trace(path).models
    assert list(models) == ["digits/stroke.onnx", "loom.onnx", "mine/stroke.onnx"]
    assert np.array_equal(models["mine/stroke.onnx"].probabilities, models["loom.onnx"].probabilities)


def test_a_table_with_label_names_is_recorded(sim: Program, tmp_path: Path):
    """Rows of a sensor, of a task whose labels have names, as CSV, JSON lines and arrays."""
    save_one_that_looks_at_its_batch(tmp_path / "looks.onnx")
    names = "[zero, one, two, three, four, five, six, seven, eight, nine]"
    shape = "{kind: tensor, shape: [1, 28, 28]}"
    (tmp_path / "edge.yaml").write_text(
        f"task: t\nlabels: {names}\ninput: {shape}\ntiers:\n"
        "  - {name: device, members: [{file: looks.onnx, output: logits}]}\n"
    )
    x = np.random.default_rng(0).random((6, 784)).round(3)
    labels = ["zero", "one", "two", "nine", "zero", "one"]
    header = ",".join([*(f"p{at}" for at in range(784)), "label"])
    rows = [",".join([*map(str, row), label]) for row, label in zip(x, labels, strict=True)]
    (tmp_path / "d.csv").write_text("\n".join([header, *rows]) + "\n")
    lines = [
        json.dumps({"tensor": row.reshape(1, 28, 28).tolist(), "label": label})
        for row, label in zip(x, labels, strict=True)
    ]
    (tmp_path / "d.jsonl").write_text("\n".join(lines) + "\n")
    np.savez(tmp_path / "d.npz", x=x.reshape(6, 1, 28, 28), y=labels)
    for name in ("d.csv", "d.jsonl", "d.npz"):
        path = tmp_path / f"{name}.parquet"
        sim("record", path, "--models", tmp_path / "edge.yaml", "--data", tmp_path / name)
        trace = read_trace(path)
        assert trace.labels.tolist() == [0, 1, 2, 9, 0, 1]
        assert set(trace.payload_bytes.tolist()) <= {784 * 4, 784 * 8}
        assert len(set(trace.models["looks.onnx"].predictions.tolist())) > 1


TEXTS = """
task: zoo:sst2/manifest.yaml
tiers:
  - name: device
    members: [zoo:sst2/bag.onnx, zoo:sst2/filters.onnx]
"""


def test_a_table_of_texts_is_recorded(sim: Program, tmp_path: Path):
    pytest.importorskip("tokenizers")
    pytest.importorskip("coe_zoo", reason="needs the tasks of coe-zoo: pip install ./zoo")
    (tmp_path / "films.yaml").write_text(TEXTS)
    rows = [("a stirring , funny and finally transporting film", 1), ('an "endless" and dull mess', 0)] * 40
    (tmp_path / "films.tsv").write_text("sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    path = tmp_path / "t.parquet"
    record = ("record", path, "--models", tmp_path / "films.yaml", "--data")
    sim(*record, tmp_path / "films.tsv", "--limit", 70)
    trace = read_trace(path)
    assert (len(trace), trace.labels.tolist()[:3]) == (70, [1, 0, 1])
    assert trace.payload_bytes.tolist()[:2] == [len(text) for text, _ in rows[:2]]
    assert trace.accuracy("filters.onnx") == 1.0
    (tmp_path / "films.tsv").rename(tmp_path / "sst2_dev.tsv")  # the folder that the recipe reads
    sim(*record, tmp_path, "--limit", 50)
    assert len(read_trace(path)) == 50
    (tmp_path / "empty").mkdir()
    assert "or a labels.tsv, got nothing (or name the file of a table)" in sim(*record, tmp_path / "empty", code=2)[1]
    (tmp_path / "films.tsv").write_text("sentence\tlabel\nx\tgood\n")
    assert 'label "good" is none of the task' in sim(*record, tmp_path / "films.tsv", code=2)[1]
    (tmp_path / "films.tsv").write_text("words\tlabel\nx\t1\n")
    assert "expected the columns text and label" in sim(*record, tmp_path / "films.tsv", code=2)[1]


@pytest.mark.parametrize("data", ["imagenet:here", "swag:here.csv"])
def test_readers_of_published_data_are_in_the_repository_alone(sim: Program, tmp_path: Path, monkeypatch, data):
    monkeypatch.setitem(sys.modules, "recipes", None)
    monkeypatch.setitem(sys.modules, "recipes.readers.datasets", None)
    _, err = sim("record", tmp_path / "t.parquet", "--data", data, code=2)
    where = "are in the repository, not in the package (run in a checkout)"
    assert err == f"coe-sim: --data: readers of published data sets {where}\n"


def test_a_folder_of_pictures_needs_no_recipe(sim: Program, config: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "recipes", None)
    name, png, label = test_examples(1)[0]
    folder = tmp_path / "data" / str(label)
    folder.mkdir(parents=True)
    (folder / f"{name}.png").write_bytes(png)
    sim("record", tmp_path / "t.parquet", "--models", config, "--data", tmp_path / "data")
    assert len(read_trace(tmp_path / "t.parquet")) == 1
