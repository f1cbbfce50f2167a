"""The protocol's names and numbers, the generated code's private pool and freshness, the bytes on the wire."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from google.protobuf.internal import api_implementation

from coe.protocol import codec
from coe.protocol import inference_pb2 as pb

ROOT = pathlib.Path(__file__).parents[2]

# Published numbers. A change here is a break with every other server and client.
FIELDS = {
    "ServerLiveRequest": {},
    "ServerLiveResponse": {"live": 1},
    "ServerReadyRequest": {},
    "ServerReadyResponse": {"ready": 1},
    "ModelReadyRequest": {"name": 1, "version": 2},
    "ModelReadyResponse": {"ready": 1},
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {"name": 1, "version": 2, "extensions": 3},
    "ModelMetadataRequest": {"name": 1, "version": 2},
    "ModelMetadataResponse": {"name": 1, "versions": 2, "platform": 3, "inputs": 4, "outputs": 5},
    "ModelMetadataResponse.TensorMetadata": {"name": 1, "datatype": 2, "shape": 3},
    "ModelInferRequest": {
        "model_name": 1,
        "model_version": 2,
        "id": 3,
        "parameters": 4,
        "inputs": 5,
        "outputs": 6,
        "raw_input_contents": 7,
    },
    "ModelInferRequest.InferInputTensor": {
        "name": 1,
        "datatype": 2,
        "shape": 3,
        "parameters": 4,
        "contents": 5,
    },
    "ModelInferRequest.InferRequestedOutputTensor": {"name": 1, "parameters": 2},
    "ModelInferResponse": {
        "model_name": 1,
        "model_version": 2,
        "id": 3,
        "parameters": 4,
        "outputs": 5,
        "raw_output_contents": 6,
    },
    "ModelInferResponse.InferOutputTensor": {
        "name": 1,
        "datatype": 2,
        "shape": 3,
        "parameters": 4,
        "contents": 5,
    },
    "ModelStreamInferResponse": {"error_message": 1, "infer_response": 2},
    "InferParameter": {
        "bool_param": 1,
        "int64_param": 2,
        "string_param": 3,
        "double_param": 4,
        "uint64_param": 5,
    },
    "InferTensorContents": {
        "bool_contents": 1,
        "int_contents": 2,
        "int64_contents": 3,
        "uint_contents": 4,
        "uint64_contents": 5,
        "fp32_contents": 6,
        "fp64_contents": 7,
        "bytes_contents": 8,
    },
    "ModelRepositoryParameter": {"bool_param": 1, "int64_param": 2, "string_param": 3, "bytes_param": 4},
    "RepositoryIndexRequest": {"repository_name": 1, "ready": 2},
    "RepositoryIndexResponse": {"models": 1},
    "RepositoryIndexResponse.ModelIndex": {"name": 1, "version": 2, "state": 3, "reason": 4},
    "RepositoryModelLoadRequest": {"repository_name": 1, "model_name": 2, "parameters": 3},
    "RepositoryModelLoadResponse": {},
    "RepositoryModelUnloadRequest": {"repository_name": 1, "model_name": 2, "parameters": 3},
    "RepositoryModelUnloadResponse": {},
}
METHODS = [
    "ServerLive",
    "ServerReady",
    "ModelReady",
    "ServerMetadata",
    "ModelMetadata",
    "ModelInfer",
    "ModelStreamInfer",
    "RepositoryIndex",
    "RepositoryModelLoad",
    "RepositoryModelUnload",
]


def declared(messages, prefix=""):
    """Every message below, with the maps' own entries left out."""
    for message in messages:
        if not message.GetOptions().map_entry:
            name = prefix + message.name
            yield name, message
            yield from declared(message.nested_types, f"{name}.")


def test_every_field_has_its_published_number():
    found = dict(declared(pb.DESCRIPTOR.message_types_by_name.values()))
    assert {name: {f.name: f.number for f in message.fields} for name, message in found.items()} == FIELDS
    assert all(message.full_name == f"inference.{name}" for name, message in found.items())


def test_the_service_has_its_published_methods():
    assert pb.DESCRIPTOR.package == "inference"
    service = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert service.full_name == "inference.GRPCInferenceService"
    assert [method.name for method in service.methods] == METHODS
    for method in service.methods:
        is_stream = method.name == "ModelStreamInfer"
        asks = "ModelInfer" if is_stream else method.name  # the same requests, many on one call
        assert method.input_type.full_name == f"inference.{asks}Request"
        assert method.output_type.full_name == f"inference.{method.name}Response"
        assert method.client_streaming is method.server_streaming is is_stream


def test_a_request_has_the_bytes_the_protocol_says():
    request = pb.ModelInferRequest(model_name="m")
    codec.add_input(request, "x", np.array([[1, 2]], np.uint16))
    assert (
        request.SerializeToString()
        == (
            b"\x0a\x01m"  # model_name
            b"\x2a\x0f" + b"\x0a\x01x" + b"\x12\x06UINT16" + b"\x1a\x02\x01\x02"  # inputs
            b"\x3a\x04\x01\x00\x02\x00"  # raw_input_contents
        )
    )


OURS = "from coe.protocol import inference_pb2 as ours"
THEIRS = """
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
file = descriptor_pb2.FileDescriptorProto(name="grpc_service.proto", package="inference", syntax="proto3")
for name in ("ModelInferRequest", "ServerLiveRequest"):
    message = file.message_type.add(name=name)
    message.field.add(name="other", number=1, type=9, label=1)
file.service.add(name="GRPCInferenceService")
pool = descriptor_pool.Default()
pool.AddSerializedFile(file.SerializeToString())
theirs = message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelInferRequest"))
"""
BOTH = """
assert theirs is not ours.ModelInferRequest
assert theirs(other="a").SerializeToString() == ours.ModelInferRequest(model_name="a").SerializeToString()
assert [field.name for field in theirs.DESCRIPTOR.fields] == ["other"]
"""


upb_only = pytest.mark.skipif(
    api_implementation.Type() == "python", reason="protobuf in pure Python does not keep pools apart"
)


@upb_only
@pytest.mark.parametrize("parts", [(OURS, THEIRS), (THEIRS, OURS)], ids=["ours first", "theirs first"])
def test_another_package_may_register_the_same_names(parts):
    python("\n".join([*parts, BOTH]))


@upb_only
def test_nothing_of_ours_is_in_the_default_pool():
    out = python(
        OURS + "\nfrom google.protobuf import descriptor_pool\n"
        "try: descriptor_pool.Default().FindMessageTypeByName('inference.ModelInferRequest')\n"
        "except KeyError: print('absent')\n"
    )
    assert out.strip() == "absent"


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def proto_script(*arguments: str, root: pathlib.Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run .ci/proto with this interpreter, or the one PYTHON names; skip where it cannot run."""
    if not (root / ".ci" / "proto").exists():
        pytest.skip("not a checkout")
    env = os.environ | {"PYTHON": os.environ.get("PYTHON", sys.executable)}
    done = subprocess.run([root / ".ci" / "proto", *arguments], env=env, capture_output=True, text=True, check=False)
    if done.returncode == 2:
        pytest.skip(done.stderr.strip())
    return done


def test_the_generated_code_is_fresh():
    done = proto_script("--check")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not (ROOT / ".ci").is_dir(), reason="not a checkout")
def test_stale_generated_code_is_noticed(tmp_path):
    for name in (".ci/proto", "setup.cfg", "proto/inference.proto", "coe/protocol/inference_pb2.pyi"):
        copy = tmp_path / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((ROOT / name).read_bytes())
    (tmp_path / ".ci/proto").chmod(0o755)
    (tmp_path / "coe/protocol/inference_pb2.py").write_text("# of yesterday\n")
    done = proto_script("--check", root=tmp_path)
    assert done.returncode == 1
    assert "run .ci/proto and commit the result" in done.stderr
    assert proto_script(root=tmp_path).returncode == 0
    fresh = (tmp_path / "coe/protocol/inference_pb2.py").read_bytes()
    assert fresh == (ROOT / "coe/protocol/inference_pb2.py").read_bytes()


# The project's promise: at most 64 bytes plus 5% on top of the payload.


@pytest.mark.parametrize("payload", [300, 3_000, 150_000])
def test_a_request_is_little_larger_than_its_payload(payload):
    image = np.empty(1, object)
    image[0] = bytes(payload)
    request = pb.ModelInferRequest(model_name="digits")
    codec.add_input(request, "image", image)
    assert request.ByteSize() - payload <= 64 + 0.05 * payload
    assert request.ByteSize() - payload <= 40  # as built: names, shape and lengths


def test_a_reply_for_one_example_is_about_a_hundred_bytes():
    response = pb.ModelInferResponse(model_name="digits")
    codec.add_output(response, "label", np.array([7], np.int32))
    codec.add_output(response, "vote", np.array([1], np.float32))
    codec.add_output(response, "score", np.array([0.93], np.float32))
    codec.add_output(response, "exit_tier", np.array([2], np.int32))
    assert response.ByteSize() <= 110
