"""Traces: one from the device through every server, as OpenTelemetry's own exporter sees them."""

from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from strategies import FakeServer
from watching import best, core, medium, request, served

from cloud.config import ObserveConfig
from coe.cascade import Always, CallCost, Cascade, CascadeError, TierTimeout
from coe.protocol import trace_context

pytest.importorskip("opentelemetry.sdk.trace", reason="opentelemetry-sdk is not installed")
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from cloud.observe.tracing import Tracer

DEVICE = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"


class Traced:
    """A core with a tracer, and the spans it made, by name."""

    def __init__(self, *models: object, share: float = 1.0) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracer = Tracer(ObserveConfig(trace_share=share, trace_service="east"), self.exporter)
        self.gates = self.watchers = (self.tracer,)
        self.core = core(self, *models)  # type: ignore[arg-type]

    def ask(self, *requests: object) -> None:
        async def side_by_side() -> None:
            calls = [asyncio.create_task(self.core.infer(one)) for one in requests]  # type: ignore[arg-type]
            await asyncio.gather(*calls, return_exceptions=True)

        asyncio.run(side_by_side())

    @property
    def spans(self) -> list:
        self.tracer._provider.force_flush()
        return sorted(self.exporter.get_finished_spans(), key=lambda span: span.start_time)

    def close(self) -> None:
        self.tracer.close()


@pytest.fixture
def traced():
    made = []

    def make(*models: object, **options: object) -> Traced:
        made.append(Traced(*models, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close()


class TraceSpan:
    """A remote tier that records the headers it would send, as RemoteTier does."""

    waits = True
    n_tiers = 1

    def __init__(self, error: Exception | None = None) -> None:
        self.inner = FakeServer("cloud", Cascade([best()]), Always())
        self.name, self.rule, self.error = "cloud", Always(), error
        self.sent: list[dict[str, str]] = []

    def vote(self, batch, rule):
        self.sent.append(trace_context.outgoing())
        if self.error is not None:
            raise self.error
        vote = self.inner.vote(batch, rule)
        vote.call = CallCost(1, call_s=0.01, server_s=0.005)
        return vote

    def complete(self, batch, vote):
        return vote

    def close(self) -> None:
        pass


def test_a_request_is_a_span_below_the_devices_with_a_span_for_each_tier_it_visited(traced):
    server = traced()
    server.ask(request([0, 2], trace={"traceparent": DEVICE}, id="abc"))
    by_name = {span.name: span for span in server.spans}
    assert set(by_name) == {"infer digits", "tier 1", "tier 2"}
    whole = by_name["infer digits"]
    assert f"{whole.context.trace_id:032x}" == "ab" * 16
    assert f"{whole.parent.span_id:016x}" == "cd" * 8
    assert whole.kind is SpanKind.SERVER
    assert whole.attributes["coe.request_id"] == "abc"
    assert whole.attributes["coe.rows"] == 2
    assert whole.resource.attributes["service.name"] == "east"
    for tier in ("tier 1", "tier 2"):
        assert by_name[tier].parent.span_id == whole.context.span_id
        assert whole.start_time <= by_name[tier].start_time <= by_name[tier].end_time <= whole.end_time
    assert by_name["tier 1"].end_time <= by_name["tier 2"].start_time


def test_a_request_without_a_trace_begins_one(traced):
    server = traced()
    server.ask(request([0]))
    whole = next(span for span in server.spans if span.name == "infer digits")
    assert whole.parent is None
    assert whole.context.trace_id != 0


def test_what_cannot_be_read_as_a_trace_begins_one_too(traced):
    server = traced()
    server.ask(request([0], trace={"traceparent": "00-zz"}))
    assert [span.parent for span in server.spans if span.name == "infer digits"] == [None]


def test_the_next_servers_span_hangs_below_the_visit_that_asked_it(traced):
    hop = TraceSpan()
    server = traced(served(tiers=[medium(), hop]))
    server.ask(request([3], trace={"traceparent": DEVICE, "tracestate": "vendor=1"}))
    (sent,) = hop.sent
    _, trace_id, span_id, flags = sent["traceparent"].split("-")
    visit = next(span for span in server.spans if span.name == "tier 2")
    assert (trace_id, flags, sent["tracestate"]) == ("ab" * 16, "01", "vendor=1")
    assert f"{visit.context.span_id:016x}" == span_id
    assert visit.kind is SpanKind.CLIENT
    assert visit.attributes["coe.call_s"] == 0.01


def test_a_chain_of_two_servers_is_one_trace(traced):
    hop = TraceSpan()
    first, second = traced(served(tiers=[medium(), hop])), traced()
    first.ask(request([3]))
    second.ask(request([3], trace=hop.sent[0]))
    spans = first.spans + second.spans
    assert len({span.context.trace_id for span in spans}) == 1
    below = next(span for span in second.spans if span.name == "infer digits")
    above = next(span for span in first.spans if span.name == "tier 2")
    assert below.parent.span_id == above.context.span_id


def test_a_call_that_got_no_answer_is_an_error_below_a_request_that_is_none(traced):
    server = traced(served(tiers=[medium(), TraceSpan(TierTimeout("cloud", "no answer"))]))
    server.ask(request([3]))
    by_name = {span.name: span for span in server.spans}
    assert by_name["call"].status.status_code is StatusCode.ERROR
    assert by_name["infer digits"].status.status_code is StatusCode.UNSET


def test_failures_of_the_server_are_errors_and_mistakes_of_the_caller_are_not(traced):
    hop = TraceSpan(TierTimeout("cloud", "no answer"))
    server = traced(served(tiers=[medium(), hop], keep_last_answer=False))
    server.ask(request([3]), request([]))
    failed = {span.attributes["coe.code"]: span for span in server.spans if span.name == "infer"}
    assert failed["DEADLINE_EXCEEDED"].status.status_code is StatusCode.ERROR
    assert failed["DEADLINE_EXCEEDED"].attributes["error.type"] == "TierTimeout"
    assert failed["INVALID_ARGUMENT"].status.status_code is StatusCode.UNSET


def test_requests_side_by_side_keep_their_own_traces(traced):
    server = traced()
    parents = [f"00-{number:032x}-{number:016x}-01" for number in range(1, 20)]
    server.ask(*(request([2], trace={"traceparent": parent}) for parent in parents))
    for span in server.spans:
        if span.name == "infer digits":
            assert span.parent.span_id == span.context.trace_id  # both are its number
    assert len({span.context.trace_id for span in server.spans}) == 19
    assert len({span.context.span_id for span in server.spans}) == 19 * 3


def test_a_trace_the_device_does_not_keep_is_not_kept_here_and_goes_on_as_such(traced):
    hop = TraceSpan()
    server = traced(served(tiers=[medium(), hop]))
    server.ask(request([3], trace={"traceparent": DEVICE[:-2] + "00"}))
    assert server.spans == []
    assert hop.sent[0]["traceparent"].endswith("-00")


def test_a_share_of_the_traces_begun_here_is_kept(traced):
    server = traced(share=0.25)
    server.ask(*(request([0]) for _ in range(400)))
    kept = sum(span.name == "infer digits" for span in server.spans)
    assert 50 < kept < 150


def test_the_canary_is_in_no_span(traced):
    server = traced()
    server.ask(request([0, 3], id="abc"))
    with pytest.raises(CascadeError):
        asyncio.run(server.core.infer(request(model="canary-4711")))
    assert "canary-4711" not in "".join(span.to_json() for span in server.spans)


def test_a_remote_call_on_a_thread_belongs_to_the_request_that_made_it():
    with ThreadPoolExecutor(1) as threads:
        hop = trace_context.begin({"traceparent": DEVICE})
        sent = threads.submit(contextvars.copy_context().run, trace_context.outgoing).result()
        assert trace_context.end() is hop
    assert hop.calls == [sent["traceparent"].split("-")[2]]


def test_nothing_of_opentelemetry_is_imported_where_no_traces_are_asked_for():
    code = """
import sys
from cloud.config import ObserveConfig
from cloud.observe.status import ServerView
from cloud.observe.observer import Observer
Observer(ObserveConfig(), ServerView(lambda name: True, tuple, dict))
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert (told.stderr, told.stdout.strip()) == ("", "[]")
