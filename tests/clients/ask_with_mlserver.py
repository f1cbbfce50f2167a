"""Run by MLServer's Python, not ours: asks a server with MLServer's own stubs, types, converters and codecs.

    python ask_with_mlserver.py HOST:PORT MODEL < examples.json > told.json

`examples.json` has `images` (base64) and `floats` (nested lists). What came is told as JSON; the test judges it.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
from mlserver import types
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.grpc import converters
from mlserver.grpc import dataplane_pb2 as pb
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub

BOUND_S = 90.0


def main(address: str, model: str) -> None:
    given = json.load(sys.stdin)
    images = [base64.b64decode(image) for image in given["images"]]
    floats = np.array(given["floats"], dtype=np.float32)
    with grpc.insecure_channel(address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        told = {"greeting": greeting(stub, model), "refusals": refusals(stub, model)}
        told |= {"answers": answers(stub, model, images, floats), "index": outcome(lambda: index(stub))}
    json.dump(told, sys.stdout)


def greeting(stub: Any, model: str) -> dict[str, Any]:
    server = stub.ServerMetadata(pb.ServerMetadataRequest(), timeout=BOUND_S)
    metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name=model), timeout=BOUND_S)
    return {
        "live": stub.ServerLive(pb.ServerLiveRequest(), timeout=BOUND_S).live,
        "ready": stub.ServerReady(pb.ServerReadyRequest(), timeout=BOUND_S).ready,
        "model_ready": stub.ModelReady(pb.ModelReadyRequest(name=model), timeout=BOUND_S).ready,
        "other_ready": stub.ModelReady(pb.ModelReadyRequest(name="nonsense"), timeout=BOUND_S).ready,
        "server": converters.ServerMetadataResponseConverter.to_types(server).model_dump(),
        "model": converters.ModelMetadataResponseConverter.to_types(metadata).model_dump(mode="json"),
    }


def answers(stub: Any, model: str, images: list[bytes], floats: np.ndarray) -> dict[str, Any]:
    """The answers to the same examples, as files and as numbers, in raw contents and in typed ones."""
    as_files = types.RequestInput(name="input", shape=[len(images), 1], datatype="BYTES", data=images)
    as_numbers = NumpyCodec.encode_input("input", floats)
    halves = NumpyCodec.encode_input("input", floats.astype(np.float16))
    return {
        "files, raw": infer(stub, model, as_files, use_raw=True),
        "files, typed": infer(stub, model, as_files, use_raw=False),
        "numbers, raw": infer(stub, model, as_numbers, use_raw=True),
        "numbers, typed": infer(stub, model, as_numbers, use_raw=False),
        "halves, raw": infer(stub, model, halves, use_raw=True),
        "chosen": infer(stub, model, as_files, use_raw=True, outputs=["score", "label_name"]),
    }


def infer(stub: Any, model: str, tensor: Any, *, use_raw: bool, outputs: list[str] | None = None) -> dict[str, Any]:
    wanted = None if outputs is None else [types.RequestOutput(name=name) for name in outputs]
    request = types.InferenceRequest(id="from mlserver", inputs=[tensor.model_copy()], outputs=wanted)
    message = converters.ModelInferRequestConverter.from_types(request, model_name=model, use_raw=use_raw)
    answer = stub.ModelInfer(message, timeout=BOUND_S)
    response = converters.ModelInferResponseConverter.to_types(answer)
    columns = {}
    for output in response.outputs:
        if output.datatype == "BYTES":
            columns[output.name] = StringCodec.decode_output(output)
        else:
            columns[output.name] = np.nan_to_num(NumpyCodec.decode_output(output), nan=-1).tolist()
    return {"id": response.id, "model": response.model_name, "version": response.model_version, "columns": columns}


def index(stub: Any) -> list[list[str]]:
    models = stub.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=BOUND_S).models
    return [[model.name, model.version, model.state] for model in models]


def refusals(stub: Any, model: str) -> dict[str, Any]:
    one = np.zeros((1, 1, 28, 28), np.float32)

    def ask(name: str, values: np.ndarray, version: str = "") -> Callable[[], Any]:
        request = types.InferenceRequest(inputs=[NumpyCodec.encode_input("input", values)])
        message = converters.ModelInferRequestConverter.from_types(request, name, version, use_raw=True)
        return lambda: stub.ModelInfer(message, timeout=BOUND_S).model_name

    return {
        "another model": outcome(ask("nonsense", one)),
        "another version": outcome(ask(model, one, "7")),
        "another shape": outcome(ask(model, one[..., :27])),
        "another datatype": outcome(ask(model, one.astype(np.int32))),
    }


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except grpc.RpcError as error:
        return [error.code().name, error.details()]


if __name__ == "__main__":
    main(*sys.argv[1:])
