"""Each fault of docs/reliability.md on real programs, as bench/faults.py has them, in a short run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BENCH.is_dir(), reason="the benchmarks are in the checkout, not in the wheel"),
]
NAMES = ("members", "member-crashes", "files", "folder-goes", "sinks-fail", "other-task", "refusals", "garbage")
NAMES += ("http-proxy", "link", "kills", "mqtt-kills")


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
