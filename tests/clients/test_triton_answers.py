"""Triton's answers, replayed byte for byte from `recorded/`: what a RemoteTier makes of each of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from loopback import serving

from coe.cascade import Always, Batch, TierOverloaded, TierRejected, TierUnavailable, Vote
from coe.models.inputs import InputDecoder
from coe.protocol.remote import RemoteTier
from coe.protocol.service import SERVICE

HERE = Path(__file__).parent
FOLDER = HERE / "recorded"
ANSWERS = sorted(path.stem for path in FOLDER.glob("*.bin") if path.stem != "metadata")
REFUSED = {  # by the words that say why
    "classification": r"probabilities \[2, 3\], got probabilities \[2, 2\]",
    "empty_final": r"probabilities \[2, 3\], got none",
    "other_labels": r"probabilities \[2, 3\], got probabilities \[2, 4\]",
    "shape_of_one_row": r"probabilities \[2, 3\], got probabilities \[1, 3\]",
}


class Replay:
    """A gRPC server of recorded bytes: none of our messages are on its side. Keeps the requests that came."""

    def __init__(self, answer: bytes = b"", refusal: tuple[grpc.StatusCode, str] | None = None) -> None:
        self.answer = answer
        self.refusal = refusal
        self.requests: list[bytes] = []

    def handler(self) -> grpc.GenericRpcHandler:
        told = (FOLDER / "metadata.bin").read_bytes()
        methods = {
            "ModelInfer": grpc.unary_unary_rpc_method_handler(self._infer),
            "ModelMetadata": grpc.unary_unary_rpc_method_handler(lambda request, context: told),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def _infer(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.requests.append(request)
        if self.refusal is not None:
            context.abort(*self.refusal)
        return self.answer


@contextmanager
def tier_at(replay: Replay, decoder: InputDecoder) -> Iterator[RemoteTier]:
    with serving(replay.handler()) as address:
        prepare = decoder.input_spec.prepare
        tier = RemoteTier("triton", address, "digits", Always(), n_labels=3, deadline_s=10.0, prepare=prepare)
        try:
            yield tier
        finally:
            tier.close()


def asked(replay: Replay, decoder: InputDecoder, batch: Batch) -> Vote:
    with tier_at(replay, decoder) as tier:
        return tier.vote(batch, Always())


@pytest.fixture
def two(hundred: Batch) -> Batch:
    return hundred.take(np.arange(2))


@pytest.mark.parametrize("name", [name for name in ANSWERS if name not in REFUSED])
def test_an_answer_of_tritons_is_read(decoder: InputDecoder, two: Batch, name):
    vote = asked(Replay((FOLDER / f"{name}.bin").read_bytes()), decoder, two)
    assert vote.labels.tolist() == [1, 0]
    assert vote.score.tolist() == [0.5, 0.75]
    assert vote.share.tolist() == pytest.approx([2 / 3, 1] if name == "votes_in_columns" else [1, 1])
    assert not [key for key in vote.call.to_dict() if "sequence" in key or "triton" in key]


@pytest.mark.parametrize("name", REFUSED)
def test_an_answer_that_is_no_probabilities_of_the_task_is_a_rejection_that_says_so(
    decoder: InputDecoder, two: Batch, name
):
    with pytest.raises(TierRejected, match=f"its answer cannot be read: .*{REFUSED[name]}"):
        asked(Replay((FOLDER / f"{name}.bin").read_bytes()), decoder, two)


def test_there_are_answers_to_read():
    assert len(ANSWERS) >= 12
    assert set(REFUSED) < set(ANSWERS)


def test_its_metadata_is_understood(decoder: InputDecoder):
    with tier_at(Replay(), decoder) as tier:
        told = tier.metadata()
    assert (told.platform, list(told.versions)) == ("onnxruntime_onnx", ["1"])


@pytest.mark.parametrize(
    ("code", "words", "kind"),
    [
        (grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'digits' is not found", TierRejected),
        (
            grpc.StatusCode.INVALID_ARGUMENT,
            "[request id: <id_unknown>] unexpected shape for input 'input' for model 'digits'.",
            TierRejected,
        ),
        (
            grpc.StatusCode.UNAVAILABLE,
            "Request for unknown model: 'digits' has no available versions",
            TierUnavailable,
        ),
        (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size", TierUnavailable),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Exceeds maximum queue size", TierOverloaded),
        (grpc.StatusCode.INTERNAL, "onnx runtime error 2", TierUnavailable),
    ],
)
def test_what_triton_says_when_it_fails_reaches_the_caller(decoder: InputDecoder, two: Batch, code, words, kind):
    with pytest.raises(kind) as caught:
        asked(Replay(refusal=(code, words)), decoder, two)
    assert words in str(caught.value)


def test_what_it_is_sent_is_what_its_own_code_reads(decoder: InputDecoder, two: Batch, floats):
    service_pb2 = pytest.importorskip("tritonclient.grpc.service_pb2")
    replay = Replay((FOLDER / "fp32.bin").read_bytes())
    asked(replay, decoder, two)
    request = service_pb2.ModelInferRequest.FromString(replay.requests[0])
    assert (request.model_name, request.model_version) == ("digits", "")
    (tensor,) = request.inputs
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("input", "FP32", [2, 1, 28, 28])
    assert not tensor.HasField("contents")
    np.testing.assert_array_equal(np.frombuffer(request.raw_input_contents[0], "<f4"), floats[:2].ravel())


def test_the_recorded_bytes_are_what_tritonclients_code_writes():
    pytest.importorskip("tritonclient.grpc")
    command = [sys.executable, str(HERE / "record_triton.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stdout) == (0, "fresh\n"), done.stderr
