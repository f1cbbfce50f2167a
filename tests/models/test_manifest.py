"""The manifest: what it says when it is right, and everything it says at once when it is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from coe.cascade import ConfigError
from coe.config.manifest import Task, read_manifest
from coe.models import InputSpec, ModelSpec

SHA = "ab" * 32
GOOD = f"""
task: digits
labels: [zero, one, two]
input:
  kind: image
  size: [28, 24]
  channels: 1
  layout: NHWC
  dtype: float32
  scale: 0.00392156862745098
  mean: [0.13]
  std: 0.3
  fit: crop
models:
  a.onnx: {{tier: 1, sha256: {SHA}, flops: 1000, parameters: 10, calibration_accuracy: 0.97}}
  b.bin:
    format: tflite
    output: logits
    input: {{kind: image, size: [14, 14], channels: 1}}
  c.pt: {{architecture: stroke}}
"""


def written(tmp_path, text):
    (tmp_path / "manifest.yaml").write_text(text, encoding="utf-8")
    return tmp_path


def findings(tmp_path, **changes):
    """Of the good manifest with some settings changed (None: taken out)."""
    content = yaml.safe_load(GOOD)
    for trail, value in changes.items():
        *path, key = trail.replace("__", " ").split()
        place = content
        for step in path:
            place = place[step.replace("_onnx", ".onnx")]
        if value is None:
            del place[key]
        else:
            place[key] = value
    folder = written(tmp_path, yaml.safe_dump(content))
    with pytest.raises(ConfigError) as caught:
        read_manifest(folder)
    prefix = f"{folder / 'manifest.yaml'}: "
    assert all(line.startswith(prefix) for line in str(caught.value).splitlines())
    return caught.value.findings


def test_a_good_manifest_is_read_in_full(tmp_path):
    folder = written(tmp_path, GOOD)
    manifest = read_manifest(folder)
    input_spec = InputSpec("image", (28, 24, 1), "NHWC", "float32", 0.00392156862745098, (0.13,), (0.3,), "crop")
    labels = ("zero", "one", "two")
    assert manifest.task == Task("digits", labels, input_spec)
    assert manifest.models == {
        "a.onnx": ModelSpec(
            "a.onnx",
            folder / "a.onnx",
            "onnx",
            labels,
            input_spec,
            sha256=SHA,
            flops=1000.0,
            parameters=10,
            calibration_accuracy=0.97,
        ),
        "b.bin": ModelSpec("b.bin", folder / "b.bin", "tflite", labels, InputSpec("image", (14, 14, 1)), "logits"),
        "c.pt": ModelSpec("c.pt", folder / "c.pt", "torch", labels, input_spec, architecture="stroke"),
    }
    assert read_manifest(folder / "manifest.yaml") == manifest


def test_a_manifests_checksum_is_no_pin_of_the_operator(tmp_path):
    assert not read_manifest(written(tmp_path, GOOD)).models["a.onnx"].pinned


def test_a_tensor_task_is_read(tmp_path):
    text = "{task: t, labels: [a, b], input: {kind: tensor, shape: [3, 4], dtype: int64}, models: {}}"
    manifest = read_manifest(written(tmp_path, text))
    assert manifest.task.input_spec == InputSpec("tensor", (3, 4), "NHWC", "int64")
    assert manifest.task.input_spec.model_shape == (3, 4)


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"task": None}, "task: expected a text, got nothing (add it)"),
        ({"labels": None}, "labels: expected a list of texts, got nothing (add it)"),
        ({"labels": ["a"]}, "labels: expected two labels or more, all different, got 1"),
        ({"labels": ["a", "a"]}, "labels: expected two labels or more, all different, got 2"),
        ({"labels": ["a", "b", 3]}, 'labels[2]: expected a text, got 3 (write "3" in quotes)'),
        ({"input": None}, "input: expected a section, got nothing (add it)"),
        ({"models": None}, "models: expected a section, got nothing (add it)"),
        ({"models": ["a.onnx"]}, "models: expected a mapping, got a list"),
        ({"input__kind": "img"}, 'input.kind: expected one of image, tensor, text, got "img"; did you mean "image"?'),
        ({"input__size": None}, "input.size: expected a list of whole numbers, got nothing (add it)"),
        ({"input__size": [28]}, "input.size: expected [height, width], got [28]"),
        ({"input__size": [28, 0]}, "input.size: expected [height, width], got [28, 0]"),
        ({"input__channels": 2}, "input.channels: expected 1 (grey) or 3 (RGB), got 2"),
        (
            {"input__layout": "NWHC"},
            'input.layout: expected one of NCHW, NHWC, HW, flat, got "NWHC"; did you mean "NHWC"?',
        ),
        ({"input__layout": ""}, 'input.layout: expected one of NCHW, NHWC, HW, flat, got ""'),
        (
            {"input__dtype": "int64"},
            'input.dtype: expected one of float32, float16, uint8, got "int64"; did you mean "uint8"?',
        ),
        ({"input__scale": "1/255"}, 'input.scale: expected a number, got "1/255"'),
        ({"input__mean": [0.1, 0.2]}, "input.mean: expected 1 number, got 2"),
        ({"input__std": [0.0]}, "input.std: expected numbers above 0, got [0.0]"),
        ({"input__mean": [float("nan")]}, "input.mean: expected finite numbers, got [nan]"),
        ({"input__fit": "pad"}, 'input.fit: expected one of stretch, crop, got "pad"'),
        ({"input__sizes": [1, 1]}, 'input.sizes: unknown setting (did you mean "size"?)'),
        (
            {"models__a_onnx__sha256": "abc"},
            'models.a.onnx.sha256: expected 64 hex digits, got "abc" (sha256sum a.onnx)',
        ),
        (
            {"models__a_onnx__sha256": SHA.upper()},
            f'models.a.onnx.sha256: expected 64 hex digits, got "{SHA.upper()}" (sha256sum a.onnx)',
        ),
        (
            {"models__a_onnx__output": "softmax"},
            'models.a.onnx.output: expected one of probabilities, logits, got "softmax"',
        ),
        (
            {"models__a_onnx__calibration_accuracy": 97},
            "models.a.onnx.calibration_accuracy: expected 0 to 1, got 97",
        ),
        ({"models__a_onnx__flops": -1}, "models.a.onnx.flops: expected 0 to 1e+18, got -1"),
        ({"models__a_onnx__sha_256": SHA}, 'models.a.onnx.sha_256: unknown setting (did you mean "sha256"?)'),
        ({"model": {}}, 'model: unknown setting (did you mean "models"?)'),
    ],
)
def test_each_wrong_setting_of_a_manifest_is_one_finding(tmp_path, changes, finding):
    found = findings(tmp_path, **changes)
    if changes.get("input", "") is None:
        assert finding in found
    else:
        assert found == [finding]


def test_a_format_nobody_runs_is_a_finding(tmp_path):
    (finding,) = findings(tmp_path, models__a_onnx__format="keras")
    assert finding.startswith("models.a.onnx.format: ")
    assert "expected a model format (onnx, tflite, torch, torch-export, torchscript), got 'keras'" in finding


@pytest.mark.parametrize("shape", [[0, 4], [-1]])
def test_a_tensors_shape_is_of_whole_numbers_from_one(tmp_path, shape):
    (finding,) = findings(tmp_path, input={"kind": "tensor", "shape": shape})
    assert finding == f"input.shape: expected whole numbers from 1, got {shape}"


def test_all_findings_come_at_once(tmp_path):
    found = findings(
        tmp_path, task=3, labels=["a"], input__channels=4, models__a_onnx__sha256="x", models__a_onnx__teir=1, extra=1
    )
    assert [finding.split(":")[0] for finding in found] == [
        "task",
        "labels",
        "input.channels",
        "models.a.onnx.sha256",
        "models.a.onnx.teir",
        "extra",
    ]


def test_a_missing_manifest_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"manifest\.yaml: cannot be read: No such file or directory"):
        read_manifest(tmp_path / "manifest.yaml")


TASK = Task("digits", ("0", "1"), InputSpec("image", (28, 28, 1)))


@pytest.mark.parametrize(
    "other",
    [
        replace(TASK, labels=("1", "0")),
        replace(TASK, labels=("0", "1", "2")),
        replace(TASK, input_spec=replace(TASK.input_spec, shape=(28, 28, 3))),
        replace(TASK, input_spec=replace(TASK.input_spec, kind="tensor")),
    ],
)
def test_the_fingerprint_changes_with_the_labels_and_with_what_an_example_is(other):
    assert other.fingerprint != TASK.fingerprint


@pytest.mark.parametrize(
    "other",
    [
        replace(TASK, name="mnist"),
        replace(TASK, input_spec=replace(TASK.input_spec, scale=1 / 255)),
        replace(TASK, input_spec=replace(TASK.input_spec, mean=(0.1,), std=(0.2,), layout="NHWC", dtype="uint8")),
    ],
)
def test_the_fingerprint_does_not_change_with_how_a_member_prepares_an_example(other):
    assert other.fingerprint == TASK.fingerprint


def test_the_fingerprint_is_the_same_on_every_machine():
    assert TASK.fingerprint == "42f1b95ad8d1"
