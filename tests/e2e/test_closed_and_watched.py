"""A device and a server as an operator would run them: mutual TLS, metrics, JSON logs, one trace, a status page.

Certificates are made by the command; both programs are real processes.
"""

from __future__ import annotations

import json
import re
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from programs import Cloud, Program, edge, until

from cloud.main import main
from coe.cascade import Always, TierRejected, TierUnavailable
from coe.protocol.channel import is_address
from coe.protocol.remote import RemoteTier

pytest.importorskip("onnxruntime")

SERVER = """
task: zoo:digits
model: digits
tiers:
  - name: medium
    members: [zoo:digits/ripple.onnx, zoo:digits/pyramid.onnx, zoo:digits/lattice.onnx]
    agreement: unanimous
    parallel: false
  - {name: best, members: [zoo:digits/resnet.onnx]}
server: {http_port: 0}
security:
  tls: {certificate: certs/server.pem, key: certs/server.key, client_ca: certs/ca.pem}
  allow: [pi-*]
log: {format: json, requests: true}
"""
DEVICE = """
task: zoo:digits
tiers:
  - name: device
    members: [zoo:digits/stroke.onnx, zoo:digits/loom.onnx, zoo:digits/mosaic.onnx]
    agreement: unanimous
  - name: cloud
    address: "127.0.0.1:%d"
    model: digits
    tls: {ca: certs/ca.pem, certificate: certs/%s.pem, key: certs/%s.key, server_name: localhost}
source: {kind: digits}
sink: {path: %s.jsonl}
"""
PAGE = re.compile(r"status page on (https?://\S+:\d+)/")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A server's config beside a CA and two devices' certificates, of which one is allowed."""
    certs = str(tmp_path / "certs")
    assert main(["certs", "init", certs, "--host", "localhost", "--host", "127.0.0.1"]) == 0
    for name in ("pi-1", "stranger"):
        assert main(["certs", "device", certs, name]) == 0
    (tmp_path / "cloud.yaml").write_text(SERVER, encoding="utf-8")
    return tmp_path


def run_edge(folder: Path, port: int, name: str, *arguments: object) -> list[dict[str, Any]]:
    """The records of a device of that name."""
    config = folder / f"{name}.yaml"
    config.write_text(DEVICE % (port, name, name, name), encoding="utf-8")
    with edge(folder, config, "--limit", 300, *arguments) as device:
        assert device.end() == 0, device.complained
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def page_of(server: Program, path: str, folder: Path, device: str = "pi-1") -> str:
    found = PAGE.search(server.said)
    assert found, server.said
    context = ssl.create_default_context(cafile=str(folder / "certs/ca.pem"))
    context.load_cert_chain(folder / f"certs/{device}.pem", folder / f"certs/{device}.key")
    with urllib.request.urlopen(found[1] + path, context=context, timeout=20) as answer:
        return str(answer.read().decode())


def logged(server: Program) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.complained.splitlines()]


def test_a_device_with_its_certificate_is_served_counted_and_traced(folder):
    with Cloud(folder, folder / "cloud.yaml") as server:
        records = run_edge(folder, server.port, "pi-1")
        sent = [record for record in records if record["exit_tier"] > 1]
        assert len(records) == 300
        assert sent
        assert not any(record["degraded"] for record in records)
        metrics = page_of(server, "/metrics", folder)
        status = json.loads(page_of(server, "/status.json", folder))
        assert "<title" in page_of(server, "/", folder)
        until(lambda: len([line for line in logged(server) if line["message"] == "answered"]) >= len(sent))
        lines = [line for line in logged(server) if line["message"] == "answered"]
    exits = r'coe_cloud_tier_exits_total\{model="digits",[^}]*tier_name="(\w+)"\} (\S+)'
    counted = {match[1]: float(match[2]) for match in re.finditer(exits, metrics)}
    by_tier = {"medium": 2, "best": 3}
    for tier, number in by_tier.items():
        assert counted.get(tier, 0) == len([record for record in sent if record["exit_tier"] == number])
    assert {model["name"] for model in status["models"]} >= {"digits"}
    assert {line["trace"] for line in lines} == {record["trace"] for record in sent}
    assert {line["caller"] for line in lines} == {"pi-1"}


@pytest.mark.slow
def test_a_device_that_is_not_allowed_keeps_its_own_answers_and_the_server_says_why(folder):
    with Cloud(folder, folder / "cloud.yaml") as server:
        records = run_edge(folder, server.port, "stranger")
        with pytest.raises(urllib.error.HTTPError) as caught:
            page_of(server, "/v2/models/digits", folder, "stranger")
        caught.value.close()
    assert len(records) == 300
    degraded = [record["degraded"] for record in records if record["degraded"]]
    assert degraded
    assert all("PERMISSION_DENIED" in reason for reason in degraded)
    assert caught.value.code == 403


@pytest.mark.slow
def test_without_a_certificate_nobody_is_heard(folder):
    with Cloud(folder, folder / "cloud.yaml") as server:
        plain = RemoteTier("cloud", f"127.0.0.1:{server.port}", "digits", Always(), n_labels=10, deadline_s=3.0)
        with pytest.raises((TierUnavailable, TierRejected)):
            plain.metadata(3.0)
        plain.close()
        trusting = grpc.ssl_channel_credentials((folder / "certs/ca.pem").read_bytes())
        with (
            grpc.secure_channel(f"localhost:{server.port}", trusting) as channel,
            pytest.raises(grpc.FutureTimeoutError),
        ):
            grpc.channel_ready_future(channel).result(2)


def test_plaintext_beyond_this_machine_is_refused_in_one_line_unless_it_is_meant(folder, capsys):
    open_to_all = folder / "open.yaml"
    text = SERVER.partition("security:")[0] + "limits: {max_batch: 8}\n"
    open_to_all.write_text(text.replace("http_port: 0", "http_port: 0, host: 0.0.0.0, grpc_port: 0"), encoding="utf-8")
    assert main(["serve", "--config", str(open_to_all)]) == 2
    said = capsys.readouterr().err
    assert "coe-cloud certs" in said
    assert "--insecure" in said
    assert "Traceback" not in said
    with Program("cloud.main", ["serve", "--config", open_to_all, "--insecure"], folder) as server:
        until(lambda: "ready on" in server.said or server.process.poll() is not None, lambda: server.complained)
        address = server.said.partition("ready on ")[2].partition(": ")[0]
        assert is_address(address)
        with grpc.insecure_channel(address) as channel:  # "0.0.0.0" is where to listen, not whom to call
            grpc.channel_ready_future(channel).result(5)
