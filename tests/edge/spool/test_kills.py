"""A real agent on a watched folder, a real server that comes and goes, and SIGKILL at any moment.

Every file has one decision, every one that was spooled has one correction in the end, and no line is torn. COE_KILLS
says how often the slow tests kill: 200 is what docs/reliability.md tells of.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from programs import BOUND_S, Cloud, Program, closed_port, edge, until

from coe.zoo import digits

KILLS = int(os.environ.get("COE_KILLS", "16"))

CONFIG = """
task: zoo:digits
tiers:
  - name: device
    members: [zoo:digits/stroke.onnx, zoo:digits/loom.onnx, zoo:digits/mosaic.onnx]
    confidence: 0.99
  - {{name: cloud, address: "127.0.0.1:{port}", model: digits, deadline_ms: 2000}}
source: {{kind: folder, path: in, watch: true}}
{sinks}
state: state
when_unavailable: spool
spool: {{link_share: 1}}
link: {{backoff_ms: [50, 200]}}
"""


class Camera:
    """Puts digits into the watched folder, as a camera would: under another name first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: list[str] = []
        self._digits = digits.test_examples()

    def put(self, n: int) -> None:
        for _ in range(n):
            number = len(self.names)
            name = f"{number:05d}.png"
            part = self.folder / f"{name}.part"
            part.write_bytes(self._digits[number % 1000][1])
            part.rename(self.folder / name)
            self.names.append(name)


def parts_of(path: Path) -> list[Path]:
    """A file and those rotated away from it."""
    return [part for part in path.parent.iterdir() if part.name.startswith(path.name)]


def size_of(path: Path) -> int:
    return sum(part.stat().st_size for part in parts_of(path))


def decisions_and_corrections(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All there are; each line must be whole."""
    lines = [line for part in parts_of(path) for line in part.read_text().splitlines(keepends=True)]
    records = [record for line in lines if line.endswith("\n") and "event" not in (record := json.loads(line))]
    return [r for r in records if "corrects" not in r], [r for r in records if "corrects" in r]


def is_settled(path: Path, n: int) -> bool:
    decisions, corrections = decisions_and_corrections(path)
    spooled = {record["spooled"] for record in decisions if "spooled" in record}
    return len(decisions) >= n and spooled <= {record["corrects"] for record in corrections}


def settle(path: Path, n: int, agent: Program) -> None:
    """Until all is decided and corrected, as long as it gets on."""
    size, seen_at = -1, time.monotonic()
    while not is_settled(path, n):
        if size_of(path) != size:
            size, seen_at = size_of(path), time.monotonic()
        assert time.monotonic() < seen_at + BOUND_S, agent.complained
        assert agent.process.poll() is None, agent.complained
        time.sleep(0.3)


def kill_and_check(folder: Path, n_kills: int, sinks: str, seed: int) -> None:
    rng = random.Random(seed)
    (folder / "in").mkdir()
    camera = Camera(folder / "in")
    port = closed_port()
    config = folder / "edge.yaml"
    config.write_text(CONFIG.format(port=port, sinks=sinks))
    path = folder / "out.jsonl"
    server: Cloud | None = None
    try:
        for number in range(n_kills):
            if rng.random() < 0.4 or number == n_kills // 2:
                server = turn(server, folder, port)
            camera.put(1 + rng.randrange(40))
            with edge(folder, config) as agent:
                size = size_of(path)
                if rng.random() < 0.8:  # at work, and not only while it starts
                    until(lambda at=size: size_of(path) > at, lambda agent=agent: agent.complained)
                camera.put(rng.randrange(40))
                time.sleep(rng.random() * 0.5)
                agent.send(signal.SIGKILL)
                assert agent.end() == -signal.SIGKILL, agent.complained
        server = server or turn(None, folder, port)
        camera.put(5)
        with edge(folder, config) as agent:
            settle(path, len(camera.names), agent)
            agent.send(signal.SIGTERM)
            assert agent.end() == 0, agent.complained
    finally:
        if server is not None:
            server.__exit__()
    decisions, corrections = decisions_and_corrections(path)
    counted = Counter(record["id"] for record in decisions)
    assert counted == Counter(camera.names), "lost, or decided twice"
    spooled = {record["spooled"]: record["id"] for record in decisions if "spooled" in record}
    assert Counter(record["corrects"] for record in corrections) == Counter(list(spooled)), "lost, or corrected twice"
    assert {record["corrects"]: record["id"] for record in corrections} == spooled
    assert all(record["degraded"] for record in decisions if "spooled" in record)
    assert all("label" in record and not record["degraded"] for record in corrections)
    assert spooled or n_kills < 10, "no example was ever spooled: this tested nothing"
    status = spool_status(folder, config)
    assert (status["waiting"], status["answered"], status["dropped"]) == (0, 0, {})
    assert status["offered"] == status["corrected"] == len(spooled)


def turn(server: Cloud | None, folder: Path, port: int) -> Cloud | None:
    """Off, if it is on; on, if it is off."""
    if server is not None:
        server.__exit__()
        return None
    return Cloud(folder, port=port).__enter__()


def spool_status(folder: Path, config: Path) -> dict[str, Any]:
    with Program("edge.main", ["spool", "status", "--json", "--config", config], folder) as program:
        assert program.end() == 0, program.complained
    found: dict[str, Any] = json.loads(program.said)
    return found


@pytest.mark.slow
def test_kills_lose_no_example_and_answer_none_twice(tmp_path):
    kill_and_check(tmp_path, 5, "sink: {path: out.jsonl}", seed=1)


@pytest.mark.slow
def test_many_kills_lose_no_example_and_answer_none_twice(tmp_path):
    kill_and_check(tmp_path, KILLS, "sink: {path: out.jsonl}", seed=2)


@pytest.mark.slow
def test_kills_with_a_file_that_is_rotated(tmp_path):
    kill_and_check(tmp_path, KILLS // 2, "sink: {path: out.jsonl, max_mb: 0.05, keep: 1000}", seed=3)


@pytest.mark.slow
def test_kills_with_two_sinks_leave_the_same_in_both(tmp_path):
    kill_and_check(tmp_path, KILLS // 2, "sinks: [{path: out.jsonl}, {kind: sqlite, path: out.db}]", seed=4)
    decisions, corrections = decisions_and_corrections(tmp_path / "out.jsonl")
    with sqlite3.connect(tmp_path / "out.db") as db:
        rows = db.execute("SELECT id, first, record FROM decisions").fetchall()
    db.close()
    last = {record["id"]: record for record in [*decisions, *corrections]}
    assert Counter(name for name, _, _ in rows) == Counter(list(last))
    assert all(json.loads(record) == last[name] for name, _, record in rows)
    assert sum(first is not None for _, first, _ in rows) == len(corrections)
