"""A coe-cloud that is killed, and comes back: on its port, or on another address behind the same name."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from device import SLACK_S, Device, device
from hosts import name_server
from programs import Cloud

from edge.link import LinkStatus

pytestmark = pytest.mark.timing

DEADLINE_S = 0.4
BACK_S = 10.0


class CloudAt(Cloud):
    """`coe-cloud serve` on an address of this machine."""

    def __init__(self, folder: Path, host: str, port: int = 0) -> None:
        super(Cloud, self).__init__("cloud.main", ["serve", "--host", host, "--grpc-port", port], folder)
        self.port = port


def check_alone(opened: Device) -> None:
    """Every digit is decided in its time, by the device; in the end at once."""
    answered = [opened.decide(DEADLINE_S) for _ in range(20)]
    assert all(one.took_s < DEADLINE_S + SLACK_S for one in answered)
    assert not any(one.is_from_the_cloud for one in answered)
    assert opened.link.state.status is LinkStatus.OPEN
    assert sorted(one.took_s for one in answered)[10] < 0.1


def test_one_that_is_back_on_its_port_answers_again_soon(tmp_path):
    with CloudAt(tmp_path, "127.0.0.1") as first:
        with device(f"127.0.0.1:{first.port}") as opened:
            opened.decide_until_cloud(BACK_S, deadline_s=2.0)
            first.send(signal.SIGKILL)
            first.end()
            check_alone(opened)
            with CloudAt(tmp_path, "127.0.0.1", first.port):
                ready = time.monotonic()
                assert opened.decide_until_cloud(BACK_S, DEADLINE_S)[-1].at - ready < BACK_S


@pytest.mark.parametrize("in_a_list", [False, True], ids=["a name by itself", "a name in a list"])
def test_one_that_is_back_on_another_address_of_its_name_is_found(tmp_path, monkeypatch, in_a_list):
    """The name is looked up by gRPC where it stands by itself, and by us in a list; both anew with each probe."""
    records = {"cloud.test": ["127.0.0.1"]}
    _name_these(monkeypatch, records)
    with name_server(records) as dns, CloudAt(tmp_path, "127.0.0.1") as first:
        address = [f"cloud.test:{first.port}", "127.0.0.1:1"] if in_a_list else "127.0.0.1:1"
        if not in_a_list:  # gRPC is told which name server to ask
            monkeypatch.setattr("coe.protocol.remote.target_of", lambda _: _by_dns(dns, first.port))
        with device(address) as opened:
            opened.decide_until_cloud(BACK_S, deadline_s=2.0)
            first.send(signal.SIGKILL)
            first.end()
            check_alone(opened)
            with CloudAt(tmp_path, "127.0.0.2", first.port):
                records["cloud.test"] = ["127.0.0.2"]
                ready = time.monotonic()
                assert opened.decide_until_cloud(BACK_S, DEADLINE_S)[-1].at - ready < BACK_S


def test_one_that_drains_is_let_go_and_the_device_knows_why(tmp_path):
    with CloudAt(tmp_path, "127.0.0.1") as first, device(f"127.0.0.1:{first.port}") as opened:
        opened.decide_until_cloud(BACK_S, deadline_s=2.0)
        first.send(signal.SIGTERM)
        end = time.monotonic() + BACK_S
        while opened.link.state.status is not LinkStatus.OPEN:
            assert time.monotonic() < end
            assert opened.decide(DEADLINE_S).took_s < DEADLINE_S + SLACK_S
        check_alone(opened)


def _by_dns(dns: int, port: int) -> object:
    from coe.protocol.channel import Target

    return Target(f"dns://127.0.0.1:{dns}/cloud.test:{port}", is_balanced=True)


def _name_these(monkeypatch: pytest.MonkeyPatch, records: dict[str, list[str]]) -> None:
    import socket

    look_up = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda name, *more, **fields: look_up(records.get(name, [name])[0], *more, **fields),
    )
