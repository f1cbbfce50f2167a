"""A model that is not what was declared: an error at start-up that says what to mend."""

from __future__ import annotations

import re
import sys
import types
from dataclasses import replace
from importlib import metadata

import numpy as np
import pytest
from strategies import LinearModel
from tiny_models import CONTRACT, bundled, linear_module, weights_file

from coe.cascade import ModelError, RuntimeMissing
from coe.models import InputSpec, RunOptions, load
from coe.models.loading import format_of, import_runtime, softmax, try_out

LINEAR = LinearModel()


def refused(spec, *words, options=None):
    with pytest.raises(ModelError) as caught:
        load(spec, options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


@pytest.fixture(params=["onnx", "tflite", "torch"])
def good(request, shelf):
    """A spec that loads, in each format."""
    if request.param == "onnx":
        return shelf.put("a.onnx", LINEAR.onnx())
    if request.param == "torch":
        return shelf.put("a.pt", weights_file(), architecture="linear")
    model = bundled("loom.tflite")
    return shelf.put("a.tflite", model.path.read_bytes(), labels=model.labels, input_spec=model.input_spec)


def test_the_good_model_loads(good):
    load(good).close()


def test_a_file_that_changed_is_refused_with_both_checksums(good):
    found = good.sha256[:16]
    changed = replace(good, sha256="0" * 64)
    refused(changed, str(good.path), "expected sha256 0000000000000000..", f"got {found}..", "fetch it again")


def test_one_changed_bit_is_refused_before_the_runtime_sees_it(good):
    data = bytearray(good.path.read_bytes())
    data[len(data) // 2] ^= 1
    good.path.write_bytes(bytes(data))
    refused(good, "expected sha256")


def test_a_missing_file_is_named(good):
    good.path.unlink()
    refused(good, f"{good.path}: the model file cannot be read: No such file or directory")


def test_a_folder_is_no_model_file(good, tmp_path):
    refused(replace(good, path=tmp_path), "cannot be read: Is a directory")


@pytest.mark.parametrize("junk", [b"", b"not a model", b"\x00" * 64, b"PK\x03\x04" + b"\x00" * 64])
def test_a_file_that_is_no_model_is_refused(good, junk):
    good.path.write_bytes(junk)
    refused(replace(good, sha256=None), str(good.path), "cannot load it")


def test_half_a_file_is_refused(good):
    data = good.path.read_bytes()
    good.path.write_bytes(data[: len(data) // 2])
    refused(replace(good, sha256=None), str(good.path))


def test_another_input_shape_than_declared_is_refused(good):
    height, width, channels = good.input_spec.shape
    other = replace(good.input_spec, shape=(height + 1, width, channels))
    refused(replace(good, input_spec=other), str(good.path))


def test_another_number_of_labels_than_declared_is_refused(good):
    refused(replace(good, labels=(*good.labels, "one-more")), str(good.path), f"{len(good.labels) + 1}")


def test_an_onnx_input_of_another_shape_says_both(shelf):
    spec = shelf.put("a.onnx", LINEAR.onnx(), input_spec=replace(CONTRACT, shape=(5, 4, 1)))
    refused(spec, "its input is float32 ['batch', 1, 4, 4]", "float32 [batch, 1, 5, 4]", "change `input:`")


def test_an_onnx_input_of_another_type_says_both(shelf):
    spec = shelf.put("a.onnx", LINEAR.onnx("float16"))
    refused(spec, "its input is float16 ['batch', 1, 4, 4]", "the input spec says float32")


def test_a_tflite_input_of_another_shape_says_both():
    spec = bundled("loom.tflite")
    other = replace(spec, input_spec=replace(spec.input_spec, shape=(27, 28, 1)))
    refused(other, "its input is [1, ", "the input spec says [1, ", "change `input:`")


def test_a_torch_model_that_does_not_take_its_input_says_so(shelf):
    spec = shelf.put("a.pt", weights_file(), architecture="linear", input_spec=replace(CONTRACT, shape=(5, 4, 1)))
    refused(spec, "the model does not take float32 [2, 1, 5, 4] as declared")


def test_an_onnx_output_without_a_place_per_label_is_told_with_its_shape(shelf):
    spec = shelf.put("a.onnx", LINEAR.onnx(), labels=("a", "b"))
    refused(spec, "expected an output [batch, 2] for the labels, got y ['batch', 3]")


def test_other_outputs_than_probabilities_are_refused_with_the_mend(shelf):
    spec = shelf.put("a.onnx", LinearModel(end="double").onnx())
    refused(spec, "expected probabilities that sum to 1, got a sum of 2", "declare `output: logits`")


def test_logits_declared_as_such_become_the_probabilities(shelf):
    logits = load(shelf.put("a.pt", weights_file(), architecture="linear-logits", output="logits"))
    x = np.random.default_rng(0).normal(size=(4, 1, 4, 4)).astype(np.float32)
    assert logits.predict(x) == pytest.approx(LINEAR(x), abs=1e-5)
    refused(shelf.put("b.pt", weights_file(), architecture="linear-logits"), "declare `output: logits`")


def test_softmax_is_exact_for_large_logits_and_whole_numbers():
    assert softmax(np.array([[1000.0, 0.0]])).tolist() == [[1.0, 0.0]]
    assert softmax(np.array([[0, 5]], dtype=np.uint8)) == pytest.approx(np.array([[0.0067, 0.9933]]), abs=1e-4)
    assert softmax(np.zeros((1, 4), dtype=np.float16)).tolist() == [[0.25] * 4]
    assert softmax(np.zeros((1, 4))).dtype == np.float32


def test_a_model_whose_batch_is_baked_in_at_one_is_refused_at_start_and_not_by_the_first_batch(shelf):
    class OneRow:
        def predict(self, x):
            return np.full((1, 3), 1 / 3, dtype=np.float32)

    with pytest.raises(ModelError, match=r"expected an output of \[2, 3\] for two examples"):
        try_out(OneRow(), shelf.put("a.onnx", b""))


def test_a_model_that_gives_no_numbers_is_refused(shelf):
    class Silent:
        def predict(self, x):
            return np.full((2, 3), np.nan, dtype=np.float32)

    with pytest.raises(ModelError, match="expected probabilities that sum to 1, got a sum of nan"):
        try_out(Silent(), shelf.put("a.onnx", b""))


def test_negative_outputs_that_sum_to_one_are_refused(shelf):
    class Signed:
        def predict(self, x):
            return np.array([[1.5, -0.5, 0.0]] * 2, dtype=np.float32)

    with pytest.raises(ModelError, match="expected probabilities"):
        try_out(Signed(), shelf.put("a.onnx", b""))


def test_a_provider_that_is_not_here_is_refused_and_never_silently_replaced(shelf):
    spec = shelf.put("a.onnx", LINEAR.onnx())
    cuda = RunOptions(providers=("cuda", "cpu"))
    refused(spec, "providers: expected one of ", "CPUExecutionProvider", "got cuda", "onnxruntime-gpu", options=cuda)
    refused(spec, "got gpu", options=RunOptions(providers=("gpu",)))


def test_a_torch_device_that_is_not_here_is_refused(shelf):
    spec = shelf.put("a.pt", weights_file(), architecture="linear")
    refused(spec, "torch cannot load it on warp:0", options=RunOptions(device="warp:0"))


def test_an_onnx_file_with_a_fixed_batch_over_one_is_refused(shelf):
    refused(shelf.put("a.onnx", LinearModel(rows=4).onnx()), "a batch dimension that is free or 1, got 4")


def test_an_onnx_file_with_a_second_input_is_refused(shelf):
    refused(shelf.put("a.onnx", LINEAR.onnx(extra_input=True)), "expected one input, got x, mask")


def test_weights_without_a_known_architecture_are_refused_with_those_known(shelf):
    data = weights_file()
    refused(shelf.put("a.pt", data), "a known `architecture:` (", "linear", "got none", "export the model to ONNX")
    refused(shelf.put("a.pt", data, architecture="vit"), "got vit")


def test_weights_of_another_architecture_are_refused(shelf, monkeypatch):
    import torch

    from coe.models.torch import ARCHITECTURES

    monkeypatch.setitem(ARCHITECTURES, "wide", lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 9)))
    refused(shelf.put("a.pt", weights_file(), architecture="wide"), "torch cannot load it")


def test_a_member_that_fails_its_trial_is_closed(shelf, monkeypatch):
    from coe.models.onnx import OnnxMember

    closed = []
    monkeypatch.setattr(OnnxMember, "close", lambda self: closed.append(self.name))
    refused(shelf.put("a.onnx", LinearModel(end="double").onnx()))
    assert closed == ["a.onnx"]


def test_threads_are_as_many_as_asked_for(shelf):
    member = load(shelf.put("a.onnx", LINEAR.onnx()), RunOptions(threads=2))
    assert "2 thread(s)" in member.runs_on


@pytest.mark.parametrize(
    ("name", "declared", "kind"),
    [
        ("a.onnx", None, "onnx"),
        ("a.pt2", None, "torch-export"),
        ("a.bin", "tflite", "tflite"),
        ("a.pt", "onnx", "onnx"),
    ],
)
def test_a_format_is_declared_or_told_by_the_suffix(tmp_path, name, declared, kind):
    assert format_of(tmp_path / name, declared) == kind


@pytest.mark.parametrize(
    ("name", "declared", "got"), [("a.h5", None, "'.h5'"), ("a", None, "'no suffix'"), ("a.onnx", "h5", "'h5'")]
)
def test_a_format_nobody_runs_is_refused_with_those_known(tmp_path, name, declared, got):
    with pytest.raises(ModelError, match=f"expected a model format .*onnx, tflite, torch.*got {re.escape(got)}"):
        format_of(tmp_path / name, declared)


@pytest.mark.parametrize(
    ("package", "file", "fix"),
    [("onnxruntime", "a.onnx", "pip install onnxruntime"), ("torch", "a.pt", "pip install torch")],
)
def test_a_runtime_that_is_not_installed_is_named_with_its_pip_install(shelf, monkeypatch, package, file, fix):
    data = LINEAR.onnx() if file.endswith("onnx") else weights_file()
    spec = shelf.put(file, data, architecture="linear")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RuntimeMissing, match=f"runtime is not installed: {fix}$") as caught:
        load(spec)
    assert caught.value.fix == fix


def versions(monkeypatch, **installed):
    def version(package):
        if package not in installed:
            raise metadata.PackageNotFoundError(package)
        return installed[package]

    monkeypatch.setattr(metadata, "version", version)


def test_without_a_tflite_runtime_the_pip_install_is_named(shelf, monkeypatch):
    versions(monkeypatch)
    with pytest.raises(RuntimeMissing, match=r"TFLite runtime is not installed: pip install 'coe-cascade\[tflite\]'$"):
        load(shelf.put("a.tflite", b"any"))


def test_tflite_runtime_with_numpy_2_is_refused_before_its_import(shelf, monkeypatch):
    versions(monkeypatch, **{"tflite-runtime": "2.14.0", "numpy": "2.1.0"})
    monkeypatch.setitem(sys.modules, "tflite_runtime", None)  # would say so if it were imported
    with pytest.raises(RuntimeMissing) as caught:
        load(shelf.put("a.tflite", b"any"))
    assert "tflite-runtime 2.14.0 needs numpy<2, got 2.1.0" in str(caught.value)
    assert "pip install 'coe-cascade[tflite]', or 'numpy<2'" in str(caught.value)


def test_tflite_runtime_is_used_where_it_is_what_is_installed(monkeypatch):
    from coe.models.tflite import find_interpreter

    versions(monkeypatch, **{"tflite-runtime": "2.14.0", "numpy": "1.26.4"})
    module = types.ModuleType("tflite_runtime.interpreter")
    module.Interpreter = object
    monkeypatch.setitem(sys.modules, "tflite_runtime", types.ModuleType("tflite_runtime"))
    monkeypatch.setitem(sys.modules, "tflite_runtime.interpreter", module)
    assert find_interpreter() == (object, "tflite-runtime 2.14.0")


def test_a_runtime_whose_import_fails_says_why(tmp_path, monkeypatch):
    (tmp_path / "shaky_runtime.py").write_text("raise ImportError('libgpu.so: cannot open')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RuntimeMissing, match=r"pip install shaky \(importing shaky_runtime failed: libgpu.so"):
        import_runtime("shaky_runtime", "shaky", "pip install shaky")


def test_a_tensor_contract_is_what_a_model_takes_as_it_is(shelf):
    member = load(shelf.put("a.onnx", LinearModel(shape=(16,)).onnx(), input_spec=InputSpec("tensor", (16,), "NHWC")))
    x = np.arange(32, dtype=np.float64).reshape(2, 16) / 32
    assert member.predict(member.prepare(x)) == pytest.approx(LINEAR(x), abs=1e-5)


def test_torch_weights_can_be_of_a_module_in_training_mode(shelf, monkeypatch):
    import torch

    from coe.models.torch import ARCHITECTURES

    def with_dropout():
        module = torch.nn.Sequential(*linear_module()[:2], torch.nn.Dropout(0.9), torch.nn.Softmax(1))
        return module.train()

    monkeypatch.setitem(ARCHITECTURES, "dropout", with_dropout)
    member = load(shelf.put("a.pt", weights_file(), architecture="dropout"))
    x = np.ones((3, 1, 4, 4), dtype=np.float32)
    assert member.predict(x) == pytest.approx(LINEAR(x), abs=1e-5)


def test_a_provider_that_is_listed_but_cannot_start_is_refused_and_not_replaced_by_the_cpu(shelf, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(  # as onnxruntime-gpu does where CUDA's libraries are missing: it falls back
        onnxruntime,
        "InferenceSession",
        lambda data, settings, providers: real(data, settings, providers=providers[-1:]),
    )
    cuda = RunOptions(providers=("cuda", "cpu"))
    refused(shelf.put("a.onnx", LINEAR.onnx()), "CUDAExecutionProvider was asked for and could not start", options=cuda)
