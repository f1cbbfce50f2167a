"""`coe-edge install-service`: its unit, read and verified by systemd itself, and written into a root of the test's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from pki import Pki

from edge.config import read_config
from edge.main import main
from edge.setup.install_service import ServiceUnit

BASE = """
task: zoo:digits
tiers:
  - name: device
    members: [zoo:digits/stroke.onnx, zoo:digits/loom.onnx, zoo:digits/mosaic.onnx]
    agreement: unanimous
  - {name: cloud, address: "gpu-host:8001", model: digits}
"""
FOLDER = "source: {kind: folder, path: /srv/photos, watch: true}"


def config(folder: Path, *more: str) -> Path:
    path = folder / "pi.yaml"
    path.write_text(BASE + "".join(f"{line}\n" for line in more), encoding="utf-8")
    return path


def unit(path: Path, user: str = "", command: tuple[str, ...] = ("/opt/coe/bin/coe-edge",)) -> dict[str, list[str]]:
    """Settings of a unit, each a list: some may be given several times."""
    found: dict[str, list[str]] = {}
    for line in ServiceUnit(read_config(path), command, user).text().splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def test_the_unit_is_as_a_service_that_must_run_without_a_network_and_be_watched(tmp_path):
    path = config(tmp_path, FOLDER, "grace_s: 20")
    got = unit(path)
    assert got["Type"] == ["notify"]
    assert got["ExecStart"] == [f"/opt/coe/bin/coe-edge --config {path}"]
    assert got["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert got["After"] == ["network.target time-sync.target"]
    assert "Wants" not in got
    assert "Requires" not in got
    assert got["Restart"] == ["always"]
    assert got["StartLimitIntervalSec"] == ["0"]
    assert "StartLimitBurst" not in got
    pauses = [int(got[key][0]) for key in ("RestartSec", "RestartSteps", "RestartMaxDelaySec")]
    assert pauses[0] < pauses[2] <= 600
    assert pauses[1] > 1
    assert got["RestartPreventExitStatus"] == ["2"]
    assert int(got["WatchdogSec"][0]) >= 10
    assert int(got["TimeoutStopSec"][0]) > 20
    assert got["KillSignal"] == ["SIGTERM"]
    assert got["StateDirectory"] == ["coe-edge"]


def test_it_is_closed_but_for_what_the_config_needs(tmp_path):
    (tmp_path / "out").mkdir()
    plain = unit(config(tmp_path, FOLDER))
    for key in ("NoNewPrivileges", "PrivateDevices", "RestrictSUIDSGID", "LockPersonality", "ProtectKernelTunables"):
        assert plain[key] == ["yes"]
    assert plain["ProtectSystem"] == ["strict"]
    assert plain["CapabilityBoundingSet"] == [""]
    assert "ReadWritePaths" not in plain
    assert plain["DynamicUser"] == ["yes"]
    writes = unit(config(tmp_path, FOLDER, "sink: {path: out/decisions.jsonl}"), user="pi")
    assert writes["ReadWritePaths"] == [f"-{tmp_path / 'out'}"]
    assert writes["User"] == ["pi"]
    assert "DynamicUser" not in writes
    state = unit(config(tmp_path, FOLDER, "sink: {path: /var/lib/coe-edge/decisions.jsonl}"))
    assert "ReadWritePaths" not in state  # StateDirectory gives it that
    spool = unit(config(tmp_path, FOLDER, "when_unavailable: spool"))
    assert "ReadWritePaths" not in spool
    (tmp_path / "state").mkdir()
    own = unit(config(tmp_path, FOLDER, "when_unavailable: spool", "state: state", "spool: {path: deep/spool.db}"))
    assert own["ReadWritePaths"] == [f"-{tmp_path / 'state'}", f"-{tmp_path / 'deep'}"]


def test_a_home_folder_is_hidden_unless_something_of_the_agent_is_in_it(tmp_path):
    path = config(tmp_path, FOLDER)
    assert unit(path, command=("/opt/coe/bin/coe-edge",))["ProtectHome"] == ["yes"]
    assert unit(path, command=("/home/pi/coe-env/bin/coe-edge",))["ProtectHome"] == ["read-only"]


def test_what_the_agent_reads_of_its_sinks_and_its_hook_counts_too(tmp_path):
    (tmp_path / "rules.py").write_text("def hold(value, votes):\n    return None\n")
    path = config(
        tmp_path,
        FOLDER,
        "privacy_filter: rules.py:hold",
        "sinks:",
        "  - {kind: webhook, url: 'https://example.org/in', token_file: w.token, ca: w.pem}",
        "  - kind: mqtt",
        "    host: broker",
        "    username: pi",
        "    password_file: m.password",
        "    tls: {ca: m.pem, certificate: c.pem, key: c.key}",
    )
    service = ServiceUnit(read_config(path), ("/opt/coe/bin/coe-edge",), "")
    assert {path.name for path in service.secret_files()} == {"w.token", "m.password", "c.key"}
    assert {path.name for path in service.files_to_read()} >= {"rules.py", "w.pem", "m.pem", "c.pem", "w.token"}


def test_a_camera_may_be_used_and_nothing_else_of_the_devices(tmp_path):
    got = unit(config(tmp_path, "source: {kind: camera, device: 0}"), user="pi")
    assert got["PrivateDevices"] == ["no"]
    assert got["SupplementaryGroups"] == ["video"]


def test_odd_paths_are_one_word_each(tmp_path):
    folder = tmp_path / 'it is 100% "odd" $HOME'
    folder.mkdir()
    (folder / "out").mkdir()
    got = unit(config(folder, FOLDER, "sink: {path: out/d.jsonl}"))
    escaped = str(folder).replace("%", "%%").replace('"', '\\"')
    assert got["ExecStart"] == [f'/opt/coe/bin/coe-edge --config "{escaped.replace("$", "$$")}/pi.yaml"']


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("name", ["plain", "it is 100% odd $HOME"])
def test_systemd_itself_finds_nothing_wrong_with_it(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "out").mkdir()
    path = config(folder, FOLDER, "sink: {path: out/d.jsonl}")
    text = ServiceUnit(read_config(path), ("/bin/true",), "root").text()
    target = tmp_path / "coe-edge.service"
    target.write_text(text)
    printed = subprocess.run(["systemd-analyze", "verify", str(target)], capture_output=True, text=True, timeout=240)
    ours = [line for line in (printed.stdout + printed.stderr).splitlines() if "coe-edge.service" in line]
    ours = [line for line in ours if not re.search("Unknown key '(RestartSteps|RestartMaxDelaySec)'.*ignoring", line)]
    assert (printed.returncode, ours) == (0, [])


def test_without_yes_it_only_says_what_it_would_do(tmp_path, capsys):
    root = tmp_path / "root"
    assert main(["install-service", "--config", str(config(tmp_path, FOLDER)), "--root", str(root)]) == 0
    printed = capsys.readouterr().out
    assert "[Service]" in printed
    assert f"write {root}/etc/systemd/system/coe-edge.service" in printed
    assert "nothing was done (--yes does it)" in printed
    assert not root.exists()


def test_for_the_machine_itself_it_would_also_start_it(tmp_path, capsys):
    assert main(["install-service", "--config", str(config(tmp_path, FOLDER))]) == 0
    printed = capsys.readouterr().out
    assert "  systemctl daemon-reload\n  systemctl enable --now coe-edge.service\n" in printed


def test_with_yes_it_writes_the_unit_that_it_prints(tmp_path, capsys):
    root, path = tmp_path / "root", str(config(tmp_path, FOLDER))
    assert main(["install-service", "--config", path, "--print"]) == 0
    printed = capsys.readouterr().out
    assert main(["install-service", "--config", path, "--yes", "--root", str(root)]) == 0
    assert (root / "etc/systemd/system/coe-edge.service").read_text() == printed
    assert "wrote" in capsys.readouterr().out
    assert main(["install-service", "--config", path, "--yes", "--root", str(root), "--system"]) == 0
    assert "in place of the one there" in capsys.readouterr().out
    assert "DynamicUser=yes" in (root / "etc/systemd/system/coe-edge.service").read_text()


def test_it_starts_the_agent_that_wrote_it(tmp_path, capsys):
    path = config(tmp_path, FOLDER)
    main(["install-service", "--config", str(path), "--print"])
    found = re.search(r"^ExecStart=(\S+)", capsys.readouterr().out, re.MULTILINE)
    assert found
    assert os.access(found[1], os.X_OK)


def test_what_would_keep_it_from_starting_is_warned_of(tmp_path, capsys):
    pki = Pki(tmp_path / "pki")
    pki.device("pi-1")
    files = f"{{ca: {pki['ca.pem']}, certificate: {pki['pi-1.pem']}, key: {pki['pi-1.key']}}}"
    path = config(tmp_path, "source: {kind: stdin}", "sink: {path: none/such/d.jsonl}")
    path.write_text(path.read_text().replace("model: digits", f"model: digits, tls: {files}"))
    assert main(["install-service", "--config", str(path), "--system", "--root", str(tmp_path / "root")]) == 0
    printed = capsys.readouterr().out
    assert "warning: a service has no standard input" in printed
    assert "warning: a user created by systemd cannot read" in printed
    assert f"warning: {tmp_path / 'none/such'} is not there" in printed


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["--user", "nobody-of-that-name"], "--user: expected a user of this machine"),
        (["--config", "none.yaml"], "none.yaml: cannot be read"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(tmp_path, monkeypatch, capsys, arguments, printed):
    monkeypatch.chdir(tmp_path)
    given = arguments if "--config" in arguments else [*arguments, "--config", str(config(tmp_path, FOLDER))]
    assert main(["install-service", *given]) == 2
    output = capsys.readouterr()
    assert printed in output.err
    assert output.err.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_who_is_not_root_is_told_to_use_sudo(tmp_path):
    import sys

    path = config(tmp_path, FOLDER)
    for folder in (path, *path.parents):
        if folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    code = (
        f"import os, sys; sys.argv[1:] = ['install-service', '--config', {str(path)!r}, '--yes'];"
        "import edge.main, edge.setup.install_service; os.setuid(65534); sys.exit(edge.main.main())"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert printed.returncode == 2
    assert "expected to be run by root" in printed.stderr
    assert "(sudo " in printed.stderr
