"""docs/own-models.md as a new user follows it: rows of a sensor, from export to decisions with a closed cloud tier."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from programs import BOUND_S, Cloud

PAGE = Path(__file__).parents[2] / "docs" / "own-models.md"
SETTING = "COE_EXPORT_PYTHON"
STATES = {"idle": 0.05, "running": 0.6, "worn": 0.9}
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PAGE.exists(), reason="the pages are in the checkout")]


def blocks() -> dict[str, str]:
    found = re.findall(r"<!-- run: (\S+) -->\n```\w+\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return dict(found)


def exporter() -> str:
    python = os.environ.get(SETTING, sys.executable)
    if subprocess.run([python, "-c", "import skl2onnx, sklearn"], capture_output=True, check=False).returncode:
        pytest.skip(f"needs skl2onnx and scikit-learn: pip install them, or {SETTING} names a Python that has them")
    return python


def write_rows(path: Path, n_windows: int, seed: int) -> list[str]:
    """Windows of 32 rows; the states differ by how much they shake, and overlap."""
    rng = np.random.default_rng(seed)
    states = rng.choice(list(STATES), n_windows).tolist()
    lines = ["ax,ay,az,state"]
    for state in states:
        t = np.arange(32)
        for axis in STATES[state] * np.sin(t[:, None] * (1 + (state == "worn")) + [0, 1, 2]) + rng.normal(
            0, 0.3, (32, 3)
        ):
            lines.append(",".join(f"{value:.4f}" for value in axis) + f",{state}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return states


def test_the_sensor_of_the_page_as_it_is_written(tmp_path, monkeypatch):
    python, page = exporter(), blocks()
    monkeypatch.chdir(tmp_path)
    for name in ("train.py", "pi.yaml", "cloud.yaml"):
        (tmp_path / name).write_text(page[name], encoding="utf-8")
    write_rows(tmp_path / "vibration.csv", 400, 1)
    states = write_rows(tmp_path / "new.csv", 60, 2)
    commands = [line.partition("  #")[0].strip() for line in page["commands"].splitlines()]
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, command in (
        ("python", python),
        ("coe-cloud", f"{sys.executable} -m cloud.main"),
        ("coe-edge", f"{sys.executable} -m edge.main"),
        ("coe-sim", f"{sys.executable} -m sim.main"),
    ):
        (tools / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (tools / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"}

    def run(command: str) -> str:
        done = subprocess.run(
            ["sh", "-c", command], capture_output=True, text=True, env=environment, timeout=BOUND_S, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    serve = next(at for at, command in enumerate(commands) if command.startswith("coe-cloud serve"))
    for command in commands[:serve]:
        run(command.replace("gpu-host", "127.0.0.1"))
    assert commands[serve] == "coe-cloud serve --config cloud.yaml"
    with Cloud(tmp_path, tmp_path / "cloud.yaml") as cloud:
        text = page["pi.yaml"].replace("gpu-host:8001", f"127.0.0.1:{cloud.port}")
        (tmp_path / "pi.yaml").write_text(text, encoding="utf-8")
        said = " ".join(run(commands[serve + 1]).split())
        assert "answers a blank example in" in said
        assert said.count("of 400 right") >= 3, said
        for command in commands[serve + 2 :]:
            run(command)
    records = [json.loads(line) for line in (tmp_path / "decisions.jsonl").read_text().splitlines()]
    assert len(records) == 60
    assert {record["exit_tier"] for record in records} == {1, 2}
    assert not any(record["degraded"] for record in records)
    assert sum(record["name"] == state for record, state in zip(records, states, strict=True)) > 30
    write_rows(tmp_path / "labelled.csv", 600, 3)
    for command in page["plan"].splitlines():
        run(command)
    assert (tmp_path / "plan" / "plan.html").exists()
