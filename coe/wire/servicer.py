"""The servicer: convert in, decide, convert out. What is served behind it is any cascade."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from coe import __version__
from coe.cascade.cascade import Decisions
from coe.cascade.types import Array, Batch
from coe.wire import inference_pb2 as pb

from .convert import WireError, add_output, read_inputs, set_parameter
from .service import INPUT, METHODS, PLATFORM, SERVICE
from .status import UnknownModel, to_status

MAX_ROWS = 1024
RESERVE = 0.05  # of a call's remaining time, kept to answer in where a tier or the next server does not


class InputDoor(Protocol):
    """Turns what was sent into a batch; raises InputError for what cannot be read."""

    def batch(self, ids: Any, values: Any, deadline: float = ...) -> Batch: ...


@dataclass(frozen=True)
class Served:
    """One "model" of the protocol: a tier, or a whole cascade.

    Args:
        version: the task's fingerprint.
        input: datatype and shape it is offered with, -1 where free; an image may come in other forms too.
        decide: answers a batch.
        n_tiers: tiers behind `decide`.
    """

    name: str
    version: str
    labels: tuple[str, ...]
    input: tuple[str, tuple[int, ...]]
    door: InputDoor
    decide: Callable[[Batch], Decisions]
    n_tiers: int = 1


# What can be asked for by name: output -> (datatype, shape of one row; -1 where it depends).
OUTPUTS: dict[str, tuple[str, tuple[int, ...]]] = {
    "label": ("INT32", ()),
    "vote": ("FP32", ()),
    "score": ("FP32", ()),
    "exit_tier": ("INT32", ()),
    "members": ("INT32", (2,)),  # asked, and how many there are, in the tier that answered
    "tier_votes": ("FP32", (-1,)),  # the vote of each tier, NaN where not visited
    "label_name": ("BYTES", ()),
    "degraded": ("BYTES", ()),  # why an answer is not that of the tier that should have given it; empty: it is
}


class InferenceServicer:
    """The Open Inference Protocol over what `models` serves.

    Args:
        models: by name.
        is_ready: whether every model is loaded and warm, and the server not draining.
    """

    def __init__(
        self,
        models: Mapping[str, Served],
        is_ready: Callable[[], bool],
        *,
        max_rows: int = MAX_ROWS,
        max_bytes: int = 2**28,
    ) -> None:
        self.models = models
        self.is_ready = is_ready
        self.max_rows = max_rows
        self.max_bytes = max_bytes

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """To be added to a grpc.Server."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                name: grpc.unary_unary_rpc_method_handler(
                    _guarded(getattr(self, name), request_type), response_serializer=response_type.SerializeToString
                )
                for name, (request_type, response_type) in METHODS.items()
            },
        )

    def ServerLive(self, request: pb.ServerLiveRequest, context: grpc.ServicerContext) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    def ServerReady(self, request: pb.ServerReadyRequest, context: grpc.ServicerContext) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self.is_ready())

    def ModelReady(self, request: pb.ModelReadyRequest, context: grpc.ServicerContext) -> pb.ModelReadyResponse:
        return pb.ModelReadyResponse(ready=request.name in self.models and self.is_ready())

    def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: grpc.ServicerContext
    ) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name="coe-cloud", version=__version__, extensions=[])

    def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: grpc.ServicerContext
    ) -> pb.ModelMetadataResponse:
        served = self._find(request.name, request.version)
        told = pb.ModelMetadataResponse(name=served.name, versions=[served.version], platform=PLATFORM)
        datatype, shape = served.input
        told.inputs.add(name=INPUT, datatype=datatype, shape=shape)
        for name, (datatype, shape) in OUTPUTS.items():
            row = [served.n_tiers if size == -1 else size for size in shape]
            told.outputs.add(name=name, datatype=datatype, shape=[-1, *row])
        return told

    def ModelInfer(self, request: pb.ModelInferRequest, context: grpc.ServicerContext) -> pb.ModelInferResponse:
        started = time.perf_counter()
        served = self._find(request.model_name, request.model_version)
        batch = self._batch(request, served, context.time_remaining())
        decisions = served.decide(batch)
        response = pb.ModelInferResponse(model_name=served.name, model_version=served.version, id=request.id)
        for name in self._wanted(request, served, decisions):
            add_output(response, name, _column(name, decisions, served))
        for key, seconds in _timings(decisions).items():
            set_parameter(response.parameters, key, seconds)
        set_parameter(response.parameters, "server_s", time.perf_counter() - started)
        return response

    def _find(self, name: str, version: str) -> Served:
        served = self.models.get(name)
        if served is None:
            known = ", ".join(self.models)
            raise UnknownModel(f"model: expected one of {known}, got {name!r} (coe-cloud models lists them)")
        if version and version != served.version:
            raise UnknownModel(
                f"model {name}: expected version {served.version}, got {version!r} (the version is the task's "
                f"fingerprint: labels and input of both ends must match; an empty version means any)"
            )
        return served

    def _batch(self, request: pb.ModelInferRequest, served: Served, remaining_s: float | None) -> Batch:
        inputs = read_inputs(request, max_rows=self.max_rows, max_bytes=self.max_bytes)
        if len(inputs) != 1:
            raise WireError("inputs", "one tensor", f"{len(inputs)}", f'send one, named "{INPUT}"')
        (values,) = inputs.values()
        if not len(values):
            raise WireError("input", "at least one row", "none", "leave the call out")
        deadline = np.inf if remaining_s is None else time.monotonic() + remaining_s * (1 - RESERVE)
        ids = [f"row {row}" for row in range(len(values))]
        return served.door.batch(ids, values, deadline)

    def _wanted(self, request: pb.ModelInferRequest, served: Served, decisions: Decisions) -> list[str]:
        """The outputs asked for by name; else those that every caller can use."""
        if request.outputs:
            names = [output.name for output in request.outputs]
            for name in names:
                if name not in OUTPUTS:
                    raise WireError("outputs", f"one of {', '.join(OUTPUTS)}", repr(name), "leave it out")
            return list(dict.fromkeys(names))
        names = ["label", "vote", "score", "exit_tier", "members"]
        if served.n_tiers > 1:
            names.append("tier_votes")
        if decisions.is_degraded:
            names.append("degraded")
        return names


def _column(name: str, decisions: Decisions, served: Served) -> Array:
    """One output (B, ...), in the datatype OUTPUTS gives it."""
    if name == "label_name":
        return _texts([served.labels[label] for label in decisions.labels.tolist()])
    if name == "degraded":
        return _texts([reason or "" for reason in decisions.reasons()])
    if name == "members":
        return np.stack([decisions.asked, decisions.n_members], axis=1).astype(np.int32)
    if name == "tier_votes":
        votes = decisions.tier_votes  # (B, T'), T' the furthest tier reached
        padded = np.full((len(votes), max(served.n_tiers, votes.shape[1])), np.nan, dtype=np.float32)
        padded[:, : votes.shape[1]] = votes
        return padded
    attribute = "labels" if name == "label" else name
    column: Array = getattr(decisions, attribute)
    return column.astype(np.int32 if OUTPUTS[name][0] == "INT32" else np.float32)


def _texts(texts: list[str]) -> Array:
    column = np.empty(len(texts), dtype=object)
    column[:] = [text.encode() for text in texts]
    return column


def _timings(decisions: Decisions) -> dict[str, float]:
    """Seconds for the whole request: each tier's, in queues, and between this server and those behind it."""
    timings = {f"tier_{visit.first_tier}_s": visit.time_s for visit in decisions.visits}
    timings["queue_s"] = sum(visit.vote.call.get("queue_s", 0.0) for visit in decisions.visits)
    hops_s = sum(_between(visit.vote.call) for visit in decisions.visits)
    return timings | {"hops_s": hops_s} if hops_s else timings


def _between(call: Mapping[str, float]) -> float:
    """Of a tier's call, the seconds on its way: the wire and injected delays, at this hop and the next ones."""
    on_the_wire = call.get("call_s", 0.0) - call.get("server_s", 0.0)
    return on_the_wire + call.get("delay_s", 0.0) + call.get("hops_s", 0.0)


def _guarded(
    method: Callable[[Any, grpc.ServicerContext], Any], request_type: Any
) -> Callable[[bytes, grpc.ServicerContext], Any]:
    """The boundary: bytes are parsed here, and any error leaves as a status, by the one table."""

    def call(data: bytes, context: grpc.ServicerContext) -> Any:
        try:
            return method(_parsed(data, request_type), context)
        except Exception as error:  # noqa: BLE001 - the boundary
            context.abort(*to_status(error))

    return call


def _parsed(data: bytes, request_type: Any) -> Any:
    try:
        return request_type.FromString(data)
    except DecodeError:
        raise WireError("request", request_type.__name__, "bytes that are none", "see proto/inference.proto") from None
