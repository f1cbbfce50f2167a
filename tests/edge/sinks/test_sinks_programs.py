"""A real agent with four sinks: all tell the same story, and one that is away is no reason to stop."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

pytest.importorskip("paho.mqtt.client", reason="needs paho-mqtt: pip install 'coe-cascade[mqtt]'")

from brokers import Subscriber
from fakes import until
from programs import Program, closed_port, records_in
from receiver import Receiver

AGENT = """
task: zoo:digits
state: {folder}/state
tiers: [{{members: [zoo:digits/stroke.onnx, zoo:digits/loom.onnx]}}]
source: {{kind: digits}}
sinks:
  - {{path: {folder}/decisions.jsonl, max_mb: 0.02, keep: 100, gzip: true}}
  - {{kind: sqlite, path: {folder}/decisions.db}}
  - {{kind: mqtt, host: 127.0.0.1, port: {broker}, topic: site/decisions, flush_ms: {flush_ms}}}
  - {{kind: webhook, url: "{url}", batch: 50, gather_ms: 20, flush_ms: {flush_ms}}}
"""


def agent(folder: Path, broker: int, url: str, n: int, flush_ms: int = 20_000) -> Program:
    config = folder / "edge.yaml"
    config.write_text(AGENT.format(folder=folder, broker=broker, url=url, flush_ms=flush_ms), encoding="utf-8")
    return Program("edge.main", ["--config", config, "--limit", n], folder)


def in_files(folder: Path) -> list[str]:
    from edge.sinks.jsonlines import since

    return [str(record["id"]) for record in since(folder / "decisions.jsonl", "") if "id" in record]


def in_database(folder: Path) -> list[str]:
    with closing(sqlite3.connect(folder / "decisions.db")) as reader:
        return [name for (name,) in reader.execute("SELECT id FROM decisions ORDER BY seq")]


def test_four_sinks_get_the_same_decisions(broker, tmp_path):
    with Receiver() as receiver, Subscriber(broker.port, "site/decisions") as seen:
        with agent(tmp_path, broker.port, receiver.url, 300) as program:
            assert program.end() == 0, program.complained
        until(lambda: len(seen.messages) == 300)
        posted = [record["id"] for body in receiver.bodies for record in body]
    published = [json.loads(payload)["id"] for _, payload in seen.messages]
    assert len(published) == 300
    assert published == posted == in_database(tmp_path) == in_files(tmp_path)
    assert list(tmp_path.glob("decisions.jsonl.*.gz"))


def test_sinks_that_are_away_do_not_hold_up_the_agent_and_are_told_of(tmp_path):
    with agent(tmp_path, closed_port(), f"http://127.0.0.1:{closed_port()}/x", 100, flush_ms=300) as program:
        assert program.end() == 0
    assert len(in_files(tmp_path)) == 100
    lines = program.complained.splitlines()
    assert sum("sink mqtt" in line and "fails: " in line for line in lines) == 1
    assert sum("sink webhook" in line and "fails: Connection refused" in line for line in lines) == 1
    assert sum("not delivered yet; the next start sends them" in line for line in lines) == 2
    events = [record for record in records_in((tmp_path / "decisions.jsonl").read_text()) if "event" in record]
    assert all(event["event"] == "sink" for event in events)
