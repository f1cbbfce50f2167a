"""The Debian package: built by `.ci/deb`, installed, used and removed by dpkg, in a throw-away copy of this system."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = ("dpkg", "dpkg-deb", "unshare", "chroot", "adduser", "/usr/bin/python3")

# A copy-on-write view of / in a mount namespace: nothing of this machine is changed.
INSIDE = """
set -e
mount -t tmpfs none {folder}
mkdir {folder}/upper {folder}/work {folder}/root
mount -t overlay overlay -o lowerdir=/,upperdir={folder}/upper,workdir={folder}/work {folder}/root
mount --rbind /proc {folder}/root/proc
mount --rbind /dev {folder}/root/dev
cp /{package} {folder}/root/coe-edge.deb
exec chroot {folder}/root /bin/sh -ec "$1"
"""
STEPS = """
export DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin
unset PYTHONPATH STATE_DIRECTORY
cd /
dpkg -i /coe-edge.deb > /log 2>&1 || { cat /log; exit 1; }
modes=$(stat -c "%U %a" /var/lib/coe-edge /var/lib/coe-edge/incoming | xargs)
echo "user $(getent passwd coe-edge | cut -d: -f6,7) $modes"
as() { setpriv --reuid=coe-edge --regid=coe-edge --clear-groups --no-new-privs "$@"; }
as /opt/coe-edge/bin/python -c '
import pathlib
from coe.zoo import digits
for name, png, truth in digits.test_examples(3):
    pathlib.Path("/var/lib/coe-edge/incoming", name + ".png").write_bytes(png)
'
as /opt/coe-edge/bin/coe-edge --config /etc/coe-edge/coe-edge.yaml --once
cat /var/lib/coe-edge/decisions.jsonl
! as touch /opt/coe-edge/mine /etc/coe-edge/coe-edge.yaml 2> /dev/null
echo "# mine" >> /etc/coe-edge/coe-edge.yaml
dpkg -i /coe-edge.deb > /log 2>&1 || { cat /log; exit 1; }
echo "again $(tail -1 /etc/coe-edge/coe-edge.yaml) $(wc -l < /var/lib/coe-edge/decisions.jsonl)"
dpkg -r coe-edge > /log 2>&1
echo "removed $(ls -d /opt/coe-edge /etc/coe-edge /var/lib/coe-edge 2> /dev/null | xargs)"
dpkg -P coe-edge > /log 2>&1
left=$(ls -d /opt/coe-edge /etc/coe-edge /var/lib/coe-edge /usr/lib/systemd/system/coe-edge* 2> /dev/null | xargs)
echo "purged [$left] [$(getent passwd coe-edge)] [$(dpkg -l coe-edge 2> /dev/null | grep coe-edge)]"
"""


def can_overlay(folder: Path) -> bool:
    command = f"mount -t tmpfs none {folder} && mkdir {folder}/u {folder}/w {folder}/m && mount -t overlay overlay "
    command += f"-o lowerdir=/,upperdir={folder}/u,workdir={folder}/w {folder}/m"
    return subprocess.run(["unshare", "-m", "sh", "-c", command], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed (a Debian, or a system made of it, has them)")
    out = tmp_path_factory.mktemp("deb")
    built = subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "deb"), "--out", str(out)], capture_output=True, text=True, timeout=540
    )
    if "Could not find a version" in built.stderr or "Temporary failure" in built.stderr:
        pytest.skip("a package registry is needed to gather what the agent depends on (or .ci/deb --wheels)")
    assert built.returncode == 0, built.stdout + built.stderr
    return Path(built.stdout.strip())


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".ci" / "deb").exists(), reason="the script is in the checkout")
def test_it_is_installed_runs_as_its_own_user_and_is_gone_when_it_is_purged(tmp_path, package):
    if os.geteuid() != 0 or not can_overlay(tmp_path):
        pytest.skip("needs root, mount namespaces and overlayfs, so that dpkg changes nothing of this machine")
    script = INSIDE.format(folder=tmp_path, package=str(package).lstrip("/"))
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", STEPS], capture_output=True, text=True, timeout=540
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "user /var/lib/coe-edge:/usr/sbin/nologin coe-edge 750 coe-edge 2770"
    decided = [json.loads(line) for line in lines if line.startswith("{")]
    assert [record["id"] for record in decided] == [f"digit-{number:04}.png" for number in range(3)]
    assert all("label" in record for record in decided)
    after = lines[-3:]
    assert after[0] == "again # mine 3"  # an update keeps the config as it was changed, and the state
    assert after[1] == "removed /etc/coe-edge /var/lib/coe-edge"
    assert after[2] == "purged [] [] []"


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".ci" / "deb").exists(), reason="the script is in the checkout")
def test_its_unit_is_the_one_that_install_service_writes(tmp_path, package):
    files = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE)
    subprocess.run(["tar", "x", "-C", str(tmp_path), "./etc", "./usr/lib/systemd"], stdin=files.stdout, check=True)
    files.communicate()
    unit = (tmp_path / "usr/lib/systemd/system/coe-edge.service").read_text()
    config = str(tmp_path / "etc/coe-edge/coe-edge.yaml")
    command = [sys.executable, "-m", "edge.main", "install-service", "--print", "--system", "--config", config]
    printed = subprocess.run(command, capture_output=True, text=True, check=True)
    differs = {line.partition("=")[0] for line in set(unit.splitlines()) ^ set(printed.stdout.splitlines())}
    assert differs <= {"Description", "ExecStart", "WorkingDirectory", "User", "DynamicUser", "ReadWritePaths"} | {
        "PrivateTmp",
        "ProtectHome",
    }
    assert "ExecStart=/opt/coe-edge/bin/coe-edge --config /etc/coe-edge/coe-edge.yaml\n" in unit
    assert "User=coe-edge\n" in unit
    assert str(tmp_path) not in unit
