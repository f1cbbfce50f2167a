"""RemoteTier.redial: a new channel in place of the old one, whatever is under way; and whether the tier takes calls."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import pytest
from hosts import N_LABELS, Host, hosts, label_answer
from loopback import VERSION, scripted, served, servicer, serving
from strategies import one_hot, rows, table_tier
from streaming import Streaming

from coe.cascade import Agreement, Batch, Cascade, ConfigError, TierTimeout, TierUnavailable
from coe.protocol import inference_pb2 as pb
from coe.protocol.codec import add_output
from coe.protocol.credentials import ClientSecurity, dial
from coe.protocol.remote import RemoteTier

RULE = Agreement(Fraction(1))


@contextmanager
def remote(address: str | Sequence[str], model: str = "model", **options: object) -> Iterator[RemoteTier]:
    fields: dict[str, object] = {"n_labels": N_LABELS, "deadline_s": 10.0} | options
    tier = RemoteTier("cloud", address, model, RULE, **fields)  # type: ignore[arg-type]
    try:
        yield tier
    finally:
        tier.close()


def who(tier: RemoteTier) -> int:
    return int(tier.vote(rows(1), RULE).labels[0])


class Dialled:
    """Opens channels, and knows which of them are closed."""

    def __init__(self) -> None:
        self.targets: list[str] = []
        self.closed: list[int] = []

    def __call__(self, target: str, options: object) -> grpc.Channel:
        number = len(self.targets)
        self.targets.append(target)
        channel = grpc.insecure_channel(target, options)
        close = channel.close
        channel.close = lambda: (self.closed.append(number), close())
        return channel


def test_calls_after_it_go_on_a_new_channel_and_the_old_one_is_closed():
    dialled = Dialled()
    with hosts(1) as (host,), remote(host.address, dial=dialled) as tier:
        assert who(tier) == 0
        tier.redial()
        assert (len(dialled.targets), dialled.closed) == (2, [0])
        assert who(tier) == 0
        tier.redial()  # with no call in between
        tier.redial()
        assert dialled.closed == [0, 1, 2]
        assert who(tier) == 0
    assert dialled.closed == [0, 1, 2, 3]


def test_a_call_under_way_finishes_on_the_old_channel_which_is_closed_then():
    arrived, may_answer = threading.Event(), threading.Event()

    def wait(context: grpc.ServicerContext) -> None:
        arrived.set()
        assert may_answer.wait(20)

    dialled = Dialled()
    with hosts(1) as (host,), remote(host.address, dial=dialled) as tier, ThreadPoolExecutor(1) as pool:
        host.refuse = wait
        call = pool.submit(who, tier)
        assert arrived.wait(20)
        host.refuse = lambda context: None
        tier.redial()
        assert who(tier) == 0
        assert dialled.closed == []
        may_answer.set()
        assert call.result(20) == 0
        assert dialled.closed == [0]


def test_no_call_is_lost_however_often_it_happens_and_nothing_is_left_behind():
    def ask(tier: RemoteTier, stopped: threading.Event) -> int:
        n = 0
        while not stopped.is_set():
            assert who(tier) == 0
            n += 1
        return n

    stopped = threading.Event()
    with hosts(1) as (host,), remote(host.address) as tier, ThreadPoolExecutor(4) as pool:
        who(tier)
        before = len(os.listdir("/proc/self/fd"))
        calls = [pool.submit(ask, tier, stopped) for _ in range(4)]
        for _ in range(20):
            tier.redial()
            time.sleep(0.005)
        stopped.set()
        assert sum(call.result(20) for call in calls) > 20
        assert len(tier._channels._n_calls) == 1
        end = time.monotonic() + 20
        while len(os.listdir("/proc/self/fd")) > before + 8:  # gRPC closes its sockets in its own time
            assert time.monotonic() < end
            time.sleep(0.02)


def test_after_closing_a_call_is_unavailable_and_a_new_channel_is_closed_at_once():
    dialled = Dialled()
    with hosts(1) as (host,), remote(host.address, dial=dialled) as tier:
        tier.close()
        with pytest.raises(TierUnavailable, match="tier cloud: closed"):
            who(tier)
        tier.redial()
        assert dialled.closed == [0, 1]


# Where to


def test_the_names_of_a_list_are_looked_up_anew(monkeypatch):
    a = Host(0)
    b = Host(1, f"127.0.0.2:{a.port}")
    found = {"cloud.test": "127.0.0.1"}
    look_up = socket.getaddrinfo

    def known(name: str, *more: object, **fields: object) -> object:
        if name == "lost.test":
            raise socket.gaierror(socket.EAI_AGAIN, "no network")
        return look_up(found.get(name, name), *more, **fields)

    monkeypatch.setattr(socket, "getaddrinfo", known)
    try:
        with remote(
            [f"cloud.test:{a.port}", "127.0.0.1:1"],
        ) as tier:
            assert who(tier) == 0
            a.close()
            found["cloud.test"] = "127.0.0.2"
            with pytest.raises(TierUnavailable):
                who(tier)
            tier.redial()
            assert who(tier) == 1
            found["cloud.test"] = "lost.test"
            monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: known("lost.test"))
            tier.redial()  # nobody knows the name just now: where it was found last stands
            assert who(tier) == 1
    finally:
        a.close()
        b.close()


def test_a_name_by_itself_is_grpcs_to_look_up_and_a_new_channel_does_so_at_once():
    from hosts import name_server

    a = Host(0)
    b = Host(1, f"127.0.0.2:{a.port}")
    records = {"cloud.test": ["127.0.0.1"]}
    try:
        with name_server(records) as dns, remote(f"dns://127.0.0.1:{dns}/cloud.test:{a.port}") as tier:
            assert who(tier) == 0
            a.close()
            records["cloud.test"] = ["127.0.0.2"]
            tier.redial()
            assert who(tier) == 1
    finally:
        a.close()
        b.close()


def test_a_channel_that_cannot_be_dialled_leaves_the_old_one_in_use(tmp_path: Path):
    token = tmp_path / "token"
    token.write_text("a-token-of-a-device\n")
    opens = partial(dial, security=ClientSecurity(token_file=token))
    with hosts(1) as (host,), remote(host.address, dial=opens) as tier:
        assert who(tier) == 0
        token.unlink()
        with pytest.raises(ConfigError, match="token"):
            tier.redial()
        token.write_text("a-token-of-a-device\n")
        assert who(tier) == 0


# Streams


def test_the_stream_is_opened_anew_on_the_new_channel():
    async def two(request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        response = pb.ModelInferResponse(model_name="model")
        add_output(response, "probabilities", np.eye(N_LABELS, dtype=np.float32)[[2]])
        return response

    handler = Streaming(two)
    with serving(handler) as address, remote(address, stream=True) as tier:
        assert [who(tier), who(tier)] == [2, 2]
        assert len(handler.opened) == 1
        tier.redial()
        assert [who(tier), who(tier)] == [2, 2]
        assert len(handler.opened) == 2


# Whether it takes calls


def test_a_server_of_ours_says_whether_it_takes_calls_for_the_model():
    service = servicer(served("model", Cascade([table_tier([one_hot([0])], RULE)]), 3))
    with serving(service.handler()) as address:
        with remote(address, fingerprint=VERSION) as tier, remote(address, "another") as other:
            assert tier.is_ready()
            assert not other.is_ready()
            service.plane.is_leaving = True
            assert not tier.is_ready()
            assert tier.vote(rows(1), RULE).labels.tolist() == [0]  # what comes is still answered
        with remote(address, fingerprint="another task") as stranger:
            assert not stranger.is_ready()


def test_a_server_without_the_question_is_ready_when_it_is_there():
    with serving(scripted(lambda request, context: label_answer(0))) as address, remote(address) as tier:
        assert tier.is_ready()


def test_a_server_that_is_not_there_or_silent_is_told_by_the_deadline():
    with remote("127.0.0.1:1") as tier, pytest.raises(TierUnavailable):
        tier.is_ready(5.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with remote(f"127.0.0.1:{silent.getsockname()[1]}") as tier:
            started = time.perf_counter()
            with pytest.raises(TierTimeout):
                tier.is_ready(0.1)
            assert time.perf_counter() - started < 5


# Deadlines


def test_retries_of_a_server_that_is_unavailable_end_with_the_deadline():
    def gone(context: grpc.ServicerContext) -> None:
        time.sleep(0.25)
        context.abort(grpc.StatusCode.UNAVAILABLE, "not now")

    with hosts(1) as (host,), remote(host.address) as tier:
        who(tier)
        host.refuse = gone
        started = time.monotonic()
        with pytest.raises((TierUnavailable, TierTimeout)):
            tier.vote(Batch(("x",), np.zeros((1, 1)), deadline=started + 0.4), RULE)
        assert time.monotonic() - started < 0.8  # three attempts take 0.9 s
        assert 1 + 2 <= host.n_calls <= 1 + 3
