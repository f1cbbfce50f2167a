"""A server with ModelStreamInfer, as coe-cloud is to have it: requests side by side, answers as they are ready."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
from loopback import scripted

from coe.protocol import inference_pb2 as pb
from coe.protocol.channel import RETRY_AFTER, STATUS
from coe.protocol.codec import set_parameter
from coe.protocol.service import SERVICE

Answers = Callable[[pb.ModelInferRequest], Awaitable[pb.ModelInferResponse]]
Infer = Callable[[bytes, grpc.ServicerContext], bytes]


class Refused(Exception):
    """What a request on a stream is refused with."""

    def __init__(self, code: grpc.StatusCode, text: str, retry_after_ms: int | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.retry_after_ms = retry_after_ms


class Streaming(grpc.GenericRpcHandler):
    """Answers requests on streams with `answers`, and those that come by themselves with `infer`.

    `opened` holds the metadata of each stream so far.
    """

    def __init__(self, answers: Answers, infer: Infer = lambda request, context: b"") -> None:
        self.answers = answers
        self.opened: list[dict[str, str]] = []
        self._unary = scripted(infer)
        self._stream = grpc.stream_stream_rpc_method_handler(self._serve)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return self._stream if details.method == f"/{SERVICE}/ModelStreamInfer" else self._unary.service(details)

    async def _serve(self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
        self.opened.append(dict(context.invocation_metadata() or ()))
        turn = asyncio.Lock()  # gRPC takes one message at a time
        async with asyncio.TaskGroup() as tasks:
            async for data in requests:
                tasks.create_task(self._answer(pb.ModelInferRequest.FromString(data), context, turn))

    async def _answer(
        self, request: pb.ModelInferRequest, context: grpc.aio.ServicerContext, turn: asyncio.Lock
    ) -> None:
        answer = pb.ModelStreamInferResponse()
        try:
            answer.infer_response.CopyFrom(await self.answers(request))
        except Refused as error:
            answer.error_message = str(error)
            set_parameter(answer.infer_response.parameters, STATUS, error.code.value[0])
            if error.retry_after_ms is not None:
                set_parameter(answer.infer_response.parameters, RETRY_AFTER, error.retry_after_ms)
        answer.infer_response.id = request.id
        async with turn:
            await context.write(answer.SerializeToString())
