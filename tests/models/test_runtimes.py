"""One contract for every runtime: what a member is to the cascade, whatever runs it."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from strategies import LinearModel
from tiny_models import linear_module

from coe.cascade import Agreement, Batch, LocalTier, ModelError
from coe.models import load
from coe.models.onnx import OnnxMember

# torch would rather read exported programs; where a user has a TorchScript file, it is read.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.load. is deprecated:DeprecationWarning")


@pytest.fixture
def member(case):
    member = case.open()
    yield member
    member.close()


def test_it_says_what_it_is_called_how_many_labels_it_has_and_what_runs_it(case, member):
    assert member.name
    assert member.n_labels == case.n_labels
    assert member.runs_on


def test_it_prepares_examples_as_its_model_takes_them(case, member):
    ready = member.prepare(case.examples)
    assert ready.shape == (len(case.examples), *case.model_shape)
    assert ready.dtype == case.dtype


@pytest.mark.parametrize("n_rows", [1, 2, 6])
def test_it_gives_one_probability_per_label_and_row(case, member, n_rows):
    output = member.predict(member.prepare(case.examples[:n_rows]))
    assert output.shape == (n_rows, case.n_labels)
    assert output.dtype == np.float32
    assert (output >= 0).all()
    assert output.sum(axis=1) == pytest.approx(np.ones(n_rows), abs=0.01)


def test_it_answers_a_batch_as_its_rows_one_by_one(case, member):
    ready = member.prepare(case.examples)
    together = member.predict(ready)
    for row in range(len(ready)):
        alone = member.predict(ready[row : row + 1])
        assert alone[0] == pytest.approx(together[row], abs=1e-5)
        assert alone[0].argmax() == together[row].argmax()


def test_it_tells_examples_apart(case, member):
    output = member.predict(member.prepare(case.examples))
    assert np.ptp(output, axis=0).max() > 1e-3


def test_it_gives_the_same_answer_each_time_and_leaves_its_input_alone(case, member):
    ready = member.prepare(case.examples)
    before = ready.copy()
    assert member.predict(ready).tobytes() == member.predict(ready).tobytes()
    assert ready.tobytes() == before.tobytes()


def test_it_takes_memory_it_may_not_write(case, member):
    ready = member.prepare(case.examples).copy()
    ready.flags.writeable = False
    assert member.predict(ready).shape == (len(ready), case.n_labels)


def test_an_answer_is_not_overwritten_by_the_next(case, member):
    ready = member.prepare(case.examples)
    first = member.predict(ready[:1])
    kept = first.copy()
    member.predict(ready[1:2])
    assert first.tobytes() == kept.tobytes()


def test_eight_threads_get_the_answers_one_gets(case, member):
    ready = member.prepare(case.examples)
    alone = [member.predict(ready[row : row + 1]).tobytes() for row in range(len(ready))]

    def ask(thread):
        rows = [(thread + turn) % len(ready) for turn in range(12)]
        return [(row, member.predict(ready[row : row + 1]).tobytes()) for row in rows]

    with ThreadPoolExecutor(8) as pool:
        for answers in pool.map(ask, range(8)):
            assert all(answer == alone[row] for row, answer in answers)


def test_it_sits_in_a_tier(case, member):
    ids = tuple(f"x{row}" for row in range(len(case.examples)))
    vote = LocalTier("tier", [member], Agreement(Fraction(1))).vote(Batch(ids, case.examples), Agreement(Fraction(1)))
    output = member.predict(member.prepare(case.examples))
    assert vote.labels.tolist() == output.argmax(axis=1).tolist()
    assert vote.score == pytest.approx(output.max(axis=1), abs=1e-5)


def test_closing_twice_is_fine(case):
    member = case.open()
    member.close()
    member.close()


@pytest.mark.parametrize(
    "case", ["onnx", "onnx-batch-1", "onnx-logits", "torch", "torch-export", "torchscript"], indirect=True
)
def test_it_computes_what_the_model_is(case, member):
    ready = member.prepare(case.examples)
    assert member.predict(ready) == pytest.approx(LinearModel()(ready), abs=1e-5)


@pytest.mark.parametrize("case", ["onnx", "tflite", "torch"], indirect=True)
def test_the_start_up_line_names_runtime_version_and_device(case, member):
    assert any(
        word in member.runs_on for word in ("onnxruntime 1.", "ai-edge-litert 2.", "tflite-runtime 2.", "torch 2.")
    )
    assert any(word in member.runs_on for word in ("CPU", "cpu"))
    assert "1 thread(s)" in member.runs_on


def test_of_several_outputs_the_one_with_a_place_per_label_counts(shelf):
    member = load(shelf.put("a.onnx", LinearModel().onnx(extra_output=True)))
    x = np.zeros((2, 1, 4, 4), dtype=np.float32)
    assert member.predict(x) == pytest.approx(LinearModel()(x), abs=1e-5)


@pytest.mark.parametrize("case", ["onnx", "onnx-batch-1", "onnx-float16", "onnx-uint8"], indirect=True)
def test_one_example_through_bound_memory_is_answered_bit_for_bit_as_in_the_plain_way(case, member):
    ready = member.prepare(case.examples)
    bound = member._bound
    assert bound is not None, "one example was tried at the start, so its memory is bound"
    through = [member.predict(ready[row : row + 1]) for row in range(len(ready))]
    assert bound.take_turn(blocking=False)  # somebody else is using it
    plain = [member.predict(ready[row : row + 1]) for row in range(len(ready))]
    assert [output.tobytes() for output in through] == [output.tobytes() for output in plain]


@pytest.mark.parametrize("case", ["onnx"], indirect=True)
def test_an_example_of_another_shape_or_kind_is_refused_and_not_stretched_to_the_bound_memory(case, member):
    for x in (np.zeros((1, 1, 1, 4), dtype=np.float32), np.zeros((1, 1, 4, 4), dtype=np.float64)):
        with pytest.raises(Exception, match=r"INVALID_ARGUMENT|Unexpected input data type|invalid dimensions"):
            member.predict(x)
    ready = member.prepare(case.examples[:1])
    assert member.predict(ready) == pytest.approx(LinearModel()(ready), abs=1e-5)  # and the next is fine


def test_memory_that_the_runtime_does_not_read_and_write_in_place_is_not_used(shelf, monkeypatch):
    bind = OnnxMember.bind
    monkeypatch.setattr(OnnxMember, "bind", lambda self, x, output: bind(self, x.copy(), output.copy()))
    member = load(shelf.put("a.onnx", LinearModel().onnx()))
    x = np.ones((1, 1, 4, 4), dtype=np.float32)
    assert member.predict(x) == pytest.approx(LinearModel()(x), abs=1e-5)
    assert member._bound is None


def test_a_large_example_is_read_where_it_lies(shelf, monkeypatch):
    monkeypatch.setattr("coe.models.onnx.LARGEST_BOUND", 63)  # the model takes 64 bytes
    member = load(shelf.put("a.onnx", LinearModel().onnx()))
    x = np.ones((1, 1, 4, 4), dtype=np.float32)
    assert member.predict(x) == pytest.approx(LinearModel()(x), abs=1e-5)
    assert member._bound is None


def test_torchscript_that_is_named_pt_is_recognised(shelf, script_file):
    spec = shelf.put("a.pt", script_file, pinned=True)
    assert spec.format == "torch"
    x = np.random.default_rng(0).normal(size=(5, 1, 4, 4)).astype(np.float32)
    assert load(spec).predict(x) == pytest.approx(LinearModel()(x), abs=1e-5)
    with pytest.raises(ModelError, match="a torchscript file can run code as it loads"):
        load(replace(spec, pinned=False))


def test_an_exported_program_for_one_example_is_run_row_by_row(shelf):
    import torch

    buffer = io.BytesIO()
    torch.export.save(torch.export.export(linear_module(), (torch.zeros(1, 1, 4, 4),)), buffer)
    x = np.random.default_rng(0).normal(size=(5, 1, 4, 4)).astype(np.float32)
    member = load(shelf.put("a.pt2", buffer.getvalue(), pinned=True))
    assert member.predict(x) == pytest.approx(LinearModel()(x), abs=1e-5)
