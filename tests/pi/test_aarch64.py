"""The agent on a Raspberry Pi's processor, system and wheels, emulated (`.ci/aarch64` makes them).

What is emulated is the user land: Debian's arm64 Python and C library, the aarch64 wheels of the edge install, and the
instructions of a Pi's cores. The kernel, the board and its speed are not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from programs import Cloud, closed_port, edge_config

from coe.zoo import digits

PROJECT = Path(__file__).parent.parent.parent
ROOT = Path(os.environ.get("COE_AARCH64_ROOT", PROJECT / ".venv-aarch64"))
BOARDS = {"Zero 2 W and Pi 3": "cortex-a53", "Pi 4": "cortex-a72", "Pi 5": "cortex-a76"}
BOUND_S = 180.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (ROOT / "ready").is_file(), reason="needs .ci/aarch64, or COE_AARCH64_ROOT to say where it is"
    ),
    pytest.mark.skipif(not (PROJECT / "edge").is_dir(), reason="needs the checkout: the emulated Python runs that"),
]


def emulated(*arguments: object, cpu: str = "cortex-a72") -> subprocess.CompletedProcess[str]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("COE_", "GRPC_", "PYTHON"))
    }
    environment |= {"COE_AARCH64_CPU": cpu, "PYTHONPATH": str(PROJECT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [str(ROOT / "python"), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=BOUND_S, check=False)


def native(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=BOUND_S, check=False
    )


def records(text: str) -> list[dict]:
    return sorted((json.loads(line) for line in text.splitlines()), key=lambda record: record["id"])


def config_with(folder: Path, suffix: str, port: int) -> Path:
    path = edge_config(folder, port)
    path.write_text(path.read_text().replace(".onnx", suffix), encoding="utf-8")
    return path


def test_it_is_an_aarch64_python_with_the_wheels_of_the_edge_install():
    code = "import platform, sys; print(platform.machine(), *sys.version_info[:2], sys.maxsize > 2**32)"
    machine, *version, is_64_bit = emulated("-c", code).stdout.split()
    assert (machine, is_64_bit) == ("aarch64", "True")
    assert version in (["3", "11"], ["3", "13"])


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("suffix", [".onnx", ".tflite", ".int8.tflite"])
def test_a_device_decides_as_any_other_machine_does(tmp_path, board, suffix):
    path = config_with(tmp_path, suffix, closed_port())
    arguments = ("-m", "edge.main", "--config", path, "--limit", 20)
    there, here = emulated(*arguments, cpu=BOARDS[board]), native(*arguments)
    assert (there.returncode, here.returncode) == (0, 0), there.stderr
    pairs = list(zip(records(there.stdout), records(here.stdout), strict=True))
    assert [one["id"] for one, _ in pairs] == [name for name, _, _ in digits.test_examples(20)]
    for one, other in pairs:
        assert (one["label"], one["exit_tier"], one["vote"]) == (other["label"], other["exit_tier"], other["vote"])
        assert one["score"] == pytest.approx(other["score"], abs=2e-3 if "int8" not in suffix else 2e-2)


def test_what_it_cannot_settle_a_real_server_answers(tmp_path):
    with Cloud(tmp_path) as server:
        path = config_with(tmp_path, ".onnx", server.port)
        path.write_text(path.read_text().replace("agreement: unanimous", "confidence: 0.99"), encoding="utf-8")
        done = emulated("-m", "edge.main", "--config", path, "--limit", 40)
    assert done.returncode == 0, done.stderr
    decided = records(done.stdout)
    assert len(decided) == 40
    there = [record for record in decided if record["exit_tier"] > 1]
    assert there
    assert all(record["call"]["bytes_sent"] > 0 for record in there)
    assert not any(record["degraded"] for record in decided)


@pytest.mark.parametrize("arguments", [("doctor", "--json"), ("explain",), ("--dry-run",)])
def test_the_other_commands_work_there(tmp_path, arguments: Sequence[str]):
    with Cloud(tmp_path) as server:
        path = config_with(tmp_path, ".onnx", server.port)
        done = emulated("-m", "edge.main", *arguments, "--config", path)
    assert (done.returncode, done.stderr) == (0, "")
    if "doctor" in arguments:
        found = {check["what"]: check for check in json.loads(done.stdout)["checks"]}
        assert "64-bit, aarch64" in found["Python"]["message"]
        assert found["tier cloud"]["level"] == "ok"
