"""The protocol's service: parse, infer, encode the answer. Asynchronous: one event loop serves every call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError

from coe import __version__
from coe.cascade.errors import TierOverloaded

from . import inference_pb2 as pb
from .channel import RETRY_AFTER, STATUS, TIMEOUT
from .codec import WireError, get_parameters, read_inputs, set_parameter
from .core import OUTPUTS, InferenceCore, Request, ResponseEncoder, row_shape
from .service import INPUT, MEMBER_VOTES, METHODS, PLATFORM, PUSHBACK, SERVICE, STREAM
from .status import NotOffered, to_status
from .trace_context import HEADERS

EXTENSIONS = ("model_repository", "binary_tensor_data")
MOST_ON_A_STREAM = 256  # requests of one stream under way at once; the others are not read yet


@dataclass(frozen=True)
class IndexEntry:
    """One model of the repository index; `state` is READY or UNAVAILABLE."""

    name: str
    version: str
    state: str
    reason: str


class RepositoryExtension(Protocol):
    """What the model repository extension calls."""

    def index(self) -> Sequence[IndexEntry]: ...

    async def load(self, name: str) -> None: ...

    async def unload(self, name: str) -> None: ...


class InferenceServicer:
    """The Open Inference Protocol over `plane`.

    Args:
        identify: who calls, by a call's context; raises Unauthenticated or NotAllowed. None: nobody is asked.
        repository: answers the model repository extension; None: it is not offered.
        sent: called with the number of bytes of each answer.
    """

    def __init__(
        self,
        plane: InferenceCore,
        *,
        identify: Callable[[Any], str] | None = None,
        repository: RepositoryExtension | None = None,
        sent: Callable[[int], None] = lambda n_bytes: None,
    ) -> None:
        self.sent = sent
        self.plane = plane
        self.identify = identify
        self.repository = repository
        self._forms = ResponseEncoder()
        self._readings: set[asyncio.Task[None]] = set()
        self._is_draining = False

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """To be added to a grpc.aio.Server."""
        methods = {
            name: grpc.unary_unary_rpc_method_handler(
                self._guarded(getattr(self, name), request_type), response_serializer=response_type.SerializeToString
            )
            for name, (request_type, response_type) in METHODS.items()
            if name != "ModelInfer" and hasattr(self, name)
        }
        methods["ModelInfer"] = grpc.unary_unary_rpc_method_handler(self._infer)
        methods[STREAM] = grpc.stream_stream_rpc_method_handler(self._stream)
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def end_streams(self) -> None:
        """No request of a stream is read any more; those that were are answered, and then each stream ends."""
        self._is_draining = True
        for reading in tuple(self._readings):
            reading.cancel()

    async def ServerLive(self, request: pb.ServerLiveRequest, caller: str) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, caller: str) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self.plane.is_ready())

    async def ModelReady(self, request: pb.ModelReadyRequest, caller: str) -> pb.ModelReadyResponse:
        served = self.plane.models.get(request.name)
        is_its = served is not None and request.version in ("", served.version)
        return pb.ModelReadyResponse(ready=is_its and self.plane.is_ready(request.name))

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, caller: str) -> pb.ServerMetadataResponse:
        extensions = EXTENSIONS if self.repository else EXTENSIONS[1:]
        return pb.ServerMetadataResponse(name="coe-cloud", version=__version__, extensions=extensions)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, caller: str) -> pb.ModelMetadataResponse:
        served = self.plane.find(request.name, request.version)
        response = pb.ModelMetadataResponse(name=served.name, versions=[served.version], platform=PLATFORM)
        datatype, shape = served.input
        response.inputs.add(name=INPUT, datatype=datatype, shape=shape)
        for name, (datatype, _) in OUTPUTS.items():
            response.outputs.add(name=name, datatype=datatype, shape=[-1, *row_shape(name, served)])
        return response

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, caller: str) -> pb.RepositoryIndexResponse:
        response = pb.RepositoryIndexResponse()
        for model in self._repository().index():
            if not request.ready or model.state == "READY":
                response.models.add(name=model.name, version=model.version, state=model.state, reason=model.reason)
        return response

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, caller: str
    ) -> pb.RepositoryModelLoadResponse:
        await self._repository().load(request.model_name)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, caller: str
    ) -> pb.RepositoryModelUnloadResponse:
        await self._repository().unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    async def _infer(self, data: bytes, context: Any) -> bytes:
        try:
            caller = "" if self.identify is None else self.identify(context)
            message = _parsed(data, pb.ModelInferRequest)
            metadata = (context.invocation_metadata() or ()) if self.plane.watchers else ()
            trace = {key: value for key, value in metadata if key in HEADERS}
            return await self._answer(message, len(data), context.time_remaining(), caller, trace)
        except Exception as error:  # noqa: BLE001 - the boundary
            return await _refuse(context, error)  # type: ignore[no-any-return]

    async def _stream(self, requests: AsyncIterator[bytes], context: Any) -> None:
        """Many requests on one call, side by side; each answer carries its request's id, and comes when it is ready.

        A request that is refused is answered with its reason, its status as a number, and the others go on.
        """
        places, turn = asyncio.Semaphore(MOST_ON_A_STREAM), asyncio.Lock()  # gRPC takes one message at a time

        async def answer(data: bytes) -> None:
            try:
                response = await self._answer_on_stream(data, context)
                async with turn:
                    await context.write(response)
            finally:
                places.release()

        async def read(tasks: asyncio.TaskGroup) -> None:
            async for data in requests:
                await places.acquire()
                tasks.create_task(answer(data))

        async with asyncio.TaskGroup() as tasks:  # ends once every request that was read has its answer
            reading = tasks.create_task(read(tasks))
            self._readings.add(reading)
            reading.add_done_callback(self._readings.discard)
            if self._is_draining:
                reading.cancel()

    async def _answer_on_stream(self, data: bytes, context: Any) -> bytes:
        """One answer on a stream. Who asks is checked each time: a token may be revoked while the stream lives."""
        name = ""
        try:
            message = _parsed(data, pb.ModelInferRequest)
            name = message.id
            caller = "" if self.identify is None else self.identify(context)
            sent = get_parameters(message.parameters)
            timeout_ms = sent.get(TIMEOUT)
            remaining_s = timeout_ms / 1000 if isinstance(timeout_ms, int) else None
            trace = {key: str(sent[key]) for key in HEADERS if key in sent}
            answer = await self._answer(message, len(data), remaining_s, caller, trace)
            return b"".join((_INFER_RESPONSE, _varint(len(answer)), answer))
        except Exception as error:  # noqa: BLE001 - the boundary
            code, text = to_status(error)
            refusal = pb.ModelStreamInferResponse(error_message=text)
            refusal.infer_response.id = name
            set_parameter(refusal.infer_response.parameters, STATUS, int(code.value[0]))
            if (retry_after_ms := _retry_after_ms(error)) is not None:
                set_parameter(refusal.infer_response.parameters, RETRY_AFTER, retry_after_ms)
            return refusal.SerializeToString()

    async def _answer(
        self,
        message: pb.ModelInferRequest,
        n_bytes: int,
        remaining_s: float | None,
        caller: str,
        trace: Mapping[str, str],
    ) -> bytes:
        """The encoded ModelInferResponse."""
        plane = self.plane
        request = Request(
            model=message.model_name,
            version=message.model_version,
            id=message.id,
            inputs=read_inputs(message, max_rows=plane.max_rows, max_bytes=plane.max_bytes),
            outputs=tuple(output.name for output in message.outputs) if message.outputs else (),
            remaining_s=remaining_s,
            caller=caller,
            n_bytes=n_bytes,
            trace=trace,
            asks_members=MEMBER_VOTES in message.parameters and message.parameters[MEMBER_VOTES].bool_param,
        )
        answer = self._forms.fill(await plane.infer(request))
        self.sent(len(answer))
        return answer

    def _repository(self) -> RepositoryExtension:
        if self.repository is None:
            raise NotOffered("the model repository extension is not offered by this server")
        return self.repository

    def _guarded(
        self, method: Callable[[Any, str], Awaitable[Any]], request_type: Any
    ) -> Callable[[bytes, Any], Awaitable[Any]]:
        """The boundary: bytes are parsed here, and any error leaves as a status, by the one table."""

        async def call(data: bytes, context: Any) -> Any:
            try:
                caller = "" if self.identify is None else self.identify(context)
                return await method(_parsed(data, request_type), caller)
            except Exception as error:  # noqa: BLE001 - the boundary
                return await _refuse(context, error)

        return call


async def _refuse(context: Any, error: Exception) -> Any:
    """End the call with the status the one table gives the error, and a hint when to come again if there is one."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    code, text = to_status(error)
    retry_after_ms = _retry_after_ms(error)
    return await context.abort(code, text, () if retry_after_ms is None else ((PUSHBACK, str(retry_after_ms)),))


def _parsed(data: bytes, request_type: Any) -> Any:
    try:
        return request_type.FromString(data)
    except DecodeError:
        raise WireError("request", request_type.__name__, "bytes that are none", "see proto/inference.proto") from None


def _retry_after_ms(error: Exception) -> int | None:
    """When the caller may come again, where the error says so."""
    if not isinstance(error, TierOverloaded) or error.retry_after_s is None:
        return None
    return max(1, round(error.retry_after_s * 1000))


_INFER_RESPONSE = pb.ModelStreamInferResponse(infer_response=pb.ModelInferResponse()).SerializeToString()[:-1]


def _varint(number: int) -> bytes:
    """A length as protobuf writes it."""
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    parts.append(number)
    return bytes(parts)
