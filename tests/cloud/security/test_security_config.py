"""The section `security:`: what is closed by default, and every file that could not be served with."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pki import Pki

from cloud.limits import Rate
from cloud.security import authority
from cloud.security.config import Security, check_exposure, read
from coe.cascade.errors import ConfigError
from coe.config import Fields, Report

DIGEST = hashlib.sha256(b"a token").hexdigest()


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path)


def read_section(content: object, folder: Path) -> tuple[Security, Report]:
    report = Report("cloud.yaml")
    return read(Fields(content, report, "security"), folder), report


def finding(content: object, folder: Path) -> str:
    """The one finding there is."""
    _, report = read_section(content, folder)
    (line,) = report.findings
    return line


def warnings(content: object, folder: Path) -> list[str]:
    _, report = read_section(content, folder)
    assert report.findings == []
    return report.warnings


def tls(certificate: str = "server.pem", key: str = "server.key", **more: str) -> dict[str, object]:
    return {"tls": {"certificate": certificate, "key": key, **more}}


def test_every_setting_is_read_with_paths_beside_the_config(pki: Pki):
    pki["tokens.yaml"].write_text(f"pi-1: {DIGEST}\n")
    content = {
        **tls(client_ca="ca.pem"),
        "tokens": "tokens.yaml",
        "allow": ["pi-*", "gateway-7"],
        "quota": {"examples_per_s": 50, "burst": 200},
        "reload_s": 5,
    }
    security, report = read_section(content, pki.folder)
    assert (report.findings, report.warnings) == ([], [])
    assert security == Security(
        certificate=pki["server.pem"],
        key=pki["server.key"],
        client_ca=pki["ca.pem"],
        tokens=pki["tokens.yaml"],
        allow=("pi-*", "gateway-7"),
        quota=Rate(50.0, 200),
        reload_s=5.0,
    )
    assert security.has_tls
    assert security.asks_who


def test_without_the_section_nobody_is_asked_and_only_loopback_is_served(tmp_path: Path):
    security, report = read_section({}, tmp_path)
    assert (security, report.findings, report.warnings) == (Security(), [], [])
    assert not security.asks_who


def test_a_misspelt_setting_is_a_finding_with_the_nearest_one(tmp_path: Path):
    assert finding({"tokn": "x"}, tmp_path) == 'security.tokn: unknown setting (did you mean "tokens"?)'


def test_a_file_that_is_not_there_is_a_finding_with_the_command_that_makes_it(pki: Pki):
    pki["server.pem"].unlink()
    assert finding(tls(), pki.folder) == (
        f"security.tls.certificate: expected a readable file, got {pki['server.pem']}: No such file or directory "
        "(`coe-cloud certs init DIR` makes one)"
    )


def test_everything_wrong_is_found_in_one_pass(pki: Pki):
    pki["server.pem"].write_text("not a certificate")
    pki["server.key"].write_text("not a key")
    pki["ca.pem"].write_text("")
    _, report = read_section({**tls(client_ca="ca.pem"), "tokens": "none.yaml", "reload_s": 0}, pki.folder)
    trails = [line.split(":")[0] for line in report.findings]
    assert sorted(trails) == [
        "security.reload_s",
        "security.tls.certificate",
        "security.tls.client_ca",
        "security.tls.key",
        "security.tokens",
    ]


def test_a_certificate_without_its_key_is_a_finding(pki: Pki):
    content = {"tls": {"certificate": "server.pem"}}
    assert finding(content, pki.folder) == "security.tls.key: expected a text, got nothing (add it)"


def test_the_key_of_another_certificate_is_a_finding(pki: Pki):
    pki.device("pi-1")
    assert "expected the key of `certificate`" in finding(tls(key="pi-1.key"), pki.folder)


def test_a_key_with_a_password_is_a_finding(pki: Pki):
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    pki["server.key"].write_bytes(pem)
    assert "security.tls.key: expected a key without a password" in finding(tls(), pki.folder)


def test_a_key_of_a_kind_grpc_cannot_serve_with_is_a_finding(pki: Pki):
    from cryptography.hazmat.primitives.asymmetric import ed25519
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = ed25519.Ed25519PrivateKey.generate()
    pki["server.key"].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    assert "security.tls.key: expected an EC or RSA key" in finding(tls(), pki.folder)


def test_a_key_that_others_can_read_is_a_warning(pki: Pki):
    pki["server.key"].chmod(0o644)
    (warning,) = warnings(tls(), pki.folder)
    assert warning.startswith("security.tls.key: ")
    assert f"chmod o=,g-w {pki['server.key']}" in warning


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o440])
def test_a_key_that_its_owner_or_a_group_reads_is_none(pki: Pki, mode: int):
    pki["server.key"].chmod(mode)
    assert warnings(tls(), pki.folder) == []


def test_an_expired_certificate_is_a_finding(pki: Pki):
    pki.server(days=5, made_days_ago=10)
    assert "security.tls.certificate: expected one that is valid today" in finding(tls(), pki.folder)


def test_a_certificate_of_the_future_is_a_finding_that_names_the_clock(pki: Pki):
    pki.server(made_days_ago=-10)
    assert "check this machine's clock" in finding(tls(), pki.folder)


@pytest.mark.parametrize(("days", "n_warnings"), [(13, 1), (15, 0)])
def test_a_certificate_that_expires_within_two_weeks_is_a_warning(pki: Pki, days: int, n_warnings: int):
    pki.server(days=days)
    assert len(warnings(tls(), pki.folder)) == n_warnings


def test_a_client_ca_that_is_no_ca_is_a_finding(pki: Pki):
    pki.device("pi-1")
    line = finding(tls(client_ca="pi-1.pem"), pki.folder)
    assert line.startswith("security.tls.client_ca: expected certificates of a CA (ca:true)")
    assert '"CN=pi-1"' in line


def test_an_expired_client_ca_is_a_finding(pki: Pki):
    long_ago = datetime.now(UTC) - timedelta(days=10)
    authority.make_authority("an old CA", days=5, now=long_ago).write(pki.folder, "old", force=False)
    assert "security.tls.client_ca: expected one that is valid today" in finding(tls(client_ca="old.pem"), pki.folder)


def test_each_certificate_of_a_client_ca_file_is_checked(pki: Pki):
    pki.device("pi-1")
    pki["both.pem"].write_bytes(pki.bytes("ca.pem") + pki.bytes("pi-1.pem"))
    assert '"CN=pi-1"' in finding(tls(client_ca="both.pem"), pki.folder)


def test_a_token_written_where_its_hash_belongs_is_never_repeated(pki: Pki):
    pki["tokens.yaml"].write_text("pi-1: hunter2-hunter2\n")
    line = finding({"tokens": "tokens.yaml"}, pki.folder)
    assert "security.tokens: " in line
    assert "pi-1.sha256: expected 64 hex digits" in line
    assert "hunter2" not in line


def test_an_allow_list_without_a_way_to_tell_devices_apart_is_a_finding(tmp_path: Path):
    assert "add tls.client_ca or tokens" in finding({"allow": ["pi-*"]}, tmp_path)


def test_an_empty_allow_list_is_a_finding_and_not_everybody(pki: Pki):
    assert "security.allow: expected at least one pattern" in finding(
        {**tls(client_ca="ca.pem"), "allow": []}, pki.folder
    )


def test_a_quota_of_nameless_callers_is_a_warning(tmp_path: Path):
    (warning,) = warnings({"quota": {"examples_per_s": 5}}, tmp_path)
    assert "all callers share one quota" in warning


def test_a_quota_without_a_burst_has_a_second_of_it(tmp_path: Path):
    security, _ = read_section({"quota": {"examples_per_s": 2.5}}, tmp_path)
    assert security.quota == Rate(2.5, 3)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost", "::ffff:127.0.0.1"])
def test_plaintext_is_served_on_loopback(host: str):
    check_exposure(host, Security(tokens=Path("tokens.yaml")), insecure=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.7", "gpu-host", "localhost.evil.org", "::ffff:10.0.0.7"])
def test_plaintext_beyond_loopback_is_refused_with_the_mend(host: str):
    with pytest.raises(ConfigError, match=r"coe-cloud certs init DIR.*--insecure"):
        check_exposure(host, Security(), insecure=False)


def test_plaintext_beyond_loopback_is_served_where_it_is_meant():
    check_exposure("0.0.0.0", Security(), insecure=True)
    check_exposure("0.0.0.0", Security(insecure=True), insecure=False)


def test_tokens_are_never_asked_for_in_plaintext_beyond_loopback():
    with pytest.raises(ConfigError, match=r"security\.tokens: expected TLS"):
        check_exposure("0.0.0.0", Security(tokens=Path("tokens.yaml"), insecure=True), insecure=True)


def test_tls_is_served_anywhere(pki: Pki):
    security, _ = read_section(tls(), pki.folder)
    check_exposure("0.0.0.0", security, insecure=False)


@pytest.mark.parametrize("key", ["tls", "tokens", "allow", "quota"])
def test_a_setting_that_was_left_empty_is_a_finding_and_not_open(tmp_path: Path, key: str):
    _, report = read_section({key: None}, tmp_path)
    assert any(line.startswith(f"security.{key}") for line in report.findings)


def test_an_empty_client_ca_is_a_finding_and_not_everybody(pki: Pki):
    assert finding({"tls": {"certificate": "server.pem", "key": "server.key", "client_ca": None}}, pki.folder) == (
        "security.tls.client_ca: expected a text, got nothing (add it)"
    )
