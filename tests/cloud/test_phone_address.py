"""Where a phone opens the page: what the console says, the QR code, and why no phone can."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from pathlib import Path

import pytest

from cloud import phone_address
from cloud.phone_address import announcement, lan_addresses, qr_code, show_qr_code, with_token
from cloud.transports.device_page import DevicePage

DEVICE = DevicePage(None, Path("dist"))


def said(device: DevicePage = DEVICE, host: str = "0.0.0.0", *, has_tls: bool = True, authority: str = ""):
    return announcement(device, host, 8000, has_tls, authority, lambda: ["192.168.1.20", "10.0.0.7"])


def test_every_address_of_this_machine_in_its_networks_is_named():
    lines, url = said()
    assert lines == ["a phone opens https://192.168.1.20:8000/device or https://10.0.0.7:8000/device"]
    assert url == "https://192.168.1.20:8000/device"


def test_one_address_that_is_listened_on_is_the_only_one():
    assert said(host="10.0.0.7")[0] == ["a phone opens https://10.0.0.7:8000/device"]


def test_the_servers_own_ca_comes_first():
    assert "https://192.168.1.20:8000/ca" in said(authority="/ca")[0][1]


def test_plain_http_has_less_to_offer_and_says_so():
    lines, url = said(has_tls=False)
    assert url == "http://192.168.1.20:8000/device"
    assert "no camera" in lines[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_no_phone_opens_what_this_machine_alone_can_reach(host):
    lines, url = said(host=host)
    assert "a phone opens" not in lines[0]
    assert "--host 0.0.0.0" in lines[0]
    assert url == ""


def test_no_phone_opens_what_it_cannot_run():
    assert said(replace(DEVICE, why="it is not built")) == (["no page for phones: it is not built"], "")


def test_this_machines_addresses_are_no_loopback():
    assert not any(ipaddress.ip_address(one).is_loopback for one in lan_addresses())


def test_a_token_goes_into_the_fragment_alone():
    assert with_token("https://a:1/device", "a+/=&#") == "https://a:1/device#token=a%2B%2F%3D%26%23"
    assert with_token("https://a:1/device#old", "x") == "https://a:1/device#token=x"


def test_a_qr_code_is_for_terminals_and_needs_segno(capsys, monkeypatch):
    show_qr_code("https://a:1/device")  # captured: no terminal
    assert capsys.readouterr().out == ""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr(phone_address, "qr_code", lambda text: f"<{text}>")
    show_qr_code("https://a:1/device")
    assert capsys.readouterr().out == "<https://a:1/device>\n"
    monkeypatch.undo()
    monkeypatch.setitem(__import__("sys").modules, "segno", None)
    assert qr_code("https://a:1/device") == ""


def test_a_qr_code_is_drawn_in_half_blocks():
    pytest.importorskip("segno", reason="pip install segno")
    drawn = qr_code("https://192.168.1.20:8000/device")
    assert set(drawn) <= set("█▀▄ \n\x1b[0123456789;m")
    assert len(drawn.splitlines()) > 10
