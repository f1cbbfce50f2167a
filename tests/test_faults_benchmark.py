"""Each fault of docs/reliability.md on real programs, as bench/faults.py has them, in a short run."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"

pytestmark = pytest.mark.skipif(not BENCH.is_dir(), reason="the benchmarks are in the checkout, not in the wheel")
NAMES = ("members", "member-crashes", "files", "folder-goes", "sinks-fail", "other-task", "refusals", "garbage")
NAMES += ("http-proxy", "link", "kills", "mqtt-kills")


CONFIG = """
task: zoo:digits
tiers: [{name: device, members: [zoo:digits/loom.onnx]}]
source: {kind: folder, path: in, watch: true}
sink: {path: out.jsonl}
state: disk/state
"""


@pytest.fixture
def unit_module(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    before = list(sys.path)
    yield importlib.import_module("unit")
    sys.path[:] = before


def until(claim):
    end = time.monotonic() + 90
    while not claim():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_unit_is_started_again_after_every_exit_code_but_2_with_growing_pauses(unit_module, monkeypatch, tmp_path):
    """A program in the agent's place ends with one code after another."""
    (tmp_path / "in").mkdir()
    (tmp_path / "edge.yaml").write_text(CONFIG, encoding="utf-8")
    codes = tmp_path / "codes"
    codes.write_text("1 3 0 139 1 2 1", encoding="utf-8")
    ends = f'read code rest < {codes}; echo "$rest" > {codes}; exit $code'
    monkeypatch.setattr(unit_module, "AGENT", ["sh", "-c", ends])
    monkeypatch.setattr(unit_module, "SPEED_UP", 3000.0)
    unit = unit_module.Unit(tmp_path)
    until(lambda: unit.is_over)
    assert unit.ended == [1, 3, 0, 139, 1, 2]
    assert unit.n_starts == 6
    pauses = [unit.pause_s(n) * unit_module.SPEED_UP for n in range(10)]
    assert pauses[0] == 3
    assert sorted(set(pauses[:9])) == pauses[:9]
    assert pauses[8:] == pytest.approx([300, 300])
    unit.stop()


@pytest.mark.slow
def test_a_real_agent_waits_for_its_state_comes_back_after_a_crash_and_stays_down_after_2(
    unit_module, tmp_path, request
):
    png = importlib.import_module("coe.zoo.digits").test_examples(1)[0][1]
    (tmp_path / "in").mkdir()
    (tmp_path / "disk").write_text("not mounted", encoding="utf-8")
    (tmp_path / "edge.yaml").write_text(CONFIG, encoding="utf-8")
    out = tmp_path / "out.jsonl"
    unit = unit_module.Unit(tmp_path)
    request.addfinalizer(unit.stop)
    until(lambda: "not started yet" in unit.log)
    (tmp_path / "in" / "a.png").write_bytes(png)
    (tmp_path / "disk").unlink()
    until(lambda: out.exists() and "a.png" in out.read_text(encoding="utf-8"))
    assert (unit.ended, unit.n_starts) == ([], 1)
    (tmp_path / "in" / "b-crash.png").write_bytes(png)  # the member ends the process
    until(lambda: "b-crash.png" in out.read_text(encoding="utf-8"))
    assert (unit.ended, unit.n_starts) == ([-11, -11], 3)
    (tmp_path / "edge.yaml").write_text(CONFIG.replace("tiers:", "tires:"), encoding="utf-8")
    unit.kill()
    until(lambda: unit.is_over)
    assert (unit.ended, unit.n_starts) == ([-11, -11, 2], 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_lost_or_decided_twice_and_the_agent_does_not_end(name):
    if name.startswith("mqtt"):
        pytest.importorskip("paho.mqtt.client", reason="needs paho-mqtt: pip install 'coe-cascade[mqtt]'")
        if shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin") is None:
            pytest.skip("needs the MQTT broker mosquitto: apt-get install mosquitto (.ci/broker does)")
    command = [sys.executable, str(BENCH / "faults.py"), "--size", "0.15", "--only", name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stderr + done.stdout
    (result,) = json.loads(done.stdout)["scenarios"]
    assert result["given"] > 0
    assert (result["lost"], result["twice"]) == (0, 0)
