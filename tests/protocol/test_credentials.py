"""What a client shows and whom it believes, over real connections; a token never leaves in plaintext."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from pki import ECHO, Pki, echoing

from cloud.security.config import Security
from cloud.security.tls import grpc_credentials
from coe.cascade import Always
from coe.cascade.errors import ConfigError, TierUnavailable
from coe.config import Fields, Report
from coe.config.cascade import read_credentials
from coe.protocol.credentials import PLAINTEXT, ClientSecurity, dial, is_this_machine, proxy_of
from coe.protocol.remote import RemoteTier

NO_POOL = [("grpc.use_local_subchannel_pool", 1)]


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    made = Pki(tmp_path / "pki")
    made.device("pi-1")
    return made


@contextmanager
def tls_server(pki: Pki, *, mutual: bool = False) -> Iterator[str]:
    """It answers with the `authorization` of the call."""
    security = Security(pki["server.pem"], pki["server.key"], pki["ca.pem"] if mutual else None)
    with echoing(grpc_credentials(security), authorization) as address:
        yield address


def authorization(context: Any) -> str:
    return ", ".join(value for key, value in context.invocation_metadata() if key == "authorization")


def ask(target: str, security: ClientSecurity = PLAINTEXT, **more: Any) -> str:
    with dial(target, NO_POOL, security=security) as channel:
        answer: bytes = channel.unary_unary(ECHO)(b"", timeout=60, **more)
    return answer.decode()


def turned_away(target: str, security: ClientSecurity) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        ask(target, security)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_server_of_the_given_ca_is_believed_and_one_of_another_is_not(pki: Pki, tmp_path: Path):
    stranger = Pki(tmp_path / "stranger")
    with tls_server(pki) as address:
        assert ask(address, ClientSecurity(ca=pki["ca.pem"])) == ""
        turned_away(address, ClientSecurity(ca=stranger["ca.pem"]))
        turned_away(address, ClientSecurity(tls=True))  # the public CAs


def test_a_certificate_is_shown_under_mutual_tls(pki: Pki):
    with tls_server(pki, mutual=True) as address:
        assert ask(address, ClientSecurity(ca=pki["ca.pem"], certificate=pki["pi-1.pem"], key=pki["pi-1.key"])) == ""
        turned_away(address, ClientSecurity(ca=pki["ca.pem"]))


def test_the_name_of_the_server_may_be_another_than_its_address(pki: Pki):
    pki.server("gpu-host.example")
    with tls_server(pki) as address:
        turned_away(address, ClientSecurity(ca=pki["ca.pem"]))
        assert ask(address, ClientSecurity(ca=pki["ca.pem"], server_name="gpu-host.example")) == ""
        turned_away(address, ClientSecurity(ca=pki["ca.pem"], server_name="other.example"))


def test_a_list_of_hosts_is_known_by_one_name(pki: Pki):
    pki.server("gpu-host.example")
    with tls_server(pki) as first, tls_server(pki) as second:
        target = "ipv4:" + ",".join(address.replace("localhost", "127.0.0.1") for address in (first, second))
        assert ask(target, ClientSecurity(ca=pki["ca.pem"], server_name="gpu-host.example")) == ""
        with pytest.raises(ConfigError, match=r"tls\.server_name: expected the name"):
            dial(target, security=ClientSecurity(ca=pki["ca.pem"]))


def test_a_token_goes_with_each_call_beside_its_other_metadata(pki: Pki):
    with tls_server(pki) as address:
        security = ClientSecurity(ca=pki["ca.pem"], token="t0ken")
        assert ask(address, security) == "Bearer t0ken"
        assert ask(address, security, metadata=[("traceparent", "x")]) == "Bearer t0ken"


def test_a_token_goes_with_a_stream_too(pki: Pki):
    with tls_server(pki) as address:
        with dial(address, NO_POOL, security=ClientSecurity(ca=pki["ca.pem"], token="t0ken")) as channel:
            stream = channel.stream_stream(ECHO)(iter([b""]), timeout=60)
            assert [answer.decode() for answer in stream] == ["Bearer t0ken"]


def test_a_token_is_shown_in_plaintext_to_this_machine_alone():
    with echoing(None, authorization) as address:
        assert ask(address, ClientSecurity(token="t0ken")) == "Bearer t0ken"
    for target in ("10.0.0.7:8001", "gpu-host:8001", "0.0.0.0:8001", "[::]:8001", "dns://10.0.0.1/localhost:8001"):
        with pytest.raises(ConfigError, match="expected TLS for a bearer token, got plaintext"):
            dial(target, security=ClientSecurity(token="t0ken"))


def test_a_token_in_plaintext_does_not_take_the_way_through_a_proxy(monkeypatch):
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody is there
    with echoing(None, authorization) as address:
        assert ask(address, ClientSecurity(token="t0ken")) == "Bearer t0ken"


@pytest.mark.parametrize(
    ("host", "proxy", "through"),
    [
        ("127.0.0.1", "auto", ""),
        ("localhost", "auto", ""),
        ("192.168.1.7", "auto", ""),
        ("[fd00::1]", "auto", ""),
        ("gpu-host", "auto", ""),
        ("gpu.local", "auto", ""),
        ("8.8.8.8", "auto", "http://127.0.0.1:9"),
        ("cloud.example.org", "auto", "http://127.0.0.1:9"),
        ("skip.example.com", "auto", ""),
        ("cloud.example.org", "none", ""),
        ("gpu-host", "http://proxy:3128", "http://proxy:3128"),
    ],
)
def test_a_proxy_of_the_environment_is_for_public_hosts_and_one_that_is_asked_for_for_all(
    monkeypatch, host, proxy, through
):
    for name in ("NO_PROXY", "no_grpc_proxy", "grpc_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "example.com")
    assert proxy_of([f"{host}:8001"], proxy) == through


def test_a_tier_that_fails_behind_a_proxy_names_it():
    tier = RemoteTier("cloud", "cloud.example.org:1", "m", Always(), n_labels=2, proxy="http://127.0.0.1:9")
    with contextlib.closing(tier), pytest.raises(TierUnavailable, match=r"through the proxy http://127\.0\.0\.1:9"):
        tier.is_ready(60)


def test_a_list_whose_names_nobody_knows_yet_is_a_tier_that_cannot_be_reached():
    tier = RemoteTier("cloud", ["nowhere.invalid:1", "gone.invalid:1"], "m", Always(), n_labels=2)
    with contextlib.closing(tier), pytest.raises(TierUnavailable):
        tier.is_ready(60)
    tier = RemoteTier("cloud", ["nowhere.invalid:1", "127.0.0.1:9"], "m", Always(), n_labels=2)
    with contextlib.closing(tier), pytest.raises(TierUnavailable, match=r"127\.0\.0\.1:9"):
        tier.is_ready(60)


def test_without_any_setting_it_is_plaintext_with_no_token():
    with echoing(None, authorization) as address:
        assert ask(address) == ""


def test_a_token_that_changes_in_its_file_is_sent_from_then_on(tmp_path: Path):
    path = tmp_path / "token"
    path.write_text("first\n")
    with echoing(None, authorization) as address, dial(address, security=ClientSecurity(token_file=path)) as channel:
        call = channel.unary_unary(ECHO)
        assert call(b"", timeout=60) == b"Bearer first"
        (tmp_path / "new").write_text("second\n")
        os.replace(tmp_path / "new", path)
        assert call(b"", timeout=60) == b"Bearer second"
        path.write_text("")
        assert call(b"", timeout=60) == b"Bearer second"
        path.unlink()
        assert call(b"", timeout=60) == b"Bearer second"


@pytest.mark.parametrize("content", ["", "two words", "t\u00f6ken", "a\x00b"])
def test_a_file_that_holds_no_token_is_told_as_it_is_dialled_and_not_repeated(tmp_path: Path, content: str):
    path = tmp_path / "token"
    path.write_text(content)
    with pytest.raises(ConfigError, match="expected one token") as refused:
        dial("127.0.0.1:1", security=ClientSecurity(token_file=path))
    assert not content or content not in str(refused.value)


def test_a_file_that_is_not_there_is_told_as_it_is_dialled(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"ca\.pem: cannot be read: No such file"):
        dial("127.0.0.1:1", security=ClientSecurity(ca=tmp_path / "ca.pem"))


def test_a_token_is_not_in_what_is_printed_of_the_settings():
    assert "t0ken" not in repr(ClientSecurity(token="t0ken")) + str(ClientSecurity(token="t0ken"))


@pytest.mark.parametrize(
    ("target", "is_here"),
    [
        ("localhost:8001", True),
        ("localhost", True),
        ("127.0.0.1:8001", True),
        ("[::1]:8001", True),
        ("dns:///localhost:8001", True),
        ("dns:localhost:8001", True),
        ("ipv4:127.0.0.1:1,127.0.0.2:2", True),
        ("ipv6:[::1]:1,[::ffff:127.0.0.1]:2", True),
        ("unix:/run/coe.sock", True),
        ("ipv4:127.0.0.1:1,10.0.0.7:2", False),
        ("ipv6:[::1]:1,[::ffff:10.0.0.7]:2", False),
        ("dns://8.8.8.8/localhost:8001", False),
        ("xds:///localhost:8001", False),
        ("localhost.example:8001", False),
        ("127.0.0.1.example:8001", False),
        ("2130706433:8001", False),
        ("", False),
    ],
)
def test_only_loopback_is_this_machine(target: str, is_here: bool):
    assert is_this_machine(target) is is_here


def read_tier(content: dict[str, object], folder: Path) -> tuple[ClientSecurity, Report]:
    report = Report("edge.yaml")
    return read_credentials(Fields(content, report, "tiers[1]"), folder), report


def test_the_settings_of_a_tier_are_read_with_paths_beside_the_config(pki: Pki):
    pki["pi-1.token"].write_text("t0ken\n")
    pki["pi-1.token"].chmod(0o600)
    tls = {"ca": "ca.pem", "certificate": "pi-1.pem", "key": "pi-1.key", "server_name": "localhost"}
    security, report = read_tier({"tls": tls, "token_file": "pi-1.token"}, pki.folder)
    assert (report.findings, report.warnings) == ([], [])
    with tls_server(pki, mutual=True) as address:
        with partial(dial, security=security)(address, NO_POOL) as channel:
            assert channel.unary_unary(ECHO)(b"", timeout=60) == b"Bearer t0ken"


@pytest.mark.parametrize(("value", "is_encrypted"), [(True, True), (False, False), ({}, True)])
def test_tls_alone_believes_the_public_cas(tmp_path: Path, value: object, is_encrypted: bool):
    security, report = read_tier({"tls": value}, tmp_path)
    assert report.findings == []
    assert security.is_encrypted is is_encrypted


@pytest.mark.parametrize(
    ("tls", "found"),
    [
        ({"ca": "none.pem"}, "tiers[1].tls.ca: expected a readable file"),
        ({"ca": "server.key"}, "tiers[1].tls.ca: expected certificates in PEM"),
        ({"certificate": "pi-1.pem"}, "tiers[1].tls.key: expected certificate and key together"),
        ({"key": "pi-1.key"}, "tiers[1].tls.certificate: expected certificate and key together"),
        ({"certificate": "pi-1.pem", "key": "server.key"}, "tiers[1].tls.key: expected the key of"),
        ({"cert": "pi-1.pem"}, "tiers[1].tls.cert: unknown setting"),
        ("ca.pem", "tiers[1].tls: expected a mapping"),
        (None, "tiers[1].tls: expected a section, got nothing"),  # not plaintext: it was meant to be closed
    ],
)
def test_a_wrong_setting_is_a_finding_with_its_trail(pki: Pki, tls: object, found: str):
    _, report = read_tier({"tls": tls}, pki.folder)
    (line,) = report.findings
    assert line.startswith(found)


def test_a_secret_that_others_can_read_is_a_warning(pki: Pki):
    pki["pi-1.token"].write_text("t0ken\n")
    pki["pi-1.token"].chmod(0o644)
    pki["pi-1.key"].chmod(0o604)
    content = {"tls": {"certificate": "pi-1.pem", "key": "pi-1.key"}, "token_file": "pi-1.token"}
    _, report = read_tier(content, pki.folder)
    assert [line.split(":")[0] for line in report.warnings] == ["tiers[1].tls.key", "tiers[1].token_file"]


def test_many_threads_may_call_at_once(pki: Pki):
    answers: list[bytes] = []
    with tls_server(pki) as address:
        with dial(address, security=ClientSecurity(ca=pki["ca.pem"], token="t0ken")) as channel:
            call = channel.unary_unary(ECHO)
            threads = [threading.Thread(target=lambda: answers.append(call(b"", timeout=60))) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert answers == [b"Bearer t0ken"] * 8
