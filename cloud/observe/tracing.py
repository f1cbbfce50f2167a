"""Traces through OpenTelemetry (`[otel]` extra): a span for every request, one below it for every tier it visited.

Spans are made when a request is over, from what its visits recorded, so tracing adds nothing to the request path.
Their ids are those that `coe.protocol.trace_context` sent on meanwhile: the next servers' spans are children of the
visit that called them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from cloud.config import ObserveConfig
from coe.models.loading import import_runtime
from coe.protocol import trace_context
from coe.protocol.core import Decided, Request, ServedModel
from coe.protocol.trace_context import TraceSpan

from .logs import clean
from .tally import code_of, kind_of

INSTALL = "pip install 'coe-cascade[otel]'"
# The caller's mistakes, which are no errors of this server.
CALLER_ERRORS = ("NOT_FOUND", "INVALID_ARGUMENT", "UNAUTHENTICATED", "PERMISSION_DENIED")


class Tracer:
    """A gate that lets everybody pass and an observer: a span begins as a request enters, and ends with its outcome.

    Args:
        exporter: an OpenTelemetry SpanExporter; None: OTLP over HTTP to the settings' endpoint.
    Raises:
        RuntimeMissing: the `[otel]` extra is not installed.
    """

    def __init__(self, settings: ObserveConfig, exporter: Any = None) -> None:
        self.share = settings.trace_share
        self._api, sdk, export, resources, sampling = (
            import_runtime(f"opentelemetry.{name}", "OpenTelemetry", INSTALL)
            for name in ("trace", "sdk.trace", "sdk.trace.export", "sdk.resources", "sdk.trace.sampling")
        )
        if exporter is None:
            otlp = import_runtime("opentelemetry.exporter.otlp.proto.http.trace_exporter", "OpenTelemetry", INSTALL)
            exporter = otlp.OTLPSpanExporter(endpoint=settings.traces)
        self._error = self._api.Status(self._api.StatusCode.ERROR)
        self._ids = _given_ids(sdk)
        self._provider = sdk.TracerProvider(
            sampler=sampling.ALWAYS_ON,  # `TraceSpan.is_sampled` decides
            resource=resources.Resource.create({"service.name": settings.trace_service}),
            id_generator=self._ids,
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(export.BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("coe.cloud")

    def enter(self, request: Request) -> None:
        trace_context.begin(request.trace, share=self.share)

    def leave(self, request: Request) -> None:
        """Nothing: the outcome, which comes next, ends the span."""

    def answered(self, request: Request, served: ServedModel, decided: Decided, seconds: float) -> None:
        if (traced := trace_context.end()) is not None and traced.is_sampled:
            span = self._span_of(traced, request, served.name, "OK")
            self._visits(traced, span, decided)
            span.end(time.time_ns())

    def failed(self, request: Request, error: BaseException, seconds: float) -> None:
        traced = trace_context.end()
        if traced is None or not traced.is_sampled:
            return
        code = code_of(error)
        span = self._span_of(traced, request, "", code)
        span.set_attribute("error.type", kind_of(error))
        for call in traced.calls:
            self._below(traced, span, "call", call, traced.started_ns, time.time_ns(), {}, is_error=True)
        if code not in CALLER_ERRORS:
            span.set_status(self._error)
        span.end(time.time_ns())

    def close(self) -> None:
        """Send what is left; at most some seconds."""
        self._provider.force_flush(3000)
        self._provider.shutdown()

    def _span_of(self, traced: TraceSpan, request: Request, model: str, code: str) -> Any:
        attributes = {
            "rpc.system": "open-inference-protocol",
            "rpc.method": "ModelInfer",
            "coe.model": model,
            "coe.request_id": clean(request.id),
            "coe.rows": request.n_rows,
            "coe.code": code,
            "coe.bytes": request.n_bytes,
        }
        api, parent = self._api, self._api.INVALID_SPAN  # where the trace begins here
        if traced.parent_id:
            flags, state = api.TraceFlags(1), api.TraceState.from_header([traced.state] if traced.state else [])
            caller = api.SpanContext(int(traced.trace_id, 16), int(traced.parent_id, 16), True, flags, state)
            parent = api.NonRecordingSpan(caller)
        self._ids.give(traced.trace_id, traced.span_id)
        context, name = api.set_span_in_context(parent), f"infer {model}".rstrip()
        return self._tracer.start_span(name, context, api.SpanKind.SERVER, attributes, start_time=traced.started_ns)

    def _visits(self, traced: TraceSpan, span: Any, decided: Decided) -> None:
        """A span for each visit, one after another up to now: what comes before them is reading and waiting."""
        decisions, calls = decided.decisions, list(traced.calls)
        now = time.time_ns()
        start = max(now - round(sum(visit.time_s for visit in decisions.visits) * 1e9), traced.started_ns)
        for visit in decisions.visits:
            end = min(start + round(visit.time_s * 1e9), now)
            cost = visit.vote.call.to_dict()
            call = calls.pop(0) if calls and visit.vote.call.n_calls else None
            facts: dict[str, Any] = {"coe.tier": visit.first_tier, "coe.batch_rows": len(visit.vote)}
            facts |= {f"coe.{key}": cost[key] for key in ("queue_s", "call_s", "server_s") if key in cost}
            self._below(traced, span, f"tier {visit.first_tier}", call, start, end, facts)
            start = end
        for call in calls:  # without an answer: the tier before had the last word
            self._below(traced, span, "call", call, start, now, {"coe.degraded": True}, is_error=True)

    def _below(
        self,
        traced: TraceSpan,
        above: Any,
        name: str,
        call: str | None,
        start: int,
        end: int,
        facts: Mapping[str, Any],
        is_error: bool = False,
    ) -> None:
        """A whole span below the request's own; that of a call to another server has the id that was sent there."""
        kind = self._api.SpanKind.INTERNAL if call is None else self._api.SpanKind.CLIENT
        if call is not None:
            self._ids.give(traced.trace_id, call)
        span = self._tracer.start_span(name, self._api.set_span_in_context(above), kind, facts, start_time=start)
        if is_error:
            span.set_status(self._error)
        span.end(end)


def _given_ids(sdk: Any) -> Any:
    """OpenTelemetry's generator of ids, which can be given the next ones."""
    generator = import_runtime("opentelemetry.sdk.trace.id_generator", "OpenTelemetry", INSTALL)

    class GivenIds(generator.RandomIdGenerator):  # type: ignore[name-defined,misc]
        trace_id = span_id = 0

        def give(self, trace_id: str, span_id: str) -> None:
            self.trace_id, self.span_id = int(trace_id, 16), int(span_id, 16)

        def generate_span_id(self) -> int:
            given, self.span_id = self.span_id, 0
            return given or int(super().generate_span_id())

        def generate_trace_id(self) -> int:
            given, self.trace_id = self.trace_id, 0
            return given or int(super().generate_trace_id())

    return GivenIds()
