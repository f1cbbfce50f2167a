"""The server in the test's own process, its members answering from tables: what it serves, limits, refuses, drains."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from loops import running
from strategies import one_hot, rows, table_tier

from cloud.config import read_config
from cloud.engines import embedded
from cloud.server import Server
from coe.cascade import (
    Agreement,
    Always,
    Cascade,
    ConfigError,
    ModelError,
    Tier,
    TierOverloaded,
    TierRejected,
    TierTimeout,
    TierUnavailable,
)
from coe.protocol.remote import RemoteTier
from coe.protocol.service import SERVICE

CONFIG = """
task: numbers
labels: [zero, one, two]
input: {kind: tensor, shape: [1], dtype: int64}
model: numbers
tiers:
  - {name: medium, members: [a.onnx, b.onnx, c.onnx], agreement: 2/3}
  - {name: best, members: [d.onnx]}
server: {grpc_port: 0, grace_s: 5}
"""
MEDIUM = [one_hot([0, 1, 2, 0]), one_hot([0, 1, 1, 1]), one_hot([0, 2, 1, 2])]
BEST = [one_hot([0, 1, 1, 2])]
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def tables_for(name: str) -> Tier:
    return table_tier(MEDIUM, Agreement(Fraction(2, 3)), name) if name == "medium" else table_tier(BEST, Always(), name)


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    def write(text: str = CONFIG, **changes: str) -> Path:
        path = tmp_path / "cloud.yaml"
        path.write_text(text + "".join(f"{key}: {value}\n" for key, value in changes.items()), encoding="utf-8")
        return path

    return write


@pytest.fixture
def start(config, monkeypatch) -> Callable[..., object]:
    """Starts a server whose members are tables; `wrap` puts something around each tier."""

    @contextmanager
    def started(wrap: Callable[[Tier], Tier] = lambda tier: tier, **changes: str) -> Iterator[Server]:
        monkeypatch.setattr(embedded, "open_tier", lambda tier, cascade, say: wrap(tables_for(tier.name)))
        with running(Server(read_config(config(**changes)))) as server:
            yield server

    return started


@contextmanager
def remote(server: Server, model: str = "numbers", **options: object) -> Iterator[RemoteTier]:
    fields: dict[str, object] = {"n_labels": 3, "deadline_s": 10.0} | options
    tier = RemoteTier("cloud", f"127.0.0.1:{server.port}", model, Always(), **fields)  # type: ignore[arg-type]
    try:
        yield tier
    finally:
        tier.close()


class Held:
    """A tier that holds every vote until `open` is set."""

    def __init__(self, tier: Tier) -> None:
        self.tier, self.name, self.rule, self.n_tiers, self.waits = tier, tier.name, tier.rule, 1, False
        self.entered, self.open, self.closed = threading.Event(), threading.Event(), threading.Event()

    def vote(self, batch, rule):
        if batch.ids[0].startswith("blank"):  # the server warms up, and finds it slow
            time.sleep(0.003)
            return self.tier.vote(batch, rule)
        self.entered.set()
        assert self.open.wait(20)
        assert not self.closed.is_set(), "closed before it was drained"
        return self.tier.vote(batch, rule)

    def complete(self, batch, vote):
        return self.tier.complete(batch, vote)

    def close(self) -> None:
        self.closed.set()
        self.tier.close()


def health_of(server: Server, name: str) -> int:
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        request = health_pb2.HealthCheckRequest(service=name)
        return health_pb2_grpc.HealthStub(channel).Check(request, timeout=10).status


def test_the_whole_cascade_answers_as_the_same_cascade_at_home(start):
    at_home = Cascade([tables_for("medium"), tables_for("best")]).decide(rows(4))
    with start() as server, remote(server) as tier:
        vote = tier.vote(rows(4), Always())
        assert tier.n_tiers == 2
    assert vote.labels.tolist() == at_home.labels.tolist() == [0, 1, 1, 2]
    assert vote.exit_tier.tolist() == at_home.exit_tier.tolist() == [1, 1, 1, 2]
    np.testing.assert_array_equal(vote.tier_votes, at_home.tier_votes)
    assert vote.asked.tolist() == at_home.asked.tolist()


def test_a_tier_served_alone_asks_all_its_members_for_the_vote_is_what_is_wanted(start):
    with start() as server, remote(server, "numbers-medium") as tier:
        whole = tier.vote(rows(4), Always())
        ones = [tier.vote(rows(1, row), Always()) for row in range(4)]
    assert whole.asked.tolist() == [3, 3, 3, 3]
    assert whole.count.tolist() == [3, 2, 2, 1]
    assert [vote.count.tolist() for vote in ones] == [[3], [2], [2], [1]]
    assert [vote.asked.tolist() for vote in ones] == [[3]] * 4


def test_a_cascade_split_between_two_servers_answers_as_one(start):
    with start() as server, remote(server, "numbers-medium") as medium, remote(server, "numbers-best") as best:
        medium.rule = Agreement(Fraction(2, 3))
        split = Cascade([medium, best]).decide(rows(4))
    at_home = Cascade([tables_for("medium"), tables_for("best")]).decide(rows(4))
    assert split.labels.tolist() == at_home.labels.tolist()
    assert split.exit_tier.tolist() == at_home.exit_tier.tolist()


def test_many_callers_at_once_each_get_their_own(start):
    wrong: list[object] = []
    with start() as server, remote(server) as tier:
        wanted = tier.vote(rows(4), Always()).labels

        def ask(row: int) -> None:
            try:
                vote = tier.vote(rows(1 + row % 2, row), Always())
                if vote.labels.tolist() != wanted[row : row + 1 + row % 2].tolist():
                    wrong.append(vote)
            except Exception as error:  # noqa: BLE001 - told to the test
                wrong.append(error)

        threads = [threading.Thread(target=ask, args=(turn % 3,)) for turn in range(48)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert not wrong


def test_health_is_serving_for_the_server_the_service_and_each_model(start):
    with start() as server:
        for name in ("", SERVICE, "numbers", "numbers-medium", "numbers-best"):
            assert health_of(server, name) == SERVING
        with pytest.raises(grpc.RpcError) as caught:
            health_of(server, "nobody")
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_stopping_lets_a_call_under_way_finish_before_the_members_are_closed(start):
    held: list[Held] = []

    def hold(tier: Tier) -> Tier:
        held.append(Held(tier))
        return held[-1]

    answers: list[list[int]] = []
    with start(hold) as server, remote(server) as tier:
        asker = threading.Thread(target=lambda: answers.append(tier.vote(rows(1), Always()).labels.tolist()))
        asker.start()
        assert held[0].entered.wait(20)
        stopper = threading.Thread(target=lambda: server.loop.run(server.stop()))
        stopper.start()
        with remote(server) as late:
            end = time.monotonic() + 10
            refused = False
            while not refused and time.monotonic() < end:
                try:
                    late.metadata()
                except TierUnavailable:
                    refused = True
            assert refused
        held[0].open.set()
        asker.join(20)
        stopper.join(20)
    assert answers == [[0]]
    assert all(tier.closed.is_set() for tier in held)


def test_a_call_that_is_cut_off_is_still_computing_when_the_members_are_closed_only_after_it(start):
    held: list[Held] = []

    def hold(tier: Tier) -> Tier:
        held.append(Held(tier))
        return held[-1]

    with start(hold) as server, remote(server, deadline_s=0.3) as tier:
        with pytest.raises(TierTimeout):  # the caller gives up; the server's thread is still at the tier
            tier.vote(rows(1), Always())
        assert held[0].entered.is_set()
        stopper = threading.Thread(target=lambda: server.loop.run(server.stop()))
        stopper.start()
        stopper.join(0.5)
        assert not held[0].closed.is_set()
        held[0].open.set()
        stopper.join(20)
        assert held[0].closed.is_set()


def test_stopping_twice_is_fine(start):
    with start() as server:
        server.loop.run(server.stop())
        server.loop.run(server.stop())


def test_calls_beyond_max_calls_are_refused_as_an_overload(start):
    held: list[Held] = []

    def hold(tier: Tier) -> Tier:
        held.append(Held(tier))
        return held[-1]

    answers: list[object] = []
    with start(hold, limits="{max_calls: 2}") as server, remote(server) as tier:
        askers = [
            threading.Thread(target=lambda: answers.append(tier.vote(rows(1), Always()).labels.tolist()))
            for _ in range(2)
        ]
        for asker in askers:
            asker.start()
        end = time.monotonic() + 10
        refusal = None
        while refusal is None and time.monotonic() < end:
            try:
                tier.vote(rows(1), Always()) if held[0].entered.is_set() and _both_are_in(server) else time.sleep(0.01)
            except TierOverloaded as error:
                refusal = error
        held[0].open.set()
        for asker in askers:
            asker.join(20)
    assert refusal is not None
    assert answers == [[0], [0]]


def _both_are_in(server: Server) -> bool:
    """One is at the tier, the other queues behind it."""
    return server.calls.n_inside == 2


def test_an_idle_server_takes_a_batch_larger_than_its_queue(start):
    with start(limits="{max_queued: 2, max_batch: 4}") as server, remote(server) as tier:
        assert tier.vote(rows(4), Always()).labels.tolist() == [0, 1, 1, 2]


def test_limits_of_rows_and_message_are_the_configs(start):
    with start(limits="{max_rows: 3, max_message_mb: 0.01}") as server, remote(server) as tier:
        with pytest.raises(TierRejected, match="at most 3 rows"):
            tier.vote(rows(4), Always())
        with pytest.raises(TierRejected, match="larger than max"):
            tier.vote(rows(4000), Always())
        assert tier.vote(rows(3), Always()).labels.tolist() == [0, 1, 1]


def test_reflection_by_flag_lists_the_service_and_describes_it(start):
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    def reflect(port: int, **ask: str) -> reflection_pb2.ServerReflectionResponse:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            request = reflection_pb2.ServerReflectionRequest(**ask)
            return next(iter(stub.ServerReflectionInfo(iter([request]), timeout=10)))

    text = CONFIG.replace("grace_s: 5", "grace_s: 5, reflection: true")
    assert text != CONFIG
    with start(text=text) as server:
        told = reflect(server.port, list_services="")
        names = {service.name for service in told.list_services_response.service}
        assert {SERVICE, "grpc.health.v1.Health"} <= names
        described = reflect(server.port, file_containing_symbol=SERVICE)
        assert described.file_descriptor_response.file_descriptor_proto
    with start() as server, pytest.raises(grpc.RpcError) as caught:
        reflect(server.port, list_services="")
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_port_that_is_taken_is_a_config_error_and_the_members_are_closed(start, config, monkeypatch):
    held: list[Held] = []

    def hold(tier: Tier) -> Tier:
        held.append(Held(tier))
        return held[-1]

    with start() as server:
        monkeypatch.setattr(embedded, "open_tier", lambda tier, cascade, say: hold(tables_for(tier.name)))
        text = CONFIG.replace("grpc_port: 0", f"grpc_port: {server.port}")
        with (
            pytest.raises(ConfigError, match=f"expected a free port, got 127.0.0.1:{server.port}"),
            running(Server(read_config(config(text)))),
        ):
            pass
    assert len(held) == 2
    assert all(tier.closed.is_set() for tier in held)


def test_members_loaded_before_one_that_cannot_be_are_closed(config, monkeypatch):
    opened = Held(tables_for("medium"))

    def open_tier(tier, cascade, say):
        if tier.name == "best":
            raise ModelError("d.onnx: changed")
        return opened

    monkeypatch.setattr(embedded, "open_tier", open_tier)
    with pytest.raises(ModelError):
        Server(read_config(config()))
    assert opened.closed.is_set()


@pytest.mark.parametrize("host", ["::1", "[::1]", "localhost"])
def test_it_listens_on_the_hosts_a_person_would_write(start, host):
    text = CONFIG.replace("grpc_port: 0", f'grpc_port: 0, host: "{host}"')
    try:
        with start(text=text) as server:
            address = f"{'[::1]' if ':' in host else host}:{server.port}"
            tier = RemoteTier("cloud", address, "numbers", Always(), n_labels=3)
            try:
                assert tier.vote(rows(1), Always()).labels.tolist() == [0]
            finally:
                tier.close()
    except ConfigError:
        if host == "localhost" or _has_ipv6():
            raise


def _has_ipv6() -> bool:
    import socket

    try:
        with socket.socket(socket.AF_INET6) as trial:
            trial.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_every_finding_of_a_bad_config_is_told_at_once(config):
    path = config(CONFIG.replace("2/3", "3/2").replace("grace_s", "grase_s"), limits="{max_batch: 0, max_rows: many}")
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert [line.split(":")[0] for line in caught.value.findings] == [
        "tiers[0].agreement",
        "limits.max_batch",
        "limits.max_rows",
        "server.grase_s",
    ]
    assert 'did you mean "grace_s"' in str(caught.value)
