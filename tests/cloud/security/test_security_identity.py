"""Who a caller is taken for, by what it shows; over real connections where a connection matters."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pki import Clock, Pki, call, echoing

from cloud.limits import Rate
from cloud.security.certs import HEADER, add_token
from cloud.security.config import Security
from cloud.security.identity import (
    ANONYMOUS,
    Authenticator,
    Identity,
    bearer,
    hash_of,
    identity_of_call,
    peer_names,
    read_tokens,
)
from cloud.security.tls import grpc_credentials
from coe.cascade.errors import ConfigError, NotAllowed, Unauthenticated

CA = Path("ca.pem")  # where only names are looked at, the handshake was somebody else's


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return tmp_path / "tokens.yaml"


def by_token(tokens: Path, clock: Clock | None = None, **more: object) -> Authenticator:
    security = Security(tokens=tokens, reload_s=30, **more)  # type: ignore[arg-type]
    return Authenticator(security, *([clock] if clock else []))


def reloaded() -> None:
    """Waits for the thread that reads a changed file."""
    for thread in threading.enumerate():
        if thread.name == "coe-reload":
            thread.join(10)


def test_where_nobody_is_asked_callers_have_no_name():
    authenticator = Authenticator(Security())
    assert authenticator.identify([], None) == ANONYMOUS == Identity("", "anonymous")
    assert authenticator.identify([], "a token of something in between") == ANONYMOUS


def test_a_device_is_known_by_the_first_name_in_its_certificate():
    authenticator = Authenticator(Security(client_ca=CA))
    assert authenticator.identify(["pi-1", "pi-1.local"], None) == Identity("pi-1", "certificate")


def test_a_name_counts_for_nothing_where_no_ca_has_checked_it():
    assert Authenticator(Security()).identify(["pi-1"], None) == ANONYMOUS


def test_a_device_is_known_by_its_token(tokens: Path):
    token, other = add_token(tokens, "pi-1"), add_token(tokens, "pi-2")
    authenticator = by_token(tokens)
    assert authenticator.identify([], token) == Identity("pi-1", "token")
    assert authenticator.identify([], other) == Identity("pi-2", "token")


@pytest.mark.parametrize("token", [None, "", "guess", "pi-1", "\udcff", "x" * 10_000])
def test_nothing_and_a_wrong_token_are_turned_away(tokens: Path, token: str | None):
    add_token(tokens, "pi-1")
    with pytest.raises(Unauthenticated):
        by_token(tokens).identify([], token)


def test_the_hash_of_a_token_is_no_token(tokens: Path):
    token = add_token(tokens, "pi-1")
    with pytest.raises(Unauthenticated):
        by_token(tokens).identify([], hash_of(token))


def test_what_is_expected_is_said_and_what_came_is_not(tokens: Path):
    add_token(tokens, "pi-1")
    authenticator = by_token(tokens, client_ca=CA)
    with pytest.raises(Unauthenticated, match="expected a client certificate or `authorization: Bearer"):
        authenticator.identify([], None)
    with pytest.raises(Unauthenticated) as refused:
        authenticator.identify([], "hunter2")
    assert "hunter2" not in str(refused.value)


def test_a_certificate_and_a_token_must_be_of_one_device(tokens: Path):
    first, second = add_token(tokens, "pi-1"), add_token(tokens, "pi-2")
    authenticator = by_token(tokens, client_ca=CA)
    assert authenticator.identify(["pi-1"], first) == Identity("pi-1", "certificate")
    for wrong in (second, "guess"):
        with pytest.raises(Unauthenticated):
            authenticator.identify(["pi-1"], wrong)


@pytest.mark.parametrize(
    ("name", "is_allowed"),
    [("pi-1", True), ("pi-", True), ("gateway-7", True), ("gateway-77", False), ("PI-1", False), ("xpi-1", False)],
)
def test_only_devices_on_the_allow_list_may_call(name: str, is_allowed: bool):
    authenticator = Authenticator(Security(client_ca=CA, allow=("pi-*", "gateway-7")))
    if is_allowed:
        assert authenticator.identify([name], None).name == name
    else:
        with pytest.raises(NotAllowed, match=f'device "{name}" is not on the allow-list'):
            authenticator.identify([name], None)


def test_an_allow_list_without_any_proof_lets_nobody_in():
    with pytest.raises(Unauthenticated):
        Authenticator(Security(allow=("*",))).identify([], None)


@pytest.mark.parametrize("name", ["", "a\nforged log line", "a\x00b", "\u202eip", "x" * 254])
def test_a_name_that_could_fool_a_reader_of_logs_is_turned_away(name: str):
    with pytest.raises(Unauthenticated):
        Authenticator(Security(client_ca=CA)).identify([name], None)


@given(st.text(max_size=30), st.lists(st.text(max_size=8), max_size=3))
def test_whatever_is_shown_a_stranger_gets_no_name(token: str, names: list[str]):
    authenticator = Authenticator(Security(client_ca=CA, allow=("pi-[0-9]",)))
    try:
        identity = authenticator.identify(names, token)
    except (Unauthenticated, NotAllowed):
        return
    assert identity.name == names[0]
    assert len(identity.name) == 4


def test_a_new_token_counts_and_a_removed_one_does_not_without_a_restart(tokens: Path):
    clock = Clock()
    old = add_token(tokens, "pi-1")
    authenticator = by_token(tokens, clock)
    new = add_token(tokens, "pi-1", force=True)
    assert authenticator.identify([], old).name == "pi-1"  # looked at every 30 s
    clock.now += 31
    authenticator.rate_of("pi-1")
    reloaded()
    assert authenticator.identify([], new).name == "pi-1"
    with pytest.raises(Unauthenticated):
        authenticator.identify([], old)


def test_a_bad_file_of_tokens_leaves_the_old_ones_and_one_line_in_the_log(tokens: Path, caplog):
    clock = Clock()
    token = add_token(tokens, "pi-1")
    authenticator = by_token(tokens, clock)
    tokens.write_text("pi-1: [")
    for _ in range(3):
        clock.now += 31
        assert authenticator.identify([], token).name == "pi-1"
        reloaded()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "tokens: changed, but cannot be used" in record.getMessage()


def test_a_caller_does_not_wait_while_a_large_file_is_read(tmp_path: Path, monkeypatch):
    import cloud.security.identity as room

    tokens, clock, gate = tmp_path / "tokens.yaml", Clock(), threading.Event()
    token = add_token(tokens, "pi-1")
    authenticator = by_token(tokens, clock)
    monkeypatch.setattr(room, "read_tokens", lambda path: (gate.wait(10), read_tokens(path))[1])
    add_token(tokens, "pi-2")
    clock.now += 31
    started = time.monotonic()
    assert authenticator.identify([], token).name == "pi-1"
    assert time.monotonic() - started < 5
    gate.set()
    reloaded()


def test_two_tokens_of_a_device_both_count_while_one_replaces_the_other(tokens: Path):
    tokens.write_text(f"pi-1: [{hash_of('old')}, {hash_of('new').upper()}]\n")
    authenticator = by_token(tokens)
    assert [authenticator.identify([], token).name for token in ("old", "new")] == ["pi-1", "pi-1"]


def test_a_device_may_have_a_quota_of_its_own(tokens: Path):
    add_token(tokens, "pi-1")
    first = f"pi-1: {{sha256: {hash_of('t')}, quota: {{examples_per_s: 5, burst: 20}}}}\n"
    tokens.write_text(first + "pi-2: {quota: {examples_per_s: 1}}\n")
    authenticator = by_token(tokens)
    assert authenticator.identify([], "t").name == "pi-1"
    rates = [authenticator.rate_of(name) for name in ("pi-1", "pi-2", "pi-3")]
    assert rates == [Rate(5, 20), Rate(1, 1), None]


def test_one_token_for_two_devices_is_a_finding(tokens: Path):
    tokens.write_text(f"pi-1: {hash_of('t')}\npi-2: {hash_of('t')}\n")
    with pytest.raises(ConfigError, match="expected a token of its own, got the one of pi-1"):
        read_tokens(tokens)


def test_a_token_of_a_device_that_has_one_is_only_replaced_by_force_and_its_quota_stays(tokens: Path):
    tokens.write_text("pi-1: {quota: {examples_per_s: 5, burst: 20}}\n")
    first = add_token(tokens, "pi-1")
    with pytest.raises(ConfigError, match="--force replaces it"):
        add_token(tokens, "pi-1")
    second = add_token(tokens, "pi-1", force=True)
    authenticator = by_token(tokens)
    assert authenticator.identify([], second).name == "pi-1"
    assert authenticator.rate_of("pi-1") == Rate(5, 20)
    with pytest.raises(Unauthenticated):
        authenticator.identify([], first)
    assert tokens.read_text().startswith(HEADER)


def test_tokens_made_at_the_same_time_are_all_kept(tokens: Path):
    names = [f"pi-{number}" for number in range(8)]
    threads = [threading.Thread(target=add_token, args=(tokens, name)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(read_tokens(tokens).by_hash.values()) == names


def test_a_token_is_long_and_new_each_time_and_not_in_the_file(tokens: Path):
    made = [add_token(tokens, f"pi-{number}") for number in range(5)]
    assert len(set(made)) == 5
    for token in made:
        assert len(token) >= 43
        assert token not in tokens.read_text()
    assert tokens.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
        ("Basic abc", None),
        ("abc", None),
        (None, None),
        ("Bearer", None),
    ],
)
def test_only_a_bearer_header_holds_a_token(header: str | None, token: str | None):
    assert bearer(header) == token


def test_the_names_of_a_certificate_are_dns_then_uri_else_the_common_name():
    subject = ((("organizationName", "us"),), (("commonName", "pi-1"),))
    assert peer_names({"subject": subject}) == ("pi-1",)
    assert peer_names({"subject": subject, "subjectAltName": (("IP Address", "10.0.0.1"),)}) == ("pi-1",)
    names = (("URI", "urn:b"), ("DNS", "a"), ("IP Address", "10.0.0.1"))
    assert peer_names({"subject": subject, "subjectAltName": names}) == ("a", "urn:b")
    assert peer_names({}) == ()


def identified(authenticator: Authenticator):
    def identify(context: object) -> str:
        try:
            identity = authenticator.of_grpc(context)
        except (Unauthenticated, NotAllowed) as error:
            return type(error).__name__
        return f"{identity.name} by {identity.how}"

    return identify


def test_over_a_real_connection_each_call_is_known(tmp_path: Path, tokens: Path):
    pki = Pki(tmp_path / "pki")
    pki.device("pi-1")
    pki.device("stranger")
    token = add_token(tokens, "pi-1")
    mutual = Security(pki["server.pem"], pki["server.key"], pki["ca.pem"], tokens, allow=("pi-*",))
    with echoing(grpc_credentials(mutual), identified(Authenticator(mutual))) as address:
        shown = pki.credentials("pi-1")
        assert call(address, shown) == "pi-1 by certificate"
        assert call(address, shown, [("authorization", f"Bearer {token}")]) == "pi-1 by certificate"
        assert call(address, shown, [("authorization", "Bearer guess")]) == "Unauthenticated"
        assert call(address, pki.credentials("stranger")) == "NotAllowed"
    plain = Security(pki["server.pem"], pki["server.key"], None, tokens)
    with echoing(grpc_credentials(plain), identified(Authenticator(plain))) as address:
        assert call(address, pki.credentials(), [("authorization", f"Bearer {token}")]) == "pi-1 by token"
        assert call(address, pki.credentials()) == "Unauthenticated"
        assert call(address, pki.credentials("pi-1")) == "Unauthenticated"  # nobody asked for that certificate
        two = [("authorization", f"Bearer {token}"), ("authorization", "Bearer guess")]
        assert call(address, pki.credentials(), two) == "Unauthenticated"


def test_over_a_plaintext_connection_there_are_no_names():
    shown = []
    with echoing(None, lambda context: shown.append(identity_of_call(context))) as address:
        with grpc.insecure_channel(address) as channel:
            channel.unary_unary("/test.Echo/Echo")(b"", timeout=5)
    assert shown == [((), None)]
