"""The persistent stream: many calls on one, each with its own answer, deadline and error; and what if it breaks."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial

import grpc
import numpy as np
import pytest
from loopback import scripted, serving
from strategies import one_hot, rows
from streaming import Answers, Infer, Refused, Streaming

from coe.cascade import Agreement, Batch, TierOverloaded, TierRefused, TierRejected, TierTimeout, TierUnavailable
from coe.protocol import inference_pb2 as pb
from coe.protocol.channel import InferStream
from coe.protocol.codec import add_output, get_parameters, read_inputs, set_parameter
from coe.protocol.credentials import ClientSecurity, dial
from coe.protocol.remote import RemoteTier
from coe.protocol.service import SERVICE, client_options
from coe.protocol.trace_context import OUTGOING

RULE = Agreement(Fraction(1))


def by_itself(request: bytes, context: grpc.ServicerContext) -> bytes:
    context.abort(grpc.StatusCode.UNKNOWN, "asked by itself")
    raise AssertionError


@contextmanager
def remote(address: str, **options: object) -> Iterator[RemoteTier]:
    fields: dict[str, object] = {"n_labels": 3, "deadline_s": 10.0, "stream": True} | options
    tier = RemoteTier("cloud", address, "model", RULE, **fields)  # type: ignore[arg-type]
    try:
        yield tier
    finally:
        tier.close()


@contextmanager
def streaming(
    answers: Answers, infer: Infer | None = None, **options: object
) -> Iterator[tuple[Streaming, RemoteTier]]:
    """A server that answers streams with `answers`, and a tier that asks it on one. `infer`: calls by themselves."""
    handler = Streaming(answers, infer or by_itself)
    with serving(handler) as address, remote(address, **options) as tier:
        yield handler, tier


def first_value(request: pb.ModelInferRequest) -> int:
    (values,) = read_inputs(request, max_rows=99, max_bytes=10**7).values()
    return int(values.ravel()[0])


def label_of(*labels: int) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(model_name="model")
    add_output(response, "probabilities", one_hot(list(labels)).astype(np.float32))
    return response


async def modulo(request: pb.ModelInferRequest) -> pb.ModelInferResponse:
    """The label of row r is r modulo 3."""
    return label_of(first_value(request) % 3, 2)  # the second row sets the width


def ask(tier: RemoteTier, number: int, deadline: float = np.inf) -> int:
    return int(tier.vote(Batch(("a", "b"), np.array([[number], [2]]), deadline=deadline), RULE).labels[0])


def side_by_side(n: int, call: Callable[[int], object]) -> list[object]:
    """What `n` calls, each on its own thread, returned or raised."""
    outcomes: list[object] = [None] * n

    def run(number: int) -> None:
        try:
            outcomes[number] = call(number)
        except Exception as error:  # noqa: BLE001 - told to the test
            outcomes[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return outcomes


# Calls that go well


def test_calls_of_many_threads_share_one_stream_and_each_gets_its_own_answer():
    async def in_any_order(request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        await asyncio.sleep(0.002 * (7 - first_value(request) % 7))
        return await modulo(request)

    with streaming(in_any_order) as (server, tier):
        outcomes = side_by_side(16, lambda number: [ask(tier, number * 100 + turn) for turn in range(10)])
        assert outcomes == [[(number * 100 + turn) % 3 for turn in range(10)] for number in range(16)]
        assert len(server.opened) == 1


def test_a_call_on_the_stream_says_its_deadline_and_the_headers_of_its_context():
    seen: list[dict[str, object]] = []

    async def look(request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        seen.append(get_parameters(request.parameters))
        return await modulo(request)

    own = lambda: [("x-device", "pi-1"), ("traceparent", "00-own-01")]  # noqa: E731
    with streaming(look, headers=own, deadline_s=9.0) as (server, tier):
        ask(tier, 1)
        context = contextvars.copy_context()
        context.run(OUTGOING.set, (("traceparent", "00-a-b-01"), ("tracestate", "x=y"), ("x-run", "7")))
        context.run(ask, tier, 1, time.monotonic() + 3.0)
    assert 5_000 < seen[0].pop("timeout_ms") <= 9_000
    assert 1_000 < seen[1].pop("timeout_ms") <= 3_000
    assert seen == [{"traceparent": "00-own-01"}, {"traceparent": "00-own-01", "tracestate": "x=y", "x-run": "7"}]
    (opened,) = server.opened
    assert opened["x-device"] == "pi-1"
    assert "traceparent" not in opened


def test_what_a_call_on_the_stream_cost_is_counted_as_of_one_by_itself():
    async def timed(request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        response = await modulo(request)
        set_parameter(response.parameters, "server_s", 0.0001)
        return response

    with streaming(timed) as (_, tier):
        vote = tier.vote(rows(2), RULE)
    assert set(vote.call.to_dict()) == {"call_s", "bytes_sent", "bytes_received", "server_s", "hop_1_s"}
    assert vote.call.times["hop_1_s"] == pytest.approx(vote.call.call_s - 0.0001)
    assert vote.call.bytes_sent > 50
    assert vote.call.bytes_received > 50


# Calls that do not


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, TierOverloaded),
        (grpc.StatusCode.DEADLINE_EXCEEDED, TierTimeout),
        (grpc.StatusCode.INVALID_ARGUMENT, TierRejected),
        (grpc.StatusCode.PERMISSION_DENIED, TierRefused),
    ],
)
def test_a_refused_request_is_its_own_callers_error_and_the_stream_goes_on(code, kind):
    async def refuse_some(request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        if first_value(request) == 7:
            raise Refused(code, "because", retry_after_ms=60_000)
        return await modulo(request)

    with streaming(refuse_some) as (server, tier):
        assert ask(tier, 1) == 1
        with pytest.raises(kind, match=f"tier cloud: {code.name}: because") as caught:
            ask(tier, 7)
        assert type(caught.value) is kind
        assert getattr(caught.value, "retry_after_s", 60.0) == 60.0
        assert caught.value.call.bytes_sent > 0
        assert ask(tier, 2) == 2
        assert len(server.opened) == 1


def test_a_call_that_gives_up_at_its_deadline_leaves_the_others_alone():
    async def slow_for_some(request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        await asyncio.sleep(1.0 if first_value(request) == 7 else 0.01)
        return await modulo(request)

    with streaming(slow_for_some) as (server, tier):
        keeper = threading.Thread(target=lambda: [ask(tier, 1) for _ in range(40)])
        keeper.start()
        started = time.perf_counter()
        with pytest.raises(TierTimeout, match="within the deadline"):
            ask(tier, 7, time.monotonic() + 0.2)
        assert 0.15 < time.perf_counter() - started < 0.9
        keeper.join(20)
        assert ask(tier, 2) == 2
        time.sleep(1.0)  # the answer that nobody waits for comes
        assert ask(tier, 1) == 1
        assert len(server.opened) == 1


def test_a_stream_that_says_nothing_at_all_is_not_asked_a_second_time():
    is_stuck = True

    async def stuck(request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        await asyncio.sleep(20 if is_stuck else 0)
        return await modulo(request)

    with streaming(stuck) as (server, tier):
        with pytest.raises(TierTimeout):
            ask(tier, 1, time.monotonic() + 0.2)
        is_stuck = False
        assert ask(tier, 1) == 1
        assert len(server.opened) == 2


# Streams that break


@pytest.mark.parametrize("side", ["request", "answer"])
def test_a_message_over_the_limit_is_its_own_callers_error(side):
    """gRPC ends the whole stream for it, so the others on it must be asked again."""

    def answer_to(request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        response = label_of(first_value(request) % 3, 2)
        if first_value(request) == 9:
            add_output(response, "much", np.zeros((1, 5000), np.float32))
        return response

    async def answers(request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        await asyncio.sleep(0.01)
        return answer_to(request)

    def infer(data: bytes, context: grpc.ServicerContext) -> bytes:
        return answer_to(pb.ModelInferRequest.FromString(data)).SerializeToString()

    large = np.zeros((1, 5000 if side == "request" else 1), np.int64) + 9
    with streaming(answers, infer, max_message_bytes=4096) as (_, tier):
        keeper: list[object] = []
        thread = threading.Thread(
            target=lambda: keeper.extend(side_by_side(8, lambda _: [ask(tier, 1) for _ in range(5)]))
        )
        thread.start()
        for _ in range(3):
            with pytest.raises(TierRejected, match="larger than max"):
                tier.vote(Batch(("a",), large), RULE)
        thread.join(30)
    assert keeper == [[1] * 5] * 8


def test_a_server_without_streams_is_asked_by_itself_from_then_on():
    calls: list[bytes] = []

    def infer(request: bytes, context: grpc.ServicerContext) -> bytes:
        calls.append(request)
        return label_of(1, 2).SerializeToString()

    with serving(scripted(infer)) as address, remote(address) as tier:
        assert [ask(tier, number) for number in range(3)] == [1, 1, 1]
        with tier._channels.use() as channel:
            assert channel.stream is not None
            assert not channel.stream.is_offered
    assert len(calls) == 3


@contextmanager
def bare_stream(handler: grpc.GenericRpcHandler) -> Iterator[InferStream]:
    """The stream alone, with no tier around it that would ask again."""
    with serving(handler) as address, grpc.insecure_channel(address, client_options()) as channel:
        stream = InferStream("cloud", channel)
        yield stream
        stream.close()


def by_hand(serve: Callable[..., object]) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(
        SERVICE, {"ModelStreamInfer": grpc.stream_stream_rpc_method_handler(serve)}
    )


def ask_bare(stream: InferStream, timeout_s: float = 10.0) -> pb.ModelInferResponse:
    return stream.ask(pb.ModelInferRequest(model_name="model"), time.monotonic() + timeout_s, ())[0]


def test_a_broken_stream_fails_every_call_on_it_and_the_next_call_opens_another():
    n_streams = 0

    async def serve(requests, context):
        nonlocal n_streams
        n_streams += 1
        n_requests = 0
        async for data in requests:
            n_requests += 1
            if n_streams > 1:
                request = pb.ModelInferRequest.FromString(data)
                answer = pb.ModelStreamInferResponse(infer_response=pb.ModelInferResponse(id=request.id))
                await context.write(answer.SerializeToString())
            elif n_requests == 3:
                await context.abort(grpc.StatusCode.INTERNAL, "a bug")

    with bare_stream(by_hand(serve)) as stream:
        outcomes = side_by_side(3, lambda number: ask_bare(stream))
        assert [type(outcome) for outcome in outcomes] == [TierUnavailable] * 3
        assert {str(outcome) for outcome in outcomes} == {"tier cloud: the stream ended: INTERNAL: a bug"}
        assert ask_bare(stream).id == "4"
        assert n_streams == 2
        assert stream.is_offered


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"\xff\xff\xff\xff garbage", "cannot be read"),
        (pb.ModelStreamInferResponse(error_message="who are you").SerializeToString(), "who are you"),
    ],
)
def test_an_answer_to_nobody_that_can_be_told_ends_the_stream(message, words):
    async def serve(requests, context):
        async for _ in requests:
            await context.write(message)

    with bare_stream(by_hand(serve)) as stream:
        with pytest.raises(TierUnavailable, match=words):
            ask_bare(stream)


def test_an_answer_that_nobody_waits_for_is_dropped():
    async def serve(requests, context):
        async for data in requests:
            number = pb.ModelInferRequest.FromString(data).id
            for name in ("of somebody else", number, number):
                answer = pb.ModelStreamInferResponse(infer_response=pb.ModelInferResponse(id=name))
                await context.write(answer.SerializeToString())

    with bare_stream(by_hand(serve)) as stream:
        assert [ask_bare(stream).id for _ in range(3)] == ["1", "2", "3"]


def test_a_server_that_ends_the_stream_as_it_drains_costs_no_call():
    async def serve(requests, context):
        async for data in requests:
            request = pb.ModelInferRequest.FromString(data)
            answer = pb.ModelStreamInferResponse(infer_response=pb.ModelInferResponse(id=request.id))
            await context.write(answer.SerializeToString())
            return  # each stream answers one request

    with bare_stream(by_hand(serve)) as stream:
        for number in range(1, 6):
            assert ask_bare(stream).id == str(number)
            time.sleep(0.05)  # until the end has come


def test_calls_on_a_stream_that_breaks_are_asked_again_by_themselves():
    async def serve(requests, context):
        async for _ in requests:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    handlers = {
        "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(serve),
        "ModelInfer": grpc.unary_unary_rpc_method_handler(
            lambda data, context: label_of(
                first_value(pb.ModelInferRequest.FromString(data)) % 3, 2
            ).SerializeToString()
        ),
    }
    with serving(grpc.method_handlers_generic_handler(SERVICE, handlers)) as address, remote(address) as tier:
        assert side_by_side(8, lambda number: ask(tier, number)) == [number % 3 for number in range(8)]


def test_a_server_that_is_not_there_is_unavailable_and_told_fast():
    with remote("127.0.0.1:1") as tier:
        started = time.perf_counter()
        with pytest.raises(TierUnavailable, match="tier cloud: UNAVAILABLE"):
            ask(tier, 1)
        assert time.perf_counter() - started < 3


def test_a_server_that_comes_back_is_found_again_on_a_stream():
    handler = Streaming(modulo, by_itself)
    with serving(handler) as address:
        with remote(address) as tier:
            assert ask(tier, 1) == 1
    with remote(address) as tier:
        with pytest.raises(TierUnavailable):
            ask(tier, 1)
        with serving(handler, address=address):
            end = time.monotonic() + 10
            label = None
            while label is None and time.monotonic() < end:
                try:
                    label = ask(tier, 1)
                except TierUnavailable:
                    time.sleep(0.05)
            assert label == 1
    assert len(handler.opened) == 2


def test_who_we_are_is_said_anew_where_the_server_does_not_know_us_any_more(tmp_path):
    token = tmp_path / "token"
    token.write_text("old")
    known = "Bearer old"

    def infer(data: bytes, context: grpc.ServicerContext) -> bytes:
        assert dict(context.invocation_metadata())["authorization"] == known
        return label_of(1, 2).SerializeToString()

    async def known_only(request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        if server.opened[-1]["authorization"] != known:
            raise Refused(grpc.StatusCode.UNAUTHENTICATED, "an old token")
        return await modulo(request)

    dialled = partial(dial, security=ClientSecurity(token_file=token))
    with streaming(known_only, infer, dial=dialled) as (server, tier):
        assert ask(tier, 1) == 1
        known = "Bearer new"
        token.write_text("new")
        assert ask(tier, 1) == 1  # by itself
        assert ask(tier, 2) == 2
        assert [opened["authorization"] for opened in server.opened] == ["Bearer old", "Bearer new"]


def test_a_tier_that_is_closed_leaves_no_thread_and_fails_the_call_under_way():
    held = threading.Event()

    async def hold(request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        held.set()
        await asyncio.sleep(20)
        return await modulo(request)

    with serving(Streaming(hold)) as address:
        tier = RemoteTier("cloud", address, "model", RULE, n_labels=3, deadline_s=10.0, stream=True)
        closer = threading.Thread(target=lambda: held.wait(10) and tier.close())
        closer.start()
        with pytest.raises((TierUnavailable, TierRejected, ValueError)):  # asked without the stream, it says nothing
            ask(tier, 1)
        closer.join(10)
        assert not [thread for thread in threading.enumerate() if thread.name == "coe-stream-cloud"]
