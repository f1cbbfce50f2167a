"""One tier on two real servers: an agent loses no answer while one drains, dies, and comes back."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
from programs import Cloud, edge, records_in, until

CONFIG = """
task: zoo:digits
tiers:
  - name: device
    members: [zoo:digits/stroke.onnx, zoo:digits/loom.onnx]
    confidence: 1.0
  - {{name: cloud, address: ["127.0.0.1:{one}", "127.0.0.1:{other}"], model: digits, deadline_ms: 8000}}
source: {{kind: digits, repeat: 1000, interval_ms: 3}}
sink: {{path: {sink}}}
"""


@pytest.mark.slow
def test_an_agent_loses_no_answer_while_one_of_two_servers_drains_or_dies(tmp_path: Path) -> None:
    sink, config = tmp_path / "decisions.jsonl", tmp_path / "edge.yaml"

    def records() -> list[dict[str, Any]]:
        return records_in(sink.read_text()) if sink.exists() else []

    def answered(n: int) -> None:
        """Wait for n answers more."""
        before = len(records())
        until(lambda: len(records()) >= before + n, lambda: agent.complained)

    with Cloud(tmp_path) as one, Cloud(tmp_path) as other:
        config.write_text(CONFIG.format(one=one.port, other=other.port, sink=sink), encoding="utf-8")
        with edge(tmp_path, config) as agent:
            answered(60)
            other.send(signal.SIGTERM)
            started = time.monotonic()
            assert other.end() == 0
            drained_s = time.monotonic() - started
            answered(60)
            with Cloud(tmp_path, port=other.port) as back:
                answered(60)
                time.sleep(4)  # about the longest a client waits before it tries a lost host again
                one.send(signal.SIGKILL)
                one.end()
                answered(60)
                agent.send(signal.SIGTERM)
                assert agent.end() == 0
                back.send(signal.SIGTERM)
                assert back.end() == 0
    assert drained_s < 5, "a watch of the server's health kept it for its grace period"
    degraded = [record["degraded"] for record in records() if record["degraded"]]
    assert not degraded
    assert all(record["exit_tier"] > 1 for record in records())
