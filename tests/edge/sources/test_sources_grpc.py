"""The local gRPC server: programs on the device ask the agent's cascade, over gRPC as they would ask coe-cloud."""

from __future__ import annotations

import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from fakes import BOUND_S, DECODER, UNANIMOUS, Far, ListSink, Seat, until
from grpc_health.v1 import health_pb2, health_pb2_grpc
from loopback import bytes_column, request_of

from coe.cascade import Always, Batch, Cascade, ConfigError, LocalTier, TierTimeout, TierUnavailable
from coe.cascade.errors import TierOverloaded, TierRejected
from coe.config.manifest import Task
from coe.models.input_spec import InputSpec
from coe.protocol import inference_pb2 as pb
from coe.protocol.codec import read_outputs
from coe.protocol.remote import RemoteTier
from coe.protocol.service import path
from edge.agent import Agent
from edge.sources.config import GrpcSourceConfig
from edge.sources.grpc_server import GrpcSource

TASK = Task("numbers", ("zero", "one", "two"), InputSpec("tensor", (1,), dtype="int64"))


def server_config(socket: Path | None = None, **changes: Any) -> GrpcSourceConfig:
    fields = {"model": "numbers", "task": TASK, "n_tiers": 2, **changes}
    return GrpcSourceConfig(port=0, path=socket, host="" if socket else "127.0.0.1", **fields)


class Home:
    """An agent with a local gRPC server, on a thread of its own: even numbers are decided here, odd ones by `far`."""

    def __init__(self, config: GrpcSourceConfig, far: Far, sink: ListSink, **agent: Any) -> None:
        self.source = GrpcSource(config)
        self.sink = sink
        tiers = [LocalTier("device", [Seat(0), Seat(1), Seat(2)], UNANIMOUS), far]
        keep = agent.pop("keep_last_answer", True)
        self.agent = Agent(Cascade(tiers, keep_last_answer=keep), DECODER, sink, **agent)
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self.agent.run(self.source)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    @property
    def address(self) -> str:
        return f"unix:{self.source.config.path}" if self.source.config.path else f"127.0.0.1:{self.source.port}"

    def stop(self) -> None:
        self.agent.stop.set()
        self._thread.join(BOUND_S)
        assert not self._thread.is_alive()

    def __enter__(self) -> Home:
        self._thread.start()
        until(lambda: self.source.queue.n_queued or self._is_open())
        return self

    def _is_open(self) -> bool:
        if self.error is not None:
            raise self.error
        return self.source.port != 0

    def __exit__(self, *_: object) -> None:
        self.stop()


@contextmanager
def home(answer: Callable[[Batch], object] = lambda batch: None, **options: Any) -> Iterator[Home]:
    """`answer` is called with what the device asks the cloud."""
    sink = options.pop("sink", None) or ListSink()
    config = options.pop("config", None) or server_config()
    with Home(config, Far(answer), sink, **options) as started:
        yield started


@contextmanager
def asking(at: Home, **options: Any) -> Iterator[RemoteTier]:
    fields = {"n_labels": 3, "fingerprint": TASK.fingerprint, "deadline_s": BOUND_S, **options}
    tier = RemoteTier("home", at.address, "numbers", Always(), **fields)
    try:
        yield tier
    finally:
        tier.close()


def batch_of(*numbers: int) -> Batch:
    return Batch(tuple(f"x{number}" for number in numbers), np.array(numbers, dtype=np.int64)[:, None])


def infer(at: Home, *numbers: int, timeout: float = BOUND_S, name: str = "", outputs: tuple[str, ...] = ()) -> Any:
    request = request_of("numbers", np.array(numbers, dtype=np.int64)[:, None], id=name)
    for output in outputs:
        request.outputs.add(name=output)
    with grpc.insecure_channel(at.address) as channel:
        call = channel.unary_unary(
            path("ModelInfer"), pb.ModelInferRequest.SerializeToString, pb.ModelInferResponse.FromString
        )
        return call(request, timeout=timeout)


def refusal(at: Home, *numbers: int, **options: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        infer(at, *numbers, **options)
    return caught.value


@pytest.mark.parametrize("stream", [False, True])
def test_rows_are_decided_by_the_agents_cascade_and_answered_in_order(stream):
    with home() as at, asking(at, stream=stream) as tier:
        vote = tier.vote(batch_of(0, 1, 2, 3, 4), Always())
        assert vote.labels.tolist() == [0, 1, 2, 0, 1]
        assert vote.exit_tier.tolist() == [1, 2, 1, 2, 1]
        assert vote.share.tolist() == [1.0] * 5
        assert np.isnan(vote.tier_votes[0, 1])
        assert vote.tier_votes[1, 0] < 1.0  # its members disagreed
        assert vote.tier_votes[1, 1] == 1.0
        assert tier.n_tiers == 2
        assert len(at.sink.outcomes) == 5


def test_an_answer_is_given_once_its_outcome_is_in_the_sink_and_under_the_callers_name():
    with home() as at:
        response = infer(at, 4, name="photo-17")
        assert response.id == "photo-17"
        assert at.sink.ids == ["photo-17"]
        infer(at, 0, 1, name="album")
        assert sorted(at.sink.ids[1:]) == ["album/0", "album/1"]
        infer(at, 0)
        infer(at, 0)
    assert len(set(at.sink.ids)) == 5  # those without a name have one each


def test_every_output_of_the_protocol_is_there():
    names = ("label", "vote", "score", "exit_tier", "members", "tier_votes", "label_name", "degraded")
    with home() as at:
        told = read_outputs(infer(at, 2, 3, outputs=names))
    assert tuple(told) == names
    assert told["label_name"].tolist() == [b"two", b"zero"]
    assert told["members"].tolist() == [[3, 3], [1, 1]]
    assert told["degraded"].tolist() == [b"", b""]
    assert told["score"].tolist() == [1.0, 1.0]


def test_it_says_who_it_is():
    with home() as at, asking(at) as tier:
        told = tier.metadata()
        assert (told.name, told.platform, list(told.versions)) == ("numbers", "coe", [TASK.fingerprint])
        with asking(at, fingerprint="another") as stranger, pytest.raises(ConfigError, match="another task"):
            stranger.metadata()
        with grpc.insecure_channel(at.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            assert health.Check(health_pb2.HealthCheckRequest(service="numbers")).status == 1


def unavailable(batch: Batch) -> None:
    raise TierUnavailable("cloud", "it is away")


def test_a_degraded_answer_says_so():
    with home(unavailable) as at:
        told = read_outputs(infer(at, 0, 1, outputs=("label", "degraded", "exit_tier")))
        assert told["degraded"][0] == b""
        assert told["degraded"][1].startswith(b"unavailable: tier cloud: it is away")
        assert told["exit_tier"].tolist() == [1, 1]


FAILURES = [
    (TierUnavailable("cloud", "it is away"), grpc.StatusCode.UNAVAILABLE),
    (TierTimeout("cloud", "too late"), grpc.StatusCode.DEADLINE_EXCEEDED),
    (TierOverloaded("cloud", "too many"), grpc.StatusCode.RESOURCE_EXHAUSTED),
    (TierRejected("cloud", "no"), grpc.StatusCode.FAILED_PRECONDITION),
]


@pytest.mark.parametrize(("error", "code"), FAILURES, ids=[error.reason for error, _ in FAILURES])
def test_where_the_cascade_gives_no_answer_the_caller_is_told_why(error, code):
    def fail(batch: Batch) -> None:
        raise error

    with home(fail, keep_last_answer=False) as at:
        told = refusal(at, 0, 1)
        assert told.code() is code
        assert error.message in told.details()
        assert len(at.sink.outcomes) == 2


def test_what_may_not_leave_is_not_allowed():
    with home(keep_last_answer=False, hold_back=lambda example, run: "a face") as at:
        told = refusal(at, 1)
        assert (told.code(), told.details()) == (grpc.StatusCode.PERMISSION_DENIED, "tier cloud: a face")


def test_an_example_that_cannot_be_read_is_the_callers_error_and_the_others_are_decided():
    with home() as at, grpc.insecure_channel(at.address) as channel:
        call = channel.unary_unary(path("ModelInfer"), None, None)
        bad = request_of("numbers", np.zeros((2, 3), np.float32)).SerializeToString()
        with pytest.raises(grpc.RpcError) as caught:
            call(bad, timeout=BOUND_S)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "expected shape [1], got [3]" in caught.value.details()
        text = request_of("numbers", bytes_column(b"no image")).SerializeToString()
        with pytest.raises(grpc.RpcError) as caught:
            call(text, timeout=BOUND_S)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        infer(at, 2)
    assert [outcome.error is None for outcome in at.sink.outcomes] == [False, False, False, True]


class Gate:
    """Holds up what the device asks the cloud until it is opened."""

    def __init__(self) -> None:
        self.n_here = 0
        self._event = threading.Event()

    def __call__(self, batch: Batch) -> None:
        self.n_here += 1
        assert self._event.wait(BOUND_S)

    def open(self) -> None:
        self._event.set()


def test_calls_beyond_the_queue_are_refused_with_a_hint_and_the_others_answered():
    gate = Gate()
    config = server_config(max_queued=2, max_rows=2)
    with home(gate, config=config, max_in_flight=0) as at, ThreadPoolExecutor(4) as callers:
        calls = [callers.submit(infer, at, 1)]
        until(lambda: gate.n_here == 1)  # the agent is busy with it
        calls += [callers.submit(infer, at, 3), callers.submit(infer, at, 2)]
        until(lambda: at.source.queue.n_queued == 2)
        told = refusal(at, 4)
        assert told.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "2 examples wait, at most 2 may" in told.details()
        hint = dict(told.trailing_metadata())["grpc-retry-pushback-ms"]
        assert 50 <= int(hint) <= 5000
        gate.open()
        assert [read_outputs(call.result(BOUND_S))["label"].tolist() for call in calls] == [[1], [0], [2]]
        assert at.source.queue.n_refused == 1
        assert refusal(at, 0, 2, 4).code() is grpc.StatusCode.INVALID_ARGUMENT  # more rows than it ever takes


def test_a_caller_that_has_given_up_costs_the_agent_nothing():
    gate = Gate()
    with home(gate, max_in_flight=0) as at, ThreadPoolExecutor(2) as callers:
        first = callers.submit(infer, at, 1)
        until(lambda: gate.n_here == 1)
        told = refusal(at, 2, name="late", timeout=0.2)
        assert told.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        gate.open()
        first.result(BOUND_S)
        infer(at, 4, name="next")
        assert at.sink.ids[-1] == "next"
        assert "late" not in at.sink.ids
        assert at.source.queue.n_given_up == 1


def test_on_a_stream_too_a_deadline_is_kept():
    gate = Gate()
    with home(gate, max_in_flight=0) as at, asking(at, stream=True, deadline_s=0.2) as tier:
        with pytest.raises(TierTimeout):
            tier.vote(batch_of(1), Always())
        gate.open()


def test_a_stop_answers_what_is_under_way_and_refuses_what_is_not_begun():
    gate = Gate()
    with home(gate, max_in_flight=1) as at, ThreadPoolExecutor(4) as callers:
        under_way = callers.submit(infer, at, 1)
        until(lambda: gate.n_here == 1)
        taken = callers.submit(infer, at, 3)  # the agent holds it, and waits for a place
        until(lambda: at.source.queue.n_taken == 2)
        waiting = callers.submit(refusal, at, 2)
        until(lambda: at.source.queue.n_queued == 1)
        at.agent.stop.set()
        gate.open()
        assert read_outputs(under_way.result(BOUND_S))["label"].tolist() == [1]
        assert read_outputs(taken.result(BOUND_S))["label"].tolist() == [0]
        assert waiting.result(BOUND_S).code() is grpc.StatusCode.UNAVAILABLE
        at.stop()
    assert at.sink.ids


def test_a_sink_that_fails_leaves_no_caller_hanging(monkeypatch):
    monkeypatch.setattr("edge.sources.grpc_server.GRACE_S", 0.1)
    sink = ListSink(lambda outcome: OSError(28, "No space left on device"))
    with home(sink=sink) as at:
        told = refusal(at, 2)
        assert told.code() is grpc.StatusCode.UNAVAILABLE
        until(lambda: at.error is not None)
        assert isinstance(at.error, OSError)


# Where it listens


def test_a_unix_socket_is_for_the_agents_user_and_group_and_gone_at_the_end(tmp_path):
    socket = tmp_path / "edge.sock"
    with home(config=server_config(socket)) as at:
        until(socket.exists)
        assert stat.S_IMODE(socket.stat().st_mode) == 0o660
        with asking(at) as tier:
            assert tier.vote(batch_of(5), Always()).labels.tolist() == [2]
    assert not socket.exists()


def test_the_socket_of_an_agent_that_was_killed_is_taken_over(tmp_path):
    import socket as sockets

    path = tmp_path / "edge.sock"
    with sockets.socket(sockets.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()
    with home(config=server_config(path)) as at:
        until(lambda: _answers(at))


def _answers(at: Home) -> bool:
    try:
        infer(at, 2, timeout=1.0)
    except grpc.RpcError:
        return False
    return True


def opened(config: GrpcSourceConfig) -> None:
    next(GrpcSource(config).examples(threading.Event()))


def test_an_address_that_is_taken_is_a_config_error(tmp_path):
    path = tmp_path / "edge.sock"
    with home(config=server_config(path)) as at:
        until(lambda: _answers(at))
        with pytest.raises(
            ConfigError, match=r"source\.address: expected a free address, got .*edge\.sock where another"
        ):
            opened(server_config(path))
        assert _answers(at)
    with home() as at, pytest.raises(ConfigError, match=r"source\.address: expected a free address, got 127\.0\.0\.1:"):
        opened(GrpcSourceConfig(TASK, at.source.port, None, "127.0.0.1", "numbers"))


def test_what_is_no_socket_is_left_alone(tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(ConfigError, match=r"source\.address: expected a socket or nothing at .*notes, got a file"):
        opened(server_config(tmp_path / "notes"))
    assert (tmp_path / "notes").read_text() == "mine"
    with pytest.raises(ConfigError, match=r"source\.address: expected a folder for the socket, got .*nowhere"):
        opened(server_config(tmp_path / "nowhere" / "edge.sock"))


def test_once_nobody_can_have_asked():
    assert list(GrpcSource(server_config(), once=True).examples(threading.Event())) == []


def test_many_callers_are_all_answered():
    with home() as at, asking(at) as tier, ThreadPoolExecutor(16) as callers:
        votes = list(callers.map(lambda number: tier.vote(batch_of(number), Always()), range(200)))
    assert [int(vote.labels[0]) for vote in votes] == [number % 3 for number in range(200)]
    assert len(at.sink.outcomes) == 200


def test_a_message_over_the_limit_is_refused_before_the_agent_sees_it():
    with home(config=server_config(max_message_bytes=10_000)) as at:
        told = refusal(at, *range(200), *range(2000))
        assert told.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        infer(at, 2)
    assert len(at.sink.outcomes) == 1


def test_the_cascade_knows_the_callers_deadline():
    seen = []
    with home(lambda batch: seen.append(batch.deadline - time.monotonic())) as at:
        infer(at, 1, timeout=5.0)
    assert 0 < seen[0] <= 5.0
