"""Other people's servers as tiers: what is asked of them, and the single vote in what they answer."""

from __future__ import annotations

import numpy as np
import pytest
from loopback import serving
from test_remote import DIGITS, RULE, answer, offering, remote, scripted

from coe.cascade.errors import TierRejected
from coe.protocol import inference_pb2 as pb
from coe.protocol.foreign import choose_output
from coe.protocol.remote import read_answer

NAMES = ("good", "scratched", "bent")
NUMERALS = ("3", "1", "2")


def text(*words: str) -> np.ndarray:
    return np.array([word.encode() for word in words], dtype=object)


@pytest.mark.parametrize(
    ("array", "names", "labels"),
    [
        (np.array([2, 0], np.int64), NAMES, [2, 0]),
        (np.array([[2], [0]], np.int32), NAMES, [2, 0]),
        (np.array([2, 0], np.int64), (), [2, 0]),
        (np.array([2.0, 0.0], np.float32), NAMES, [2, 0]),  # as XGBoost's multi:softmax
        (np.array([1, 3], np.int64), NUMERALS, [1, 0]),  # classes that are names, as scikit-learn's of such labels
        (np.array([1.0, 3.0], np.float32), NUMERALS, [1, 0]),
        (text("bent", "good"), NAMES, [2, 0]),
        (text("bent", "good").reshape(2, 1), NAMES, [2, 0]),
    ],
)
@pytest.mark.parametrize("output", ["predict", "label"])
def test_classes_are_a_single_vote_without_a_score(array, names, labels, output):
    vote = read_answer(answer(**{output: array}), 2, 3, labels=names)
    assert vote.labels.tolist() == labels
    assert (vote.count.tolist(), vote.asked.tolist(), vote.n_members) == ([1, 1], [1, 1], 1)
    assert np.isnan(vote.score).all()


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_one_probability_of_two_labels_is_that_of_the_second(shape):
    vote = read_answer(answer(p=np.array([0.25, 0.75], np.float32).reshape(shape)), 2, 2)
    assert (vote.labels.tolist(), vote.score.tolist()) == ([0, 1], [0.75, 0.75])


def test_probabilities_with_trailing_ones():
    vote = read_answer(answer(p=np.eye(3, dtype=np.float32)[:2].reshape(2, 3, 1, 1)), 2, 3)
    assert vote.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("columns", "names", "words"),
    [
        ({"a": text("torn", "good")}, NAMES, "output a: expected names of labels, got 'torn'"),
        ({"a": text("bent", "good")}, (), "output a: expected numbers of labels, got names"),
        ({"a": np.array([3, 0])}, NAMES, "output a: expected labels 0 to 2, got 0 to 3"),
        ({"a": np.array([0.5, 0])}, NAMES, "output a: expected labels 0 to 2"),
        ({"a": np.array([np.nan, 0])}, NAMES, "output a: expected labels 0 to 2"),
        ({"a": np.array([1, 0]), "b": np.array([1, 0])}, NAMES, r"got a \[2\], b \[2\] \(name one: `output:`\)"),
        ({"a": np.zeros((2, 2), np.int64)}, NAMES, r"or probabilities \[2, 3\], got a \[2, 2\]"),
    ],
)
def test_what_is_no_vote_is_said(columns, names, words):
    with pytest.raises(ValueError, match=words):
        read_answer(answer(**columns), 2, 3, labels=names)


def test_the_output_that_is_named_counts():
    columns = {"a": np.eye(3, dtype=np.float32)[[0, 0]], "b": np.eye(3, dtype=np.float32)[[2, 1]]}
    assert read_answer(answer(**columns), 2, 3, output="b").labels.tolist() == [2, 1]
    with pytest.raises(ValueError, match="expected an output \"c\", got 'a', 'b'"):
        read_answer(answer(**columns), 2, 3, output="c")


@pytest.mark.parametrize(
    ("outputs", "chosen"),
    [
        ([("embedding", "FP32", [-1, 64]), ("probabilities", "FP32", [-1, 3])], "probabilities"),
        ([("classes", "INT64", [-1]), ("scores", "FP32", [-1, -1])], "scores"),
        ([("classes", "BYTES", [-1, 1]), ("embedding", "FP32", [-1, 64])], "classes"),
        ([("logits", "FP32", [-1, 3]), ("probabilities", "FP32", [-1, 3])], ""),  # both come, and are told apart
        ([("embedding", "FP32", [-1, 64])], ""),
        ([], ""),
    ],
)
def test_a_request_names_the_output_that_it_wants(outputs, chosen):
    told = offering("FP32", [-1, 1, 28, 28])
    for name, datatype, shape in outputs:
        told.outputs.add(name=name, datatype=datatype, shape=shape)
    assert choose_output(told, 3) == chosen
    seen: list[list[str]] = []

    def infer(request: bytes, context: object) -> bytes:
        seen.append([output.name for output in pb.ModelInferRequest.FromString(request).outputs])
        return answer(**{seen[-1][0] if seen[-1] else "p": np.eye(3, dtype=np.float32)[:1]})

    with serving(scripted(infer, told)) as address:
        for wanted in ("", "mine"):
            with remote(address, prepare=DIGITS.input_spec.prepare, output=wanted) as tier:
                tier.vote(DIGITS.blank(), RULE)
    assert seen == [[chosen] if chosen else [], ["mine"]]


def test_metadata_without_inputs_says_what_to_add_to_which_file():
    told = pb.ModelMetadataResponse(name="model", platform="x")
    with serving(scripted(lambda request, context: b"", told)) as address, remote(address) as tier:
        with pytest.raises(TierRejected, match=r'add "inputs": \[{"name": "x", .*model-settings.json \(MLServer\)'):
            tier.vote(DIGITS.blank(), RULE)


def test_an_answer_in_words():
    told = offering("BYTES", [-1])
    for columns, words in (
        ({"p": np.array([[0.25, 0.5, 0.25]], np.float32)}, "ms: scratched, score 0.50"),
        ({"label": text("bent")}, "ms: bent, its score not known"),
    ):
        with serving(scripted(lambda *_, c=columns: answer(**c), told)) as address:
            with remote(address, labels=NAMES) as tier:
                said = tier.describe_answer(DIGITS.blank())
        assert said.startswith("answers a blank example in ")
        assert said.endswith(words)
