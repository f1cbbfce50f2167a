"""`coe-cloud certs`: what it makes, what it refuses, and that its files are believed by real handshakes."""

from __future__ import annotations

import argparse
import re
import shlex
import stat
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import grpc
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from pki import call, echoing

from cloud.security.certs import add_parser, run
from cloud.security.config import read
from cloud.security.identity import Authenticator
from cloud.security.tls import grpc_credentials
from coe.cascade.errors import ConfigError
from coe.config import Fields, Report, cascade

DOCS = Path(__file__).parents[3] / "docs" / "security.md"


def certs(*arguments: object) -> int:
    """`coe-cloud certs ...`."""
    parser = argparse.ArgumentParser(prog="coe-cloud")
    add_parser(parser.add_subparsers(dest="command", required=True))
    return run(parser.parse_args(["certs", *map(str, arguments)]))


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder after `certs init DIR`."""
    folder = tmp_path / "certs"
    assert certs("init", folder) == 0
    return folder


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_init_makes_a_ca_and_a_server_certificate_for_loopback_and_the_hosts(tmp_path: Path):
    certs("init", tmp_path, "--host", "gpu-host.example", "--host", "10.0.0.7", "--host", "*.fleet.example")
    authority, server = certificate(tmp_path / "ca.pem"), certificate(tmp_path / "server.pem")
    server.verify_directly_issued_by(authority)
    basic = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = authority.extensions.get_extension_for_class(x509.KeyUsage)
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
    assert (usage.critical, usage.value.key_cert_sign, usage.value.digital_signature) == (True, True, False)
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["gpu-host.example", "*.fleet.example", "localhost"]
    addresses = [ip_address(text) for text in ("10.0.0.7", "127.0.0.1", "::1")]
    assert names.get_values_for_type(x509.IPAddress) == addresses
    key = server.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"


def test_keys_are_for_their_owner_alone(made: Path):
    certs("device", made, "pi-1")
    certs("token", made, "pi-1")
    for name in ("ca.key", "server.key", "pi-1.key", "tokens.yaml"):
        assert stat.S_IMODE((made / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(made.stat().st_mode) == 0o700


def test_a_key_is_never_readable_by_others_while_it_is_written(tmp_path: Path, monkeypatch):
    import os

    modes = []
    opened = os.open

    def watched(path, flags, mode=0o777, **more):
        number = opened(path, flags, mode, **more)
        if str(path).endswith((".key", ".new")):
            modes.append(stat.S_IMODE(os.fstat(number).st_mode))
        return number

    monkeypatch.setattr(os, "open", watched)
    certs("init", tmp_path / "certs")
    assert modes == [0o600, 0o600]


@pytest.mark.parametrize("arguments", [["init"], ["server"], ["device", "pi-1"], ["token", "pi-1"]])
def test_what_is_there_is_only_replaced_by_force(made: Path, arguments: list[str]):
    certs("device", made, "pi-1")
    certs("token", made, "pi-1")
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    command, *name = arguments
    with pytest.raises(ConfigError, match="--force"):
        certs(command, made, *name)
    assert {path.name: path.read_bytes() for path in made.iterdir()} == before
    certs(command, made, *name, "--force")
    after = {path.name: path.read_bytes() for path in made.iterdir()}
    assert after.keys() == before.keys()
    assert after != before


def test_a_server_certificate_is_renewed_by_the_ca_that_is_there(made: Path):
    before = certificate(made / "server.pem")
    certs("server", made, "--force", "--days", 10)
    after = certificate(made / "server.pem")
    assert after.serial_number != before.serial_number
    after.verify_directly_issued_by(certificate(made / "ca.pem"))
    assert timedelta(days=9) < after.not_valid_after_utc - datetime.now(UTC) <= timedelta(days=10)


def test_no_certificate_outlives_its_ca(made: Path):
    certs("device", made, "pi-1", "--days", 36_500)
    assert certificate(made / "pi-1.pem").not_valid_after_utc == certificate(made / "ca.pem").not_valid_after_utc


def test_a_device_without_a_ca_is_told_how_to_make_one(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"`coe-cloud certs init DIR` makes one"):
        certs("device", tmp_path, "pi-1")


@pytest.mark.parametrize("host", ["https://gpu-host", "gpu-host:8001", "a b", "", "x" * 300, "a..b"])
def test_a_host_that_is_no_name_is_refused_and_nothing_is_written(tmp_path: Path, host: str):
    with pytest.raises(ConfigError, match="expected a DNS name or an IP address"):
        certs("init", tmp_path / "certs", "--host", host)
    assert list((tmp_path / "certs").iterdir()) == []


@pytest.mark.parametrize("name", ["../pi", "a/b", "", "ca", "server", "-pi", "a b", "x" * 64, "a\n"])
def test_a_device_name_that_is_no_file_name_is_refused(made: Path, name: str, capsys):
    with pytest.raises(SystemExit) as refused:
        certs("device", made, "--", name)
    assert refused.value.code == 2
    assert "expected letters, digits" in capsys.readouterr().err


@pytest.mark.parametrize("days", ["0", "-1", "1.5", "36501", "ten"])
def test_days_are_whole_and_few_enough(tmp_path: Path, days: str, capsys):
    with pytest.raises(SystemExit):
        certs("init", tmp_path, f"--days={days}")
    assert "expected 1 to 36500 days" in capsys.readouterr().err


def test_the_token_is_all_that_standard_output_says(made: Path, capsys):
    capsys.readouterr()
    certs("token", made, "pi-1")
    told = capsys.readouterr()
    token = told.out.strip()
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", token)
    assert token not in told.err
    assert "shown once" in told.err


def test_the_config_that_init_prints_serves_and_the_devices_are_known(tmp_path: Path, capsys):
    folder = tmp_path / "certs"
    certs("init", folder)
    printed = capsys.readouterr().out
    config = yaml.safe_load(printed[printed.index("  security:") :])
    certs("device", folder, "pi-1")
    report = Report("cloud.yaml")
    security = read(Fields(config["security"], report, "security"), tmp_path)
    assert (report.findings, report.warnings) == ([], [])
    ca, key, shown = ((folder / name).read_bytes() for name in ("ca.pem", "pi-1.key", "pi-1.pem"))
    authenticator = Authenticator(security)
    with echoing(grpc_credentials(security), lambda context: authenticator.of_grpc(context).name) as address:
        assert call(address, grpc.ssl_channel_credentials(ca, key, shown)) == "pi-1"
        port = address.rpartition(":")[2]
        assert call(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(ca, key, shown)) == "pi-1"


def test_the_documentation_s_commands_and_settings_fit_together(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = DOCS.read_text(encoding="utf-8")
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.S))
    commands = re.findall(r"coe-cloud certs (.*?)(?: > (\S+?)\))?$", shell, re.M)
    assert len(commands) == 3
    for arguments, into in commands:
        capsys.readouterr()
        certs(*shlex.split(arguments))
        if into:
            Path(into).write_text(capsys.readouterr().out)
            Path(into).chmod(0o600)
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.S)]
    report = Report("docs")
    servers = [read(Fields(block["security"], report, "security"), tmp_path) for block in blocks if "security" in block]
    devices = [
        cascade.read_credentials(Fields(block, report, "tier"), tmp_path) for block in blocks if "address" in block
    ]
    assert (report.findings, report.warnings) == ([], [])
    assert [(bool(server.client_ca), bool(server.tokens), bool(server.quota)) for server in servers] == [
        (True, False, False),
        (False, True, False),
        (False, True, True),
    ]
    assert [(bool(device.certificate), device.has_token) for device in devices] == [(True, False), (False, True)]


def test_a_token_for_a_phone_comes_with_a_code_that_opens_the_page_with_it(made: Path, capsys, monkeypatch):
    monkeypatch.setattr("cloud.phone_address.qr_code", lambda text: f"<{text}>")
    certs("token", made, "phone-1", "--page", "https://10.0.0.7:8000/device")
    told = capsys.readouterr()
    assert f"<https://10.0.0.7:8000/device#token={told.out.strip().splitlines()[-1]}>" in told.err
