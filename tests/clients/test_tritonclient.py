"""NVIDIA's `tritonclient`, sync and asyncio, against a real `coe-cloud`: every call it has of the protocol."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from programs import Cloud, closed_port

pytest.importorskip("tritonclient.grpc", reason="needs tritonclient: pip install 'tritonclient[grpc]'")

import ml_dtypes  # tritonclient's own need
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from coe import __version__
from coe.cascade import Batch, Decisions
from coe.config.manifest import Task
from coe.protocol import inference_pb2 as pb

USUAL = ["label", "vote", "score", "exit_tier", "members", "tier_votes"]


class Caller:
    """One of the two clients: `call("infer", ...)` is `client.infer(...)`, awaited where it has to be."""

    def __init__(self, kind: str, port: int) -> None:
        self.url = f"127.0.0.1:{port}"
        self._runner = asyncio.Runner() if kind == "asyncio" else None
        self.client: Any = triton.InferenceServerClient(self.url) if self._runner is None else self._run(self._open())

    async def _open(self) -> Any:
        return triton_aio.InferenceServerClient(self.url)

    def _run(self, coroutine: Any) -> Any:
        assert self._runner is not None
        return self._runner.run(coroutine)

    def __call__(self, method: str, *arguments: Any, **named: Any) -> Any:
        result = getattr(self.client, method)(*arguments, **named)
        return result if self._runner is None else self._run(result)

    def refusal(self, method: str, *arguments: Any, **named: Any) -> tuple[str, str]:
        """Status and message that the client shows of a call that fails."""
        with pytest.raises(InferenceServerException) as caught:
            self(method, *arguments, **named)
        return caught.value.status(), caught.value.message()

    def close(self) -> None:
        self("close")
        if self._runner is not None:
            self._runner.close()


@pytest.fixture(params=["sync", "asyncio"])
def call(request: pytest.FixtureRequest, server: Cloud) -> Iterator[Caller]:
    caller = Caller(request.param, server.port)
    yield caller
    caller.close()


def given(values: np.ndarray, datatype: str, name: str = "input") -> list[triton.InferInput]:
    tensor = triton.InferInput(name, list(values.shape), datatype)
    return [tensor.set_data_from_numpy(values)]


# Who is there


def test_it_is_live_and_ready_and_so_are_its_models(call):
    assert call("is_server_live") is True
    assert call("is_server_ready") is True
    for model in ("digits", "digits-medium", "digits-best"):
        assert call("is_model_ready", model) is True


def test_a_model_that_is_not_there_is_not_ready(call):
    assert call("is_model_ready", "nonsense") is False


def test_a_model_is_ready_in_its_own_version_alone(call, task: Task):
    assert call("is_model_ready", "digits", task.fingerprint) is True
    assert call("is_model_ready", "digits", "7") is False


def test_the_server_says_who_it_is(call):
    told = call("get_server_metadata")
    assert (told.name, told.version) == ("coe-cloud", __version__)
    assert not {"classification", "sequence", "system_shared_memory"} & set(told.extensions)  # not offered


def test_a_model_says_what_goes_in_and_what_comes_out(call, task: Task):
    told = call("get_model_metadata", "digits", as_json=True)
    assert (told["name"], told["versions"], told["platform"]) == ("digits", [task.fingerprint], "coe")
    assert told["inputs"] == [{"name": "input", "datatype": "BYTES", "shape": ["-1"]}]
    outputs = {output["name"]: (output["datatype"], output["shape"]) for output in told["outputs"]}
    assert outputs["label"] == ("INT32", ["-1"])
    assert outputs["tier_votes"] == ("FP32", ["-1", "2"])
    assert call("get_model_metadata", "digits", task.fingerprint).name == "digits"


# Deciding


def test_a_hundred_images_are_decided_as_they_are_with_no_wire_in_between(call, pngs, at_home: Decisions, task: Task):
    result = call("infer", "digits", given(pngs, "BYTES"), request_id="frame 7/a")
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("frame 7/a", "digits", task.fingerprint)
    assert [output.name for output in response.outputs] == USUAL
    np.testing.assert_array_equal(result.as_numpy("label"), at_home.labels)
    np.testing.assert_array_equal(result.as_numpy("exit_tier"), at_home.exit_tier)
    np.testing.assert_array_equal(result.as_numpy("tier_votes")[:, 0], at_home.tier_votes[:, 0])
    np.testing.assert_allclose(result.as_numpy("score"), at_home.score, rtol=1e-5)
    assert response.parameters["server_s"].double_param > 0


FORMS = {
    "BYTES": lambda batch, floats: batch.captured,
    "BYTES of two dimensions": lambda batch, floats: batch.captured[:, None],
    "UINT8": lambda batch, floats: batch.x,
    "FP16": lambda batch, floats: floats.astype(np.float16),
    "FP32": lambda batch, floats: floats,
    "FP64": lambda batch, floats: floats.astype(np.float64),
    "BF16": lambda batch, floats: floats.astype(ml_dtypes.bfloat16),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_example_is_read(call, hundred: Batch, floats, at_home: Decisions, form):
    values = FORMS[form](hundred, floats)
    labels = call("infer", "digits", given(values, form.split()[0])).as_numpy("label")
    same = (labels == at_home.labels).mean()
    assert same == 1 if form not in ("FP16", "BF16") else same >= 0.99  # a pixel has three digits there, or two


def test_only_the_outputs_asked_for_come_and_in_that_order(call, pngs, at_home: Decisions):
    wanted = [triton.InferRequestedOutput(name) for name in ("label_name", "score")]
    result = call("infer", "digits", given(pngs[:3], "BYTES"), outputs=wanted)
    assert [output.name for output in result.get_response().outputs] == ["label_name", "score"]
    assert result.as_numpy("label_name").tolist() == [str(label).encode() for label in at_home.labels[:3]]
    assert result.as_numpy("score").dtype == np.float32
    assert result.as_numpy("label") is None


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_a_compressed_request_is_read(call, pngs, at_home: Decisions, algorithm):
    result = call("infer", "digits", given(pngs[:9], "BYTES"), compression_algorithm=algorithm)
    np.testing.assert_array_equal(result.as_numpy("label"), at_home.labels[:9])


def test_parameters_it_does_not_know_are_ignored(call, pngs, at_home: Decisions):
    more = {"camera": "north", "gain": 0.5, "night": False, "frame": 12}
    result = call(
        "infer", "digits", given(pngs[:1], "BYTES"), priority=1, timeout=10**6, sequence_id=5, parameters=more
    )
    assert result.as_numpy("label").tolist() == at_home.labels[:1].tolist()


def test_headers_are_no_obstacle(call, pngs):
    assert call("infer", "digits", given(pngs[:1], "BYTES"), headers={"x-device": "7"}).as_numpy("label").shape == (1,)


def test_callbacks_get_their_own_answers(server: Cloud, pngs, at_home: Decisions):
    """The sync client's way to have many calls under way."""
    labels: dict[int, Any] = {}
    all_there = threading.Event()

    def keep(row: int, result: Any, error: Any) -> None:
        labels[row] = error or int(result.as_numpy("label")[0])
        if len(labels) == 32:
            all_there.set()

    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        for row in range(32):
            one = given(pngs[row : row + 1], "BYTES")
            client.async_infer("digits", one, lambda result, error, row=row: keep(row, result, error))
        assert all_there.wait(30)
    assert labels == dict(enumerate(at_home.labels[:32].tolist()))


def test_tasks_get_their_own_answers(server: Cloud, pngs, at_home: Decisions):
    async def ask() -> list[int]:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            calls = [client.infer("digits", given(pngs[row : row + 1], "BYTES")) for row in range(32)]
            return [int(result.as_numpy("label")[0]) for result in await asyncio.gather(*calls)]

    assert asyncio.run(ask()) == at_home.labels[:32].tolist()


# What goes wrong, as the client shows it


def test_errors_have_the_status_and_the_words_that_help(call, pngs, floats):
    images, three = given(pngs[:1], "BYTES"), given(floats[:1].repeat(3, axis=1), "FP32")
    nothing = np.empty(0, object)
    not_a_digit = np.array([b"\x89PNG no"], object)
    invalid = "StatusCode.INVALID_ARGUMENT"
    outputs = [triton.InferRequestedOutput("logits")]
    cases: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
        ("StatusCode.NOT_FOUND", ("nonsense", images), {}, "expected one of digits, digits-medium, digits-best"),
        ("StatusCode.NOT_FOUND", ("digits", images), {"model_version": "1"}, "got '1' (the version is the task's"),
        (invalid, ("digits", three), {}, "expected shape [1, 28, 28], got [3, 28, 28]"),
        (invalid, ("digits", given(np.zeros((1, 1, 28, 28), np.int64), "INT64")), {}, "got int64"),
        (invalid, ("digits", given(nothing, "BYTES")), {}, "at least one row"),
        (invalid, ("digits", given(not_a_digit, "BYTES")), {}, "example row 0"),
        (invalid, ("digits", images + given(pngs[:1], "BYTES", "more")), {}, "expected one tensor, got 2"),
        (invalid, ("digits", images), {"outputs": outputs}, "got 'logits'"),
    ]
    for status, arguments, named, words in cases:
        told = call.refusal("infer", *arguments, **named)
        assert told[0] == status, told
        assert words in told[1]
    assert call.refusal("get_model_metadata", "nonsense")[0] == "StatusCode.NOT_FOUND"


def test_an_input_in_shared_memory_is_refused_by_name(call):
    far = triton.InferInput("input", [1, 28, 28, 1], "UINT8")
    far.set_shared_memory("region", 784)
    status, message = call.refusal("infer", "digits", [far])
    assert status == "StatusCode.INVALID_ARGUMENT"
    assert "shared memory" in message


def test_calls_that_are_tritons_own_are_unimplemented(call):
    for method in ("get_inference_statistics", "get_trace_settings", "get_system_shared_memory_status"):
        assert call.refusal(method)[0] == "StatusCode.UNIMPLEMENTED"


def test_a_deadline_that_cannot_be_met_is_told_as_such(call, pngs):
    images = given(pngs, "BYTES")
    assert call.refusal("infer", "digits", images, client_timeout=1e-4)[0] == "StatusCode.DEADLINE_EXCEEDED"
    assert call("infer", "digits", images, client_timeout=30.0).as_numpy("label").shape == (100,)
    assert call("is_server_ready", client_timeout=30.0) is True


@pytest.mark.parametrize("kind", ["sync", "asyncio"])
def test_a_server_that_is_not_there_is_unavailable(kind, pngs):
    call = Caller(kind, closed_port())
    try:
        assert call.refusal("infer", "digits", given(pngs[:1], "BYTES"))[0] == "StatusCode.UNAVAILABLE"
    finally:
        call.close()


# Side by side


def test_both_generated_codes_live_in_one_process_and_read_each_others_bytes():
    theirs = service_pb2.ModelInferRequest(model_name="m", model_version="1", id="i", raw_input_contents=[b"ab"])
    theirs.inputs.add(name="x", datatype="UINT8", shape=[2]).parameters["p"].uint64_param = 2**63
    theirs.outputs.add(name="y").parameters["classification"].int64_param = 1
    theirs.parameters["d"].double_param = 0.5
    ours = pb.ModelInferRequest.FromString(theirs.SerializeToString(deterministic=True))
    assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True)
    assert str(ours) == str(theirs)  # so nothing of it is unknown


def test_every_message_of_ours_has_the_fields_of_tritons():
    def fields(message: Any) -> dict[str, tuple[Any, ...]]:
        return {field.name: (field.number, field.type, _inner(field)) for field in message.fields}

    def _inner(field: Any) -> str | None:
        return field.message_type.full_name if field.message_type else None

    for name, ours in pb.DESCRIPTOR.message_types_by_name.items():
        theirs = service_pb2.DESCRIPTOR.message_types_by_name[name]
        assert fields(ours) == fields(theirs)
        for inner, nested in ours.nested_types_by_name.items():
            assert fields(nested) == fields(theirs.nested_types_by_name[inner])
