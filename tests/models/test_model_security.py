"""Nothing that can run code from a model file is opened unless the operator's own config pins it."""

from __future__ import annotations

import io
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from strategies import LinearModel
from tiny_models import digest

from coe.cascade import ModelError
from coe.models import load


class Planted:
    """Unpickling this writes a file: the stand-in for any code at all."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.write_text, (self.target, "planted code ran")


@pytest.fixture
def trap(tmp_path):
    """The file that planted code would make; the plant is shown to work before the test trusts it."""
    target = tmp_path / "planted"
    pickle.loads(pickle.dumps(Planted(target)))
    assert target.read_text() == "planted code ran"
    target.unlink()
    return target


@pytest.fixture
def doors(monkeypatch):
    """Every call of a function that can unpickle; weights-only loading is let through."""
    import torch

    calls = []
    real = torch.load

    def watched(name):
        def call(*args, **kwargs):
            calls.append(name)
            raise AssertionError(f"{name} was reached")

        return call

    def loading(*args, **kwargs):
        calls.append(f"load weights_only={kwargs.get('weights_only')}")
        return real(*args, **kwargs)

    monkeypatch.setattr(torch.export, "load", watched("export.load"))
    monkeypatch.setattr(torch.jit, "load", watched("jit.load"))
    monkeypatch.setattr(torch, "load", loading)
    return calls


def planted_archive(target):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("archive/data.pkl", "archive/data/sample_inputs/model.pt", "data.pkl"):
            archive.writestr(name, pickle.dumps(Planted(target)))
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["a.pt2", "a.ts"])
@pytest.mark.parametrize("with_manifest_checksum", [True, False])
def test_a_file_that_can_run_code_is_refused_unless_the_config_pins_it(
    shelf, trap, doors, name, with_manifest_checksum
):
    spec = shelf.put(name, planted_archive(trap))
    if not with_manifest_checksum:
        spec = replace(spec, sha256=None)
    with pytest.raises(ModelError, match="can run code as it loads, so it is opened only where your config pins it"):
        load(spec)
    assert doors == []
    assert not trap.exists()


@pytest.mark.parametrize("name", ["a.pt2", "a.ts"])
def test_a_pin_that_does_not_match_keeps_the_file_shut(shelf, trap, doors, name):
    spec = shelf.put(name, planted_archive(trap), pinned=True, sha256=digest(b"what the operator looked at"))
    with pytest.raises(ModelError, match="expected sha256"):
        load(spec)
    assert doors == []
    assert not trap.exists()


def test_an_exported_program_that_is_pinned_opens(shelf, export_file):
    member = load(shelf.put("a.pt2", export_file, pinned=True))
    x = np.ones((3, 1, 4, 4), dtype=np.float32)
    assert member.predict(x) == pytest.approx(LinearModel()(x), abs=1e-5)


@pytest.mark.filterwarnings("ignore:.torch.jit.load. is deprecated:DeprecationWarning")
def test_a_torchscript_file_that_is_pinned_opens(shelf, script_file):
    member = load(shelf.put("a.ts", script_file, pinned=True))
    x = np.ones((3, 1, 4, 4), dtype=np.float32)
    assert member.predict(x) == pytest.approx(LinearModel()(x), abs=1e-5)


@pytest.mark.parametrize("pinned", [True, False])
def test_weights_are_never_unpickled_pinned_or_not(shelf, trap, doors, pinned):
    import torch

    buffer = io.BytesIO()
    torch.save({"1.weight": Planted(trap)}, buffer)
    spec = shelf.put("a.pt", buffer.getvalue(), architecture="linear", pinned=pinned)
    with pytest.raises(ModelError, match="torch cannot load it"):
        load(spec)
    assert doors == ["load weights_only=True"]
    assert not trap.exists()


def test_a_bare_pickle_in_place_of_weights_is_refused(shelf, trap):
    spec = shelf.put("a.pt", pickle.dumps(Planted(trap)), architecture="linear")
    with pytest.raises(ModelError, match="torch cannot load it"):
        load(spec)
    assert not trap.exists()


@pytest.mark.parametrize("name", ["a.onnx", "a.tflite"])
def test_a_pickle_under_another_name_is_only_a_broken_model(shelf, trap, name):
    with pytest.raises(ModelError, match="cannot load it"):
        load(shelf.put(name, pickle.dumps(Planted(trap))))
    assert not trap.exists()


def test_the_bytes_that_were_checked_are_the_bytes_that_are_loaded(shelf, monkeypatch):
    spec = shelf.put("a.onnx", LinearModel().onnx())
    reads = []
    real = Path.read_bytes

    def counting(path):
        data = real(path)
        reads.append(path)
        path.write_bytes(b"swapped after the check")
        return data

    monkeypatch.setattr(Path, "read_bytes", counting)
    load(spec).close()
    assert reads == [spec.path]
