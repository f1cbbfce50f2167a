"""A real gRPC server inside the test's own process, on a free port."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np

from coe.cascade import Batch, Cascade, Decisions
from coe.cascade.types import Array
from coe.models.input_spec import InputSpec
from coe.models.inputs import InputDecoder
from coe.protocol import inference_pb2 as pb
from coe.protocol.codec import add_input
from coe.protocol.core import Decided, InferenceCore, ServedModel
from coe.protocol.service import MAX_MESSAGE_BYTES, PLATFORM, SERVICE, server_options
from coe.protocol.servicer import InferenceServicer

VERSION = "fingerprint1"
Infer = Callable[[bytes, grpc.ServicerContext], bytes]


@contextmanager
def serving(
    handler: grpc.GenericRpcHandler, max_message_bytes: int = MAX_MESSAGE_BYTES, address: str = "127.0.0.1:0"
) -> Iterator[str]:
    """The address where `handler` answers while the block runs."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="loopback")
    thread.start()

    async def start(pool: ThreadPoolExecutor) -> tuple[grpc.aio.Server, int]:
        server = grpc.aio.server(pool, options=server_options(max_message_bytes))  # the pool: for plain functions
        server.add_generic_rpc_handlers((handler,))
        port = server.add_insecure_port(address)
        await server.start()
        return server, port

    with ThreadPoolExecutor(16) as pool:
        try:
            server, port = asyncio.run_coroutine_threadsafe(start(pool), loop).result(10)
            try:
                yield f"127.0.0.1:{port}"
            finally:
                asyncio.run_coroutine_threadsafe(server.stop(0), loop).result(10)
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(10)
            loop.close()


def servicer(*models: ServedModel, max_rows: int = 1024, max_bytes: int = 2**24) -> InferenceServicer:
    plane = InferenceCore({model.name: model for model in models}, max_rows=max_rows, max_bytes=max_bytes)
    plane.accepts = True
    return InferenceServicer(plane)


def served(
    name: str,
    answers: Cascade | Callable[[Batch], Decisions],
    n_labels: int,
    input_spec: InputSpec | None = None,
) -> ServedModel:
    """A cascade, or what stands in for one, over examples that are row numbers of tables."""
    input_spec = input_spec or InputSpec("tensor", (1,), dtype="int64")
    answer, n_tiers = (answers.decide, answers.n_tiers) if isinstance(answers, Cascade) else (answers, 1)

    async def decide(batch: Batch) -> Decided:
        return Decided(await asyncio.to_thread(answer, batch))

    labels = tuple(f"label {number}" for number in range(n_labels))
    return ServedModel(
        name, VERSION, labels, ("FP32", (-1, *input_spec.shape)), InputDecoder(input_spec), decide, n_tiers
    )


def scripted(infer: Infer, metadata: pb.ModelMetadataResponse | None = None) -> grpc.GenericRpcHandler:
    """A server whose `infer` makes the answer's bytes from the request's; ours where no other metadata are given."""
    ours = pb.ModelMetadataResponse(name="model", platform=PLATFORM, versions=[VERSION])
    told = (metadata or ours).SerializeToString()
    methods = {
        "ModelInfer": grpc.unary_unary_rpc_method_handler(infer),
        "ModelMetadata": grpc.unary_unary_rpc_method_handler(lambda request, context: told),
    }
    return grpc.method_handlers_generic_handler(SERVICE, methods)


def request_of(model: str, x: Array, version: str = "", **fields: object) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, model_version=version, **fields)  # type: ignore[arg-type]
    add_input(request, "input", x)
    return request


def bytes_column(*elements: bytes) -> Array:
    column = np.empty(len(elements), dtype=object)
    column[:] = elements
    return column
