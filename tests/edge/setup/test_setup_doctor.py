"""`coe-edge doctor`: what it finds on machines, in configs and at real servers, well and broken."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pki import Pki
from programs import Cloud, closed_port, edge_config

from coe.zoo import digits
from edge.config import read_config
from edge.main import main
from edge.setup.doctor import (
    CheckContext,
    _check_import,
    check_clock,
    check_cores,
    check_disk,
    check_heat,
    check_memory,
    check_models,
    check_packages,
    check_python,
    check_service,
    check_sinks,
    check_source,
    run_checks,
)
from edge.setup.findings import INDENT, Finding, Printer, fail, ok
from edge.setup.server_checks import check_certificates, check_tiers
from edge.setup.system import System, is_clock_synchronised


def one(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


def put(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def context_of(path: Path, system: System | None = None) -> CheckContext:
    return CheckContext(system or System(), read_config(path))


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Cloud]:
    with Cloud(tmp_path_factory.mktemp("cloud")) as program:
        yield program


@contextmanager
def listening() -> Iterator[int]:
    """A port where connections are taken by the system, and nobody speaks."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(8)
        yield taken.getsockname()[1]


def test_a_32_bit_python_fails_with_the_reason_whatever_its_kernel():
    finding = one(check_python(CheckContext(System(bits=32, machine="aarch64"))))
    assert finding.level == "fail"
    assert "no wheels for 32 bits" in finding.message
    assert "64-bit Raspberry Pi OS" in finding.fix


def test_an_old_python_fails_and_a_good_one_passes_and_names_the_board(tmp_path):
    assert one(check_python(CheckContext(System(python=(3, 9, 2), bits=64)))).level == "fail"
    put(tmp_path, "proc/device-tree/model", "Raspberry Pi 4 Model B Rev 1.4\0")
    good = one(check_python(CheckContext(System(tmp_path, python=(3, 11, 2), bits=64, machine="aarch64"))))
    assert good == ok("Python", "3.11.2, 64-bit, aarch64; Raspberry Pi 4 Model B Rev 1.4")


def test_packages_are_told_with_their_versions(tmp_path):
    finding = one(check_packages(context_of(edge_config(tmp_path, 1))))
    assert finding.level == "ok"
    for name in ("numpy", "grpcio", "protobuf", "pillow", "pyyaml", "onnxruntime"):
        assert f"{name} " in finding.message


def test_tflite_runtime_beside_numpy_2_is_a_trap_that_is_named(tmp_path, monkeypatch):
    """Its distribution is on the path as pip would have put it; the import of it is not even tried."""
    path = edge_config(tmp_path, 1)
    path.write_text(path.read_text().replace("stroke.onnx", "stroke.tflite"))
    put(tmp_path, "site/tflite_runtime-2.14.0.dist-info/METADATA", "Name: tflite-runtime\nVersion: 2.14.0\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr("coe.models.tflite._version", hiding("ai-edge-litert"))
    findings = list(check_packages(context_of(path)))
    bad = [finding for finding in findings if finding.level == "fail"]
    assert len(bad) == 1
    assert "tflite-runtime 2.14.0 needs numpy<2" in bad[0].fix
    assert "pip install 'coe-cascade[tflite]'" in bad[0].fix


def test_a_runtime_that_is_not_there_fails_with_its_pip_install(tmp_path, monkeypatch):
    monkeypatch.setattr("edge.setup.doctor._version", hiding("onnxruntime"))
    bad = [one for one in check_packages(context_of(edge_config(tmp_path, 1))) if one.level == "fail"]
    assert [(finding.message, finding.fix) for finding in bad] == [
        ("no runtime for onnx models", "pip install onnxruntime")
    ]


def test_a_package_that_is_too_old_fails(monkeypatch):
    monkeypatch.setattr("edge.setup.doctor._version", lambda name: "1.2.3")
    bad = [one for one in check_packages(CheckContext()) if one.level == "fail"]
    assert any("grpcio 1.2.3 is not >=" in finding.message for finding in bad)
    assert all("pip install" in finding.fix for finding in bad)


def test_a_package_of_grpc_that_does_not_fit_the_others_is_named_with_versions_and_fix(tmp_path, monkeypatch):
    class VersionError(Exception):
        pass

    def fail_to_import(name: str) -> None:
        raise VersionError("gencode 6.31.1 runtime 5.29.0")

    monkeypatch.setattr("edge.setup.doctor.importlib.import_module", fail_to_import)
    (bad,) = _check_import("grpc_health.v1.health")
    assert (bad.level, "grpcio-health-checking" in bad.message) == ("fail", True)
    assert bad.message.endswith("gencode 6.31.1 runtime 5.29.0")
    assert bad.fix.startswith("pip install")


def hiding(hidden: str):
    from importlib import metadata

    def version(package: str) -> str | None:
        try:
            return None if package == hidden else metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    return version


def test_more_threads_than_cores_are_warned_of(tmp_path):
    n_cores = len(os.sched_getaffinity(0))
    assert one(check_cores(context_of(edge_config(tmp_path, 1)))).level == "ok"
    path = edge_config(tmp_path, 1, rule=f"threads: {n_cores + 1}")
    assert one(check_cores(context_of(path))) == Finding(
        "cores",
        "warn",
        f"tier device has {n_cores + 1} threads for {n_cores} to be used",
        f"threads: {n_cores} in that tier, or leave it out",
    )


@pytest.mark.parametrize(("available_kb", "level"), [(900_000, "ok"), (100_000, "warn")])
def test_little_memory_is_warned_of(tmp_path, available_kb, level):
    put(tmp_path, "proc/meminfo", f"MemTotal: 950000 kB\nMemAvailable: {available_kb} kB\nSwapTotal: 100000 kB\n")
    finding = one(check_memory(CheckContext(System(tmp_path))))
    assert finding.level == level
    assert "of 973 MB, swap 102 MB" in finding.message


@pytest.mark.parametrize(
    ("degrees", "throttled", "level", "message"),
    [
        ("48312", "0x0", "ok", "48 degrees C"),
        ("72000", "0x0", "warn", "72 degrees C: near the 80"),
        ("84000", "0x0", "warn", "84 degrees C"),
        ("50000", "0x50005", "warn", "the supply gives too little voltage now"),
        ("50000", "0x40000", "warn", "it was slowed down since the start"),
    ],
)
def test_heat_and_a_weak_supply_are_warned_of(tmp_path, monkeypatch, degrees, throttled, level, message):
    put(tmp_path, "sys/class/thermal/thermal_zone0/temp", f"{degrees}\n")
    command = tmp_path / "bin" / "vcgencmd"
    put(tmp_path, "bin/vcgencmd", f"#!/bin/sh\necho throttled={throttled}\n")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(command.parent), prepend=os.pathsep)
    finding = one(check_heat(CheckContext(System(tmp_path))))
    assert finding.level == level
    assert message in finding.message
    assert bool(finding.fix) == (level == "warn")


def test_a_machine_without_a_thermometer_says_nothing_of_heat(tmp_path):
    assert list(check_heat(CheckContext(System(tmp_path)))) == []


def test_a_clock_that_was_never_set_fails():
    finding = one(check_clock(CheckContext(System(now=1000.0))))
    assert finding.level == "fail"
    assert "1970-01-01 00:16 UTC: it was never set" in finding.message


def test_this_machines_clock_is_as_its_kernel_says():
    synchronised = is_clock_synchronised()
    finding = one(check_clock(CheckContext()))
    assert finding.level == ("warn" if synchronised is False else "ok")
    if shutil.which("adjtimex"):  # the kernel's own word, asked by another program
        message = subprocess.run(["adjtimex", "-p"], capture_output=True, text=True, check=False).stdout
        assert ("return value: 5" in message) == (synchronised is False)


def test_models_are_loaded_and_a_decision_is_timed(tmp_path):
    finding = one(check_models(context_of(edge_config(tmp_path, 1))))
    assert finding.level == "ok"
    assert "3 models loaded in" in finding.message
    assert "a decision takes" in finding.message
    assert finding.message.endswith("checksums match")


def test_a_changed_model_fails_and_one_without_a_checksum_is_warned_of(tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    for name in ("loom.onnx", "stroke.onnx"):
        shutil.copy(digits.FOLDER / name, models)
    path = tmp_path / "pi.yaml"
    text = "task: zoo:digits\ntiers: [{name: device, members: [models/loom.onnx, models/stroke.onnx]}]\n"
    path.write_text(text)
    finding = one(check_models(context_of(path)))
    assert finding.level == "warn"
    assert "no checksum is known for loom.onnx, stroke.onnx" in finding.message
    digest = "0" * 64
    path.write_text(text.replace("models/stroke.onnx", f"{{file: models/stroke.onnx, sha256: '{digest}'}}"))
    finding = one(check_models(context_of(path)))
    assert finding.level == "fail"
    assert "expected sha256 0000000000000000.." in finding.message
    assert "the file changed" in finding.fix


def test_a_sink_without_a_folder_fails_and_nothing_is_made(tmp_path):
    path = edge_config(tmp_path, 1, sink=str(tmp_path / "none" / "out.jsonl"))
    finding = one(check_sinks(context_of(path)))
    assert finding.level == "fail"
    assert "its folder is not there" in finding.message
    assert not (tmp_path / "none").exists()
    good = edge_config(tmp_path, 1, sink=str(tmp_path / "out.jsonl"))
    assert one(check_sinks(context_of(good))).level == "ok"
    assert not (tmp_path / "out.jsonl").exists()
    assert {finding.level for finding in check_disk(context_of(good))} <= {"ok", "warn"}


def test_a_sink_on_another_machine_is_tried(tmp_path):
    with listening() as port:
        path = edge_config(tmp_path, 1, f"sinks: [{{kind: webhook, url: 'http://127.0.0.1:{port}/in'}}]")
        path.write_text(path.read_text().replace('sink: {path: "-"}\n', ""))
        assert one(check_sinks(context_of(path))) == ok("sink webhook", f"127.0.0.1:{port} can be reached")
    gone = one(check_sinks(context_of(path)))
    assert gone.level == "warn"
    assert "cannot be reached: Connection refused" in gone.message
    assert "the latest 100,000 records wait on the disk" in gone.fix


def test_a_watched_folder_that_is_not_there_fails(tmp_path):
    path = edge_config(tmp_path, 1, source="{kind: folder, path: none, watch: true}")
    finding = one(check_source(context_of(path)))
    assert finding.level == "fail"
    assert "expected a folder" in finding.message
    assert "create it" in finding.fix


def test_a_server_that_answers_is_named_with_its_round_trip(tmp_path, server):
    finding = one(check_tiers(context_of(edge_config(tmp_path, server.port))))
    assert finding.level == "ok"
    assert finding.message.startswith("digits on coe, round trip ")


def test_a_port_where_nobody_listens_fails(tmp_path):
    port = closed_port()
    finding = one(check_tiers(context_of(edge_config(tmp_path, port))))
    assert finding.level == "fail"
    assert finding.message == f"127.0.0.1:{port}: the host is there, and nothing listens on port {port}"
    assert finding.fix == "start it there: coe-cloud serve --config ...; or correct the port"  # loopback is its default
    assert "coe-cloud serve" in finding.fix


def test_a_name_that_nobody_knows_fails(tmp_path):
    path = edge_config(tmp_path, 1)
    path.write_text(path.read_text().replace("127.0.0.1:1", "no-such-host.invalid:8001"))
    finding = one(check_tiers(context_of(path)))
    assert finding.level == "fail"
    assert "the name is not known" in finding.message


@pytest.mark.slow
def test_a_server_that_never_answers_fails(tmp_path):
    with listening() as port:
        finding = one(check_tiers(context_of(edge_config(tmp_path, port))))
    assert finding.level == "fail"
    assert "DEADLINE_EXCEEDED" in finding.message or "UNAVAILABLE" in finding.message
    assert finding.fix


def test_a_server_of_another_task_fails_with_both_fingerprints(tmp_path, server):
    path = edge_config(tmp_path, server.port)
    text = path.read_text().replace(
        "task: zoo:digits",
        "task: digits\nlabels: [n, a, b, c, d, e, f, g, h, i]\n"
        "input: {kind: image, size: [28, 28], channels: 1, scale: 0.00392156862745098}",
    )
    for name in ("stroke", "loom", "mosaic"):
        shutil.copy(digits.FOLDER / f"{name}.onnx", tmp_path)
        text = text.replace(f"zoo:digits/{name}.onnx", f"{name}.onnx")
    path.write_text(text)
    finding = one(check_tiers(context_of(path)))
    assert finding.level == "fail"
    assert "for another task: expected fingerprint" in finding.message
    assert "labels and input of both ends must match" in finding.fix


def test_of_several_hosts_each_is_told(tmp_path, server):
    path = edge_config(tmp_path, server.port)
    port = closed_port()
    path.write_text(
        path.read_text().replace(f'"127.0.0.1:{server.port}"', f'["127.0.0.1:{server.port}", "127.0.0.1:{port}"]')
    )
    connects, refused, met = check_tiers(context_of(path))
    assert (connects.level, refused.level, met.level) == ("ok", "fail", "ok")
    assert f"127.0.0.1:{port}" in refused.message


@pytest.fixture(scope="module")
def closed(tmp_path_factory) -> Iterator[tuple[Cloud, Pki]]:
    """A server that asks for a device's certificate."""
    folder = tmp_path_factory.mktemp("closed")
    pki = Pki(folder / "pki")
    pki.device("pi-1")
    pki.device("soon", days=10)
    pki.device("old", days=5, made_days_ago=20)
    config = folder / "cloud.yaml"
    config.write_text(
        "task: zoo:digits\nmodel: digits\n"
        "tiers: [{name: best, members: [zoo:digits/resnet.onnx]}]\n"
        f"security: {{tls: {{certificate: {pki['server.pem']}, key: {pki['server.key']}, "
        f"client_ca: {pki['ca.pem']}}}}}\n"
    )
    with Cloud(folder, config) as program:
        yield program, pki


def tls_config(folder: Path, port: int, tls: str) -> Path:
    path = edge_config(folder, port)
    path.write_text(path.read_text().replace("model: digits,", f"model: digits, tls: {tls},"))
    return path


def test_over_tls_the_server_is_met_with_the_right_files(tmp_path, closed):
    server, pki = closed
    tls = f"{{ca: {pki['ca.pem']}, certificate: {pki['pi-1.pem']}, key: {pki['pi-1.key']}, server_name: localhost}}"
    context = context_of(tls_config(tmp_path, server.port, tls))
    assert one(check_tiers(context)).level == "ok"
    assert [finding.level for finding in check_certificates(context)] == ["ok", "ok"]


@pytest.mark.parametrize(
    ("tls", "message", "fix"),
    [
        ("true", "certificate", "set `tls: {ca: ...}`"),
        ("{{ca: {ca}, server_name: elsewhere}}", "not valid for 'elsewhere'", "set `server_name:`"),
        (
            "{{ca: {ca}}}",
            "the server closes the connection after the handshake",
            "the server asks for a device's certificate",
        ),
    ],
)
def test_what_is_wrong_with_tls_is_said(tmp_path, closed, tls, message, fix):
    server, pki = closed
    findings = list(check_tiers(context_of(tls_config(tmp_path, server.port, tls.format(ca=pki["ca.pem"])))))
    assert findings[0].level == "fail"
    assert message in findings[0].message
    assert fix in findings[0].fix


def test_tls_to_a_plaintext_server_is_said(tmp_path, server):
    findings = list(check_tiers(context_of(tls_config(tmp_path, server.port, "true"))))
    assert findings[0].level == "fail"
    assert "TLS fails" in findings[0].message
    assert findings[0].fix


@pytest.mark.parametrize(
    ("device", "level", "message"),
    [("pi-1", "ok", "is valid for"), ("soon", "warn", "expires in 9 days"), ("old", "fail", "expired on")],
)
def test_a_certificate_that_ends_soon_is_warned_of(tmp_path, closed, device, level, message):
    _, pki = closed
    tls = f"{{certificate: {pki[f'{device}.pem']}, key: {pki[f'{device}.key']}}}"
    finding = one(check_certificates(context_of(tls_config(tmp_path, 1, tls))))
    assert finding.level == level
    assert message in finding.message


def test_with_a_clock_that_is_behind_a_certificate_is_not_valid_yet(tmp_path, closed):
    _, pki = closed
    tls = f"{{certificate: {pki['pi-1.pem']}, key: {pki['pi-1.key']}}}"
    system = System(now=time.time() - 365 * 86400)
    finding = one(check_certificates(context_of(tls_config(tmp_path, 1, tls), system)))
    assert finding.level == "fail"
    assert "valid from" in finding.message
    assert "set the clock" in finding.fix


def test_a_config_with_findings_is_told_line_by_line_and_the_machine_is_examined_all_the_same(tmp_path):
    path = tmp_path / "pi.yaml"
    path.write_text("task: zoo:digits\ntiers: [{members: [zoo:digits/none.onnx], agrement: 2/3}]\nsink: {kind: none}\n")
    findings = list(run_checks(path))
    settings = [finding for finding in findings if finding.what == "config"]
    assert len(settings) >= 2
    assert {finding.level for finding in settings} == {"fail"}
    assert any('did you mean "agreement"?' in finding.fix for finding in settings)
    assert {"Python", "memory", "service"} <= {finding.what for finding in findings}


def test_warnings_of_a_config_are_found(tmp_path):
    findings = list(run_checks(edge_config(tmp_path, closed_port(), rule="agreement: 0.67")))
    assert any(one.what == "config" and one.level == "warn" and "2/3" in one.message for one in findings)


def test_a_check_that_breaks_is_a_finding_and_not_a_traceback(tmp_path, monkeypatch):
    def check_nothing(context: CheckContext) -> Iterator[Finding]:
        yield ok("one", "fine")
        raise KeyError("boom")

    monkeypatch.setattr("edge.setup.doctor.MACHINE", (check_nothing,))
    first, second, *_ = run_checks(edge_config(tmp_path, closed_port()))
    assert first.level == "ok"
    assert second == fail("nothing", "could not be checked: KeyError: 'boom'", "please report this line")


def test_the_program_says_how_it_went_by_its_exit_code(tmp_path, server, capsys):
    well = edge_config(tmp_path, server.port)
    assert main(["doctor", "--config", str(well)]) == 0
    message = capsys.readouterr().out
    assert "tier cloud" in message
    assert "\x1b" not in message
    assert max(map(len, message.splitlines())) <= max(79, len(str(well)) + 30)
    broken = edge_config(tmp_path, closed_port())
    assert main(["doctor", "--config", str(broken), "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False
    assert [one["what"] for one in answer["checks"] if one["level"] == "fail"] == ["tier cloud"]
    assert all(one["fix"] for one in answer["checks"] if one["level"] != "ok")


def test_it_is_a_program_of_its_own(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "edge.main", "doctor", "--config", str(tmp_path / "none.yaml")],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 1
    assert "cannot be read: No such file" in done.stdout
    assert done.stderr == ""
    wrong = subprocess.run([sys.executable, "-m", "edge.main", "doctor", "--what"], capture_output=True, timeout=240)
    assert wrong.returncode == 2


def test_a_long_line_is_wrapped_and_a_path_in_it_stays_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    path = "/a/very/long/path/that/somebody/wants/to/copy/with/the/mouse.jsonl"
    with (tmp_path / "out").open("w+") as stream:
        Printer(stream).show(
            fail("sink jsonlines", f"{path}: its folder is not there", "mkdir -p it and then some more")
        )
        stream.seek(0)
        lines = stream.read().splitlines()
    assert any(path in line for line in lines)
    assert lines[0].startswith("FAIL")
    assert all(line.startswith(" " * INDENT) for line in lines[1:])
    assert any("-> " in line for line in lines)


def test_a_service_that_is_not_installed_is_no_fault_and_one_that_is_not_active_is_warned_of(tmp_path, monkeypatch):
    assert one(check_service(CheckContext(System(tmp_path)))).level == "ok"
    put(tmp_path, "etc/systemd/system/coe-edge.service", "[Service]\n")
    assert one(check_service(CheckContext(System(tmp_path)))).message == "installed; systemd does not run here"
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    command = tmp_path / "bin" / "systemctl"
    put(tmp_path, "bin/systemctl", "#!/bin/sh\necho ActiveState=failed\necho UnitFileState=enabled\necho NRestarts=7\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent), prepend=os.pathsep)
    finding = one(check_service(CheckContext(System(tmp_path))))
    assert (finding.level, finding.message) == ("warn", "failed, enabled at start")
    assert "journalctl" in finding.fix
