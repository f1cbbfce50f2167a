"""The inference path below every transport: find the model, check the request, decide, and encode the response.

A transport (gRPC, HTTP) turns its messages into a `Request` and an `Answer` into its messages, and knows nothing of
cascades; what is below knows nothing of transports. A `Gate` admits requests; a `RequestObserver` counts them.

What is the same for every answer of a model with the same outputs and number of rows (its name, the outputs' names
and shapes, what stands before each number) is serialised once, by protobuf itself; the rest is appended, since
protobuf messages that follow one another merge.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from coe.cascade.cascade import Decisions
from coe.cascade.errors import CascadeError, InputError, TierFailed, TierUnavailable
from coe.cascade.types import Array, Batch

from . import inference_pb2 as pb
from .codec import WireError, encode
from .service import INPUT
from .status import UnknownModel
from .trace_context import network_times

MAX_ROWS = 1024
MAX_BYTES = 2**28
RESERVE = 0.05  # of a call's remaining time, kept to answer in where a tier or the next server does not

# What can be asked for by name: output -> (datatype, shape of one row; -1 where it depends).
OUTPUTS: Mapping[str, tuple[str, tuple[int, ...]]] = MappingProxyType(
    {
        "label": ("INT32", ()),
        "vote": ("FP32", ()),
        "score": ("FP32", ()),
        "exit_tier": ("INT32", ()),
        "members": ("INT32", (2,)),  # asked, and how many there are, in the tier that answered
        "tier_votes": ("FP32", (-1,)),  # the vote of each tier, NaN where not visited
        "label_name": ("BYTES", ()),
        "member_label": ("INT32", (-1,)),  # of each member of the tiers reached, the first tier's first; -1: not asked
        "member_score": ("FP32", (-1,)),  # its probability; NaN: not asked
        "degraded": ("BYTES", ()),  # why an answer is not that of the tier that should have given it; empty: it is
    }
)
USUAL = ("label", "vote", "score", "exit_tier", "members")
MEMBER_OUTPUTS = ("member_label", "member_score")


def row_shape(name: str, served: ServedModel) -> list[int]:
    """The shape of one row of an output of this model; -1 where it depends on how far the rows go."""
    return [served.n_tiers if name == "tier_votes" else size for size in OUTPUTS[name][1]]


class Decoder(Protocol):
    """Turns what was sent into a batch; raises InputError for what cannot be read."""

    def batch(self, ids: Any, values: Any, deadline: float = ...) -> Batch: ...


class Decided:
    """What came of some rows, which may have been decided together with other callers' rows.

    Args:
        decisions: of the whole batch.
        rows: this caller's part of it.
        columns: outputs laid out already, shared by all callers of the batch.
        queue_s: seconds this caller's rows waited before the batch was put together.

    Raises:
        TierFailed: no member voted on one of these rows, so that there is nothing to answer.
    """

    __slots__ = ("_columns", "decisions", "queue_s", "rows")

    def __init__(
        self,
        decisions: Decisions,
        rows: slice = slice(None),
        columns: dict[str, Array] | None = None,
        queue_s: float = 0.0,
    ) -> None:
        if (failure := decisions.failure(rows)) is not None:
            raise failure
        self.decisions = decisions
        self.rows = rows
        self.queue_s = queue_s
        self._columns = {} if columns is None else columns

    def column(self, name: str, served: ServedModel) -> Array:
        """One output (b, ...) of these rows, in the datatype OUTPUTS gives it."""
        whole = self._columns.get(name)
        if whole is None:
            whole = self._columns[name] = _column(name, self.decisions, served)
        return whole[self.rows]


@dataclass(frozen=True)
class ServedModel:
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
    decoder: Decoder
    decide: Callable[[Batch], Awaitable[Decided]]
    n_tiers: int = 1


@dataclass(slots=True)
class Request:
    """An inference request, whatever transport it came by.

    Args:
        inputs: name -> tensor (B, ...), as `convert.read_inputs` gives them.
        outputs: wanted by name; empty: the usual ones.
        asks_members: what each member said is wanted as well, of all members of the tiers reached.
        remaining_s: until the caller's deadline; None: none was given.
        caller: the device's identity; "" where none was asked for.
        n_bytes: of the message as it came.
        trace: W3C trace headers (traceparent, tracestate), where sent.
    """

    model: str
    version: str
    id: str
    inputs: Mapping[str, Array]
    outputs: tuple[str, ...] = ()
    remaining_s: float | None = None
    caller: str = ""
    n_bytes: int = 0
    trace: Mapping[str, str] = field(default_factory=dict)
    asks_members: bool = False

    @property
    def n_rows(self) -> int:
        return max((len(values) for values in self.inputs.values()), default=0)


@dataclass(slots=True)
class Answer:
    """The answer to a Request: `outputs` are columns (B, ...) by name, `parameters` mostly seconds."""

    served: ServedModel
    id: str
    outputs: dict[str, Array]
    parameters: dict[str, float]


class Gate(Protocol):
    """Says what may pass. Every `enter` that returns is followed by one `leave`."""

    def enter(self, request: Request) -> None:
        """Raises CascadeError: over a limit, or not allowed."""
        ...

    def leave(self, request: Request) -> None: ...


class RequestObserver(Protocol):
    """Is called with every request that a transport could read, and its outcome."""

    def answered(self, request: Request, served: ServedModel, decided: Decided, seconds: float) -> None: ...

    def failed(self, request: Request, error: BaseException, seconds: float) -> None: ...


class InferenceCore:
    """What is served, and the way to it.

    Args:
        models: by name. Replaced one by one where models are loaded anew.
        max_rows, max_bytes: most rows, and bytes of tensors, of one request.
    """

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        *,
        max_rows: int = MAX_ROWS,
        max_bytes: int = MAX_BYTES,
        gates: Iterable[Gate] = (),
        watchers: Iterable[RequestObserver] = (),
    ) -> None:
        self.models = dict(models)
        self.max_rows = max_rows
        self.max_bytes = max_bytes
        self.gates = tuple(gates)
        self.watchers = tuple(watchers)
        self.accepts = False  # set once every model is loaded and warm; unset as the transports close
        self.is_leaving = False  # set as draining begins: not ready any more, though what comes is still answered

    def is_ready(self, name: str = "") -> bool:
        """True if the server, or one of its models, can be asked."""
        return self.accepts and not self.is_leaving and (not name or name in self.models)

    def find(self, name: str, version: str = "") -> ServedModel:
        """The model of that name; an empty version means any.

        Raises:
            UnknownModel
        """
        served = self.models.get(name)
        if served is None:
            known = ", ".join(self.models)
            raise UnknownModel(f"model: expected one of {known}, got {name[:64]!r} (coe-cloud models lists them)")
        if version and version != served.version:
            raise UnknownModel(
                f"model {name}: expected version {served.version}, got {version[:64]!r} (the version is the task's "
                f"fingerprint: labels and input of both ends must match; an empty version means any)"
            )
        return served

    async def infer(self, request: Request) -> Answer:
        """Decide what came.

        Raises:
            CascadeError: every kind; `coe.protocol.status` has the status of each.
        """
        started = time.perf_counter()
        entered = 0
        try:
            served = self.find(request.model, request.version)
            for gate in self.gates:
                gate.enter(request)
                entered += 1
            batch = self._batch(request, served)
            try:
                decided = await served.decide(batch)
            except TierFailed as failure:
                raise _fault_of(batch, failure) from failure
            outputs = {name: decided.column(name, served) for name in _wanted(request, served, decided)}
        except (Exception, asyncio.CancelledError) as error:  # a caller that went away is worth counting, too
            for watcher in self.watchers:
                watcher.failed(request, error, time.perf_counter() - started)
            raise
        finally:
            for gate in self.gates[:entered]:
                gate.leave(request)
        seconds = time.perf_counter() - started
        for watcher in self.watchers:
            watcher.answered(request, served, decided, seconds)
        return Answer(served, request.id, outputs, _timings(decided, seconds))

    def _batch(self, request: Request, served: ServedModel) -> Batch:
        if not self.accepts:
            raise TierUnavailable(served.name, "the server is not ready, or is draining")
        if len(request.inputs) != 1:
            raise WireError("inputs", "one tensor", f"{len(request.inputs)}", f'send one, named "{INPUT}"')
        (values,) = request.inputs.values()
        if not len(values):
            raise WireError("input", "at least one row", "none", "leave the call out")
        left = request.remaining_s
        deadline = np.inf if left is None else time.monotonic() + left * (1 - RESERVE)
        ids = _ONE_ROW if len(values) == 1 else tuple(f"row {row}" for row in range(len(values)))
        batch = served.decoder.batch(ids, values, deadline)
        if request.asks_members or not set(MEMBER_OUTPUTS).isdisjoint(request.outputs):
            return replace(batch, asks_members=True)
        return batch


def _fault_of(batch: Batch, failure: TierFailed) -> CascadeError:
    """Whose fault it is that no member voted: the caller's, where what it sent is not a number."""
    if batch.x.dtype.kind == "f" and not np.isfinite(batch.x).all():
        return InputError(f"input: expected numbers, got NaN or infinity, on which {failure.brief}")
    return failure


_ONE_ROW = ("row 0",)


def _wanted(request: Request, served: ServedModel, decided: Decided) -> Iterable[str]:
    """The outputs asked for by name; else those that every caller can use."""
    if request.outputs:
        for name in request.outputs:
            if name not in OUTPUTS:
                raise WireError("outputs", f"one of {', '.join(OUTPUTS)}", repr(name[:64]), "leave it out")
        return dict.fromkeys(request.outputs)
    names = USUAL if served.n_tiers == 1 else (*USUAL, "tier_votes")
    names = (*names, *MEMBER_OUTPUTS) if request.asks_members else names
    return (*names, "degraded") if decided.decisions.is_degraded else names


def _column(name: str, decisions: Decisions, served: ServedModel) -> Array:
    if name == "label_name":
        return np.array([served.labels[label].encode() for label in decisions.labels.tolist()], dtype=object)
    if name == "degraded":
        return np.array([(reason or "").encode() for reason in decisions.reasons()], dtype=object)
    if name == "members":
        return np.stack([decisions.asked, decisions.n_members], axis=1).astype(np.int32)
    if name == "tier_votes":
        votes = decisions.tier_votes  # (B, T'), T' the furthest tier reached
        padded = np.full((len(votes), max(served.n_tiers, votes.shape[1])), np.nan, dtype=np.float32)
        padded[:, : votes.shape[1]] = votes
        return padded
    if name in MEMBER_OUTPUTS:
        labels, scores = decisions.ballots()
        own: Array = labels.T.astype(np.int32) if name == "member_label" else scores.T.astype(np.float32)
        return own
    column: Array = getattr(decisions, "labels" if name == "label" else name)
    return column.astype(np.int32 if OUTPUTS[name][0] == "INT32" else np.float32, copy=False)


def _timings(decided: Decided, seconds: float) -> dict[str, float]:
    """Seconds for the whole request: each tier's, in queues, between this server and those behind it, and in all."""
    timings: dict[str, float] = {}
    queue_s, hops_s, rows = decided.queue_s, 0.0, 0.0
    for visit in decided.decisions.visits:
        call = visit.vote.call
        name = f"tier_{visit.first_tier}_s"
        timings[name] = max(timings.get(name, 0.0), visit.time_s)  # rows decided apart have a visit each
        queue_s += call.queue_s
        hops_s += call.network_s + call.delay_s + call.hops_s
        rows = rows or float(len(visit.vote))
    timings["queue_s"] = queue_s
    if hops_s:
        timings["hops_s"] = hops_s
        timings.update(network_times(visit.vote.call for visit in decided.decisions.visits))
    timings["batch_rows"] = rows
    timings["server_s"] = seconds
    return timings


MAX_TEMPLATES = 1024  # kinds of answers whose common parts are kept
_DOUBLE = struct.Struct("<d")
_PARAMETER_PREFIXES: dict[str, bytes] = {}  # of parameters: all of an entry's bytes but the number


class ResponseEncoder:
    """Lays out answers as ModelInferResponse."""

    def __init__(self) -> None:
        self._forms: dict[tuple[str, str, int, int, int, tuple[str, ...]], _ResponseTemplate] = {}

    def fill(self, answer: Answer) -> bytes:
        """The message's bytes."""
        served, outputs = answer.served, answer.outputs
        names = tuple(outputs)
        wide = (outputs.get("tier_votes"), outputs.get("member_label", outputs.get("member_score")))  # (B, T), (B, M)
        n_tiers, n_members = (0 if one is None else one.shape[1] for one in wide)
        key = (served.name, served.version, len(outputs[names[0]]) if names else 0, n_tiers, n_members, names)
        form = self._forms.get(key)
        if form is None:
            if len(self._forms) >= MAX_TEMPLATES:
                self._forms.clear()
            form = self._forms[key] = _ResponseTemplate(served, outputs)
        return form.fill(answer)


class _ResponseTemplate:
    """What every answer of one model with the same outputs and number of rows has in common."""

    def __init__(self, served: ServedModel, outputs: Mapping[str, Array]) -> None:
        message = pb.ModelInferResponse(model_name=served.name, model_version=served.version)
        for name, column in outputs.items():
            message.outputs.add(name=name, datatype=OUTPUTS[name][0], shape=column.shape)
        self.head = message.SerializeToString()
        self.is_fixed = all(OUTPUTS[name][0] != "BYTES" for name in outputs)  # texts differ in length
        self.fronts = [_raw_prefix(column.nbytes) for column in outputs.values()] if self.is_fixed else []

    def fill(self, answer: Answer) -> bytes:
        parts = [self.head]
        if answer.id:
            parts.append(pb.ModelInferResponse(id=answer.id).SerializeToString())
        for key, value in answer.parameters.items():
            front = _PARAMETER_PREFIXES.get(key) or _parameter_prefix(key)
            parts += front, _DOUBLE.pack(value)
        if self.is_fixed:
            for front, column in zip(self.fronts, answer.outputs.values(), strict=True):
                parts += front, column.tobytes()
        else:
            message = pb.ModelInferResponse()
            for name, column in answer.outputs.items():
                message.raw_output_contents.append(encode(name, column)[1])
            parts.append(message.SerializeToString())
        return b"".join(parts)


def _parameter_prefix(key: str) -> bytes:
    parameters = {key: pb.InferParameter(double_param=0.0)}
    front = pb.ModelInferResponse(parameters=parameters).SerializeToString()[: -_DOUBLE.size]
    _PARAMETER_PREFIXES[key] = front
    return front


def _raw_prefix(n_bytes: int) -> bytes:
    """What precedes raw contents of that length."""
    whole = pb.ModelInferResponse(raw_output_contents=[bytes(n_bytes)]).SerializeToString()
    return whole[: len(whole) - n_bytes]
