"""A real agent, a real broker or a real receiver, and SIGKILL at any moment: every id and every correction arrives.

COE_KILLS says how often the slow tests kill: 200 is what docs/reliability.md reports.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from programs import BOUND_S, Cloud, Program, closed_port, edge, records_in, until

sys.path.insert(1, str(Path(__file__).parent.parent / "sinks"))

from receiver import Receiver
from test_kills import CONFIG, Camera, spool_status, turn

KILLS = int(os.environ.get("COE_KILLS", "12"))
Records = Callable[[], list[dict[str, Any]]]


def is_settled(records: list[dict[str, Any]], names: list[str]) -> bool:
    spooled = {record["spooled"] for record in records if "spooled" in record}
    return {record.get("id") for record in records} >= set(names) and spooled <= {r.get("corrects") for r in records}


def settle(records: Records, names: list[str], agent: Program) -> None:
    """Until all has arrived, as long as it gets on."""
    n, seen_at = -1, time.monotonic()
    while not is_settled(found := records(), names):
        if len(found) != n:
            n, seen_at = len(found), time.monotonic()
        assert time.monotonic() < seen_at + 2 * BOUND_S, agent.complained
        assert agent.process.poll() is None, agent.complained
        time.sleep(0.1)


class Run:
    """Kills the agent again and again, in one folder."""

    def __init__(self, folder: Path, sinks: str, records: Records, *, seed: int, commit_s: float = 1.0) -> None:
        self.folder, self.records = folder, records
        self.rng = random.Random(seed)
        (folder / "in").mkdir()
        self.camera = Camera(folder / "in")
        self.port = closed_port()
        self.config = folder / "edge.yaml"
        self.config.write_text(CONFIG.format(port=self.port, sinks=f"sinks: [{sinks}]") + f"commit_s: {commit_s}\n")
        self.server: Cloud | None = None

    def kill(self, n_kills: int, *, most_files: int = 30, every_s: float = 1.0) -> None:
        taken = self.folder / "state" / "folders.taken"
        for number in range(n_kills):
            if self.rng.random() < 0.4 or number == n_kills // 2:
                self.server = turn(self.server, self.folder, self.port)
            self.camera.put(1 + self.rng.randrange(most_files))
            with edge(self.folder, self.config) as agent:
                if self.rng.random() < 0.8:  # at work, and not only while it starts
                    until(lambda: taken.exists() and taken.stat().st_size, lambda agent=agent: agent.complained)
                self.camera.put(self.rng.randrange(most_files))
                time.sleep(self.rng.random() * every_s)
                agent.send(signal.SIGKILL)
                assert agent.end() == -signal.SIGKILL, agent.complained

    def finish(self) -> None:
        """All that was promised arrives, and is counted."""
        try:
            self.server = self.server or turn(None, self.folder, self.port)
            self.camera.put(5)
            with edge(self.folder, self.config) as agent:
                settle(self.records, self.camera.names, agent)
                agent.send(signal.SIGTERM)
                assert agent.end() == 0, agent.complained
        finally:
            if self.server is not None:
                self.server.__exit__()
        status = spool_status(self.folder, self.config)
        assert (status["waiting"], status["answered"], status["delivering"], status["outbox"]) == (0, 0, 0, 0)
        assert status["offered"] == status["corrected"]
        assert status["dropped"] == {}
        found = self.records()
        n_ids = [record["id"] for record in found if "event" not in record and "corrects" not in record]
        print({"ids": len(self.camera.names), "records": len(n_ids), "repeated": len(n_ids) - len(set(n_ids))})


def posted(receiver: Receiver) -> list[dict[str, Any]]:
    return [record for body in receiver.bodies for record in (body if isinstance(body, list) else [body])]


WEBHOOK = "{{kind: webhook, url: '{url}', batch: 20, gather_ms: 10}}"


@pytest.mark.slow  # seven processes, one after another
def test_kills_with_a_receiver_lose_no_id_and_no_correction(tmp_path):
    with Receiver() as receiver:
        run = Run(tmp_path, WEBHOOK.format(url=receiver.url), lambda: posted(receiver), seed=5, commit_s=0.2)
        run.kill(2, most_files=6, every_s=0.1)
        run.finish()


@pytest.mark.slow
@pytest.mark.parametrize("more", ["", ", {path: out.jsonl}"])
def test_many_kills_with_a_receiver_lose_no_id_and_no_correction(tmp_path, more):
    with Receiver() as receiver:
        run = Run(tmp_path, WEBHOOK.format(url=receiver.url) + more, lambda: posted(receiver), seed=6)
        run.kill(KILLS)
        run.finish()


@pytest.mark.slow
def test_kills_while_the_receiver_is_away_lose_no_id_and_no_correction(tmp_path):
    port = closed_port()
    run = Run(tmp_path, WEBHOOK.format(url=f"http://127.0.0.1:{port}/"), list, seed=7)
    run.kill(KILLS // 4)
    with Receiver(port) as receiver:
        run.records = lambda: posted(receiver)
        run.finish()


@pytest.mark.slow
@pytest.mark.parametrize("is_there", [True, False])
def test_kills_with_a_broker_there_or_away_lose_no_id_and_no_correction(tmp_path, is_there):
    pytest.importorskip("paho.mqtt.client", reason="needs paho-mqtt: pip install 'coe-cascade[mqtt]'")
    from brokers import Mosquitto, Subscriber

    broker = Mosquitto(tmp_path / "broker")
    sinks = f"{{kind: mqtt, host: 127.0.0.1, port: {broker.port}, topic: site/decisions}}, {{path: out.jsonl}}"
    run = Run(tmp_path, sinks, list, seed=8)
    if not is_there:
        run.kill(KILLS // 4)
    with broker, Subscriber(broker.port, "site/#") as seen:
        run.records = lambda: [json.loads(payload) for payload in seen.on("site/decisions")]
        if is_there:
            run.kill(KILLS)
        run.finish()


@pytest.mark.slow
def test_a_batch_waits_for_late_answers_within_its_bound_and_the_rest_is_sent_by_hand(tmp_path):
    run = Run(tmp_path, "{path: out.jsonl}", list, seed=9)
    text = run.config.read_text().replace("{link_share: 1}", "{wait_s: 0.1}").replace("watch: true", "watch: false")
    run.config.write_text(text)
    run.camera.put(6)
    with edge(tmp_path, run.config, "--once") as agent:
        assert agent.end() == 0, agent.complained
    records = records_in((tmp_path / "out.jsonl").read_text())
    spooled = {record["spooled"] for record in records if "spooled" in record}
    assert f"{len(spooled)} examples still wait for an answer (`coe-edge spool send` sends them)" in agent.complained
    with (
        Cloud(tmp_path, port=run.port),
        Program("edge.main", ["spool", "send", "--config", run.config, "--json"], tmp_path) as sending,
    ):
        assert sending.end() == 0, sending.complained
    assert json.loads(sending.said) == {"corrected": len(spooled), "left": 0}
    records = records_in((tmp_path / "out.jsonl").read_text())
    assert {record["corrects"] for record in records if "corrects" in record} == spooled
