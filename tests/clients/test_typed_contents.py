"""Typed contents, which `tritonclient` never sends: messages of its generated code, put together by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from programs import Cloud

pytest.importorskip("tritonclient.grpc", reason="needs tritonclient: pip install 'tritonclient[grpc]'")

from tritonclient.grpc import service_pb2, service_pb2_grpc

from coe.cascade import Batch, Decisions

Ask = Callable[..., Any]


@pytest.fixture
def ask(server: Cloud) -> Iterator[Ask]:
    """Asks the whole cascade about one input, its contents in the field named."""
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

        def call(datatype: str, shape: list[int], outputs: tuple[str, ...] = (), **contents: Any) -> Any:
            request = service_pb2.ModelInferRequest(model_name="digits", id="typed")
            request.inputs.add(
                name="input",
                datatype=datatype,
                shape=shape,
                contents=service_pb2.InferTensorContents(**contents),
            )
            for name in outputs:
                request.outputs.add(name=name)
            return stub.ModelInfer(request, timeout=30)

        yield call


def column(response: Any, name: str, dtype: str) -> np.ndarray:
    """An output of an answer that is raw, as ours are whatever the request was."""
    at = [output.name for output in response.outputs].index(name)
    return np.frombuffer(response.raw_output_contents[at], dtype).reshape(response.outputs[at].shape)


FORMS: dict[str, tuple[str, Callable[[Batch, np.ndarray], Any]]] = {
    "BYTES": ("bytes_contents", lambda batch, floats: batch.captured),
    "UINT8": ("uint_contents", lambda batch, floats: batch.x),
    "FP32": ("fp32_contents", lambda batch, floats: floats),
    "FP64": ("fp64_contents", lambda batch, floats: floats),
}


@pytest.mark.parametrize("datatype", FORMS)
def test_typed_contents_are_decided_as_raw_ones_are(ask, hundred: Batch, floats, at_home: Decisions, datatype):
    field, of = FORMS[datatype]
    values = of(hundred, floats)[:40]
    response = ask(datatype, list(values.shape), **{field: values.ravel().tolist()})
    assert response.id == "typed"
    np.testing.assert_array_equal(column(response, "label", "<i4"), at_home.labels[:40])
    assert column(response, "tier_votes", "<f4").shape == (40, 2)


def test_the_answer_is_raw_and_texts_have_their_lengths_in_front(ask, pngs, at_home: Decisions):
    response = ask("BYTES", [2], ("label_name", "label"), bytes_contents=pngs[:2].tolist())
    assert [output.datatype for output in response.outputs] == ["BYTES", "INT32"]
    assert not any(output.HasField("contents") for output in response.outputs)
    assert response.raw_output_contents[0] == b"".join(
        b"\1\0\0\0" + str(label).encode() for label in at_home.labels[:2]
    )


@pytest.mark.parametrize(
    ("datatype", "contents", "words"),
    [
        ("FP16", {"fp32_contents": [0.0] * 784}, "FP16 has no typed form"),
        ("BF16", {"bytes_contents": [bytes(1568)]}, "BF16 has no typed form"),
        ("FP32", {"fp64_contents": [0.0] * 784}, "expected FP32 in fp32_contents, got fp64_contents"),
        ("FP32", {"fp32_contents": [0.0] * 783}, "expected 784 elements in fp32_contents, got 783"),
        ("UINT8", {"uint_contents": [256] * 784}, "expected UINT8 values, 0 to 255"),
    ],
)
def test_contents_that_do_not_fit_are_refused_in_words(ask, datatype, contents, words):
    with pytest.raises(grpc.RpcError) as caught:
        ask(datatype, [1, 28, 28, 1] if datatype == "UINT8" else [1, 1, 28, 28], **contents)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert words in caught.value.details()


def test_raw_and_typed_contents_at_once_are_refused(server: Cloud):
    request = service_pb2.ModelInferRequest(model_name="digits", raw_input_contents=[bytes(784)])
    pixels = service_pb2.InferTensorContents(uint_contents=[0] * 784)
    request.inputs.add(name="input", datatype="UINT8", shape=[1, 28, 28, 1], contents=pixels)
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel, pytest.raises(grpc.RpcError) as caught:
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=30)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "expected raw contents alone" in caught.value.details()
