"""One tier on several hosts: calls spread over them, to none that drains or is gone, and no call is lost."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction

import grpc
import pytest
from hosts import N_LABELS, NOT_SERVING, SERVING, Host, HostProcess, hosts, name_server
from strategies import rows

from coe.cascade import Agreement, ConfigError, TierOverloaded, TierUnavailable
from coe.protocol.channel import Target, is_address, reachable, target_of
from coe.protocol.remote import RemoteTier

RULE = Agreement(Fraction(1))


@contextmanager
def remote(address: str | Sequence[str], **options: object) -> Iterator[RemoteTier]:
    fields: dict[str, object] = {"n_labels": N_LABELS, "deadline_s": 10.0} | options
    tier = RemoteTier("cloud", address, "model", RULE, **fields)  # type: ignore[arg-type]
    try:
        yield tier
    finally:
        tier.close()


def who(tier: RemoteTier) -> int:
    return int(tier.vote(rows(1), RULE).labels[0])


def spread(tier: RemoteTier, n: int = 20) -> Counter[int]:
    """Which host answered how many of `n` calls."""
    return Counter(who(tier) for _ in range(n))


def answers_from(tier: RemoteTier, wanted: set[int], within_s: float = 15.0) -> Counter[int]:
    """The spread, once it is over exactly those hosts."""
    end = time.monotonic() + within_s
    while set(found := spread(tier)) != wanted:
        assert time.monotonic() < end, f"expected answers of {wanted}, got {found}"
        time.sleep(0.02)
    return found


# Where calls go


def test_calls_go_to_each_host_of_a_list_in_turn():
    with hosts(3) as (a, b, c), remote([a.address, b.address, c.address]) as tier:
        answers_from(tier, {0, 1, 2})  # connected to all
        assert spread(tier, 30) == {0: 10, 1: 10, 2: 10}
        assert tier.address == f"{a.address}, {b.address}, {c.address}"


def test_a_list_may_hold_addresses_of_both_kinds():
    four = Host(0)
    six = Host(1, "[::1]:0") if _has_ipv6() else Host(1, "127.0.0.2:0")
    try:
        with remote([four.address, six.address]) as tier:
            answers_from(tier, {0, 1})
    finally:
        four.close()
        six.close()


def test_a_host_that_is_not_there_does_not_matter_while_another_is():
    with hosts(1) as (a,), remote(["127.0.0.1:1", a.address]) as tier:
        assert set(spread(tier)) == {0}


def test_hosts_that_are_all_gone_are_unavailable_and_told_fast():
    with remote(["127.0.0.1:1", "127.0.0.1:2"]) as tier:
        started = time.perf_counter()
        with pytest.raises(TierUnavailable, match="UNAVAILABLE"):
            tier.vote(rows(1), RULE)
        assert time.perf_counter() - started < 5


def test_a_name_with_several_records_is_several_hosts():
    a = Host(0)
    b = Host(1, f"127.0.0.2:{a.port}")
    try:
        with name_server({"cloud.test": ["127.0.0.1", "127.0.0.2"]}) as dns:
            with remote(f"dns://127.0.0.1:{dns}/cloud.test:{a.port}") as tier:
                answers_from(tier, {0, 1})
                assert spread(tier) == {0: 10, 1: 10}
    finally:
        a.close()
        b.close()


def test_a_name_nobody_knows_is_unavailable_as_a_host_that_is_gone():
    with name_server({}) as dns, remote(f"dns://127.0.0.1:{dns}/cloud.test:8001") as tier:
        with pytest.raises(TierUnavailable, match="UNAVAILABLE"):
            tier.vote(rows(1), RULE)


# Draining


def test_a_host_that_is_not_serving_gets_no_new_calls_until_it_serves_again():
    with hosts(2) as (a, b), remote([a.address, b.address]) as tier:
        answers_from(tier, {0, 1})
        b.set_health(NOT_SERVING)
        answers_from(tier, {0})
        before = b.n_calls
        spread(tier)
        assert b.n_calls == before
        b.set_health(SERVING)
        answers_from(tier, {0, 1})


def test_a_host_that_never_heard_of_health_is_taken_to_be_well():
    with hosts(2, has_health=False) as (a, b), remote([a.address, b.address]) as tier:
        answers_from(tier, {0, 1})


def test_hosts_that_all_drain_are_unavailable():
    with hosts(2) as (a, b), remote([a.address, b.address]) as tier:
        answers_from(tier, {0, 1})
        for host in (a, b):
            host.set_health(NOT_SERVING)
        time.sleep(0.3)  # until the word is here
        with pytest.raises(TierUnavailable):
            who(tier)


def test_health_is_asked_of_our_own_servers_behind_a_list_and_of_nobody_else():
    with hosts(2) as (a, b):
        with remote([a.address, b.address]) as tier:
            answers_from(tier, {0, 1})
        assert (a.n_watched, b.n_watched) == (1, 1)
        with remote(a.address) as tier:  # one host: there is no other to go to
            who(tier)
    with hosts(2, platform="somebody else's") as (a, b):
        with remote([a.address, b.address], prepare=lambda x: x.astype("f4")) as tier:
            answers_from(tier, {0, 1})
        assert (a.n_watched, b.n_watched) == (0, 0)


# Losses


@pytest.mark.slow
def test_a_host_that_is_killed_loses_no_call_and_comes_back_into_rotation():
    stayer, victim = HostProcess(0), HostProcess(1)
    answers: list[int] = []
    errors: list[Exception] = []
    stopped = threading.Event()

    def keep_asking(tier: RemoteTier) -> None:
        while not stopped.is_set():
            try:
                answers.append(who(tier))
            except Exception as error:  # noqa: BLE001 - told to the test
                errors.append(error)

    try:
        with remote([f"127.0.0.1:{host.port}" for host in (stayer, victim)]) as tier:
            answers_from(tier, {0, 1})
            askers = [threading.Thread(target=keep_asking, args=(tier,)) for _ in range(4)]
            for asker in askers:
                asker.start()
            try:
                time.sleep(0.2)
                victim.kill()
                answers_from(tier, {0})
                victim = HostProcess(1, victim.port)
                answers_from(tier, {0, 1})
            finally:
                stopped.set()
                for asker in askers:
                    asker.join(20)
    finally:
        stayer.kill()
        victim.kill()
    assert not errors
    assert len(answers) > 50


def test_a_call_at_a_host_that_goes_away_is_asked_again_at_the_next():
    def gone(context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.UNAVAILABLE, "draining")

    with hosts(2) as (a, b), remote([a.address, b.address]) as tier:
        answers_from(tier, {0, 1})
        a.refuse = gone
        assert spread(tier, 10) == {1: 10}
        assert a.n_calls > 0


def test_an_overloaded_host_that_says_come_again_is_not_the_one_that_is_asked_then():
    def shed(context: grpc.ServicerContext) -> None:
        context.set_trailing_metadata((("grpc-retry-pushback-ms", "1"),))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much")

    with hosts(2) as (a, b), remote([a.address, b.address]) as tier:
        answers_from(tier, {0, 1})
        a.refuse = shed
        assert spread(tier, 10) == {1: 10}
        b.refuse = shed
        with pytest.raises(TierOverloaded) as caught:
            tier.vote(rows(1), RULE)
        assert caught.value.retry_after_s == 0.001


# What an address is


@pytest.mark.parametrize(
    ("addresses", "target"),
    [
        (["10.0.0.7:8001"], Target("10.0.0.7:8001", is_balanced=False)),
        (["[::1]:8001"], Target("[::1]:8001", is_balanced=False)),
        (["cloud.example.org:8001"], Target("cloud.example.org:8001", is_balanced=True)),
        (["10.0.0.1:8001", "10.0.0.2:8002"], Target("ipv4:10.0.0.1:8001,10.0.0.2:8002", is_balanced=True)),
        (["10.0.0.1:1", "10.0.0.1:1"], Target("ipv4:10.0.0.1:1", is_balanced=True)),
        (["[fd00::1]:8001", "10.0.0.2:8001"], Target("ipv6:[fd00::1]:8001,[::ffff:10.0.0.2]:8001", is_balanced=True)),
    ],
)
def test_one_address_is_dialled_as_it_is_and_several_as_a_list(addresses, target):
    assert target_of(addresses) == target


def test_a_name_in_a_list_is_looked_up():
    target = target_of(["localhost:8001", "10.0.0.2:8001"])
    assert "127.0.0.1]:8001" in target.uri or target.uri.startswith("ipv4:127.0.0.1:8001,")
    assert "10.0.0.2" in target.uri


def test_a_name_in_a_list_that_nobody_knows_is_named():
    with pytest.raises(ConfigError, match=r"address nowhere\.invalid:8001: the name cannot be looked up: "):
        target_of(["10.0.0.1:8001", "nowhere.invalid:8001"])


def test_an_address_has_a_host_and_a_port_that_can_be():
    assert is_address("a:1")
    for text in ("", "a", "a:", ":1", "a:0", "a:65536", "a:" + "9" * 5000, "a:b"):
        assert not is_address(text)


def _has_ipv6() -> bool:
    import socket

    try:
        with socket.socket(socket.AF_INET6) as trial:
            trial.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("host", "written"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("gpu-host", "gpu-host"),
        ("::1", "[::1]"),
        ("[::1]", "[::1]"),
        ("0.0.0.0", "gpu-host"),
        ("::", "gpu-host"),
    ],
)
def test_what_a_server_says_of_itself_is_an_address_that_can_be_pasted_into_a_config(monkeypatch, host, written):
    monkeypatch.setattr("socket.gethostname", lambda: "gpu-host")
    monkeypatch.setattr("socket.getaddrinfo", lambda *which: [])
    assert reachable(host) == written
    assert is_address(f"{written}:8001")


def test_a_machine_whose_name_nobody_knows_is_called_by_its_loopback_address(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "nobody-knows.invalid")
    assert (reachable("0.0.0.0"), reachable("::")) == ("127.0.0.1", "[::1]")
