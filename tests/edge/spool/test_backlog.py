"""A backlog of hundreds and live examples, on a real link: who goes first, and how much of the link is whose."""

from __future__ import annotations

import signal
import statistics
from pathlib import Path
from typing import Any

import pytest
from programs import Cloud, edge, edge_config, records_in, until

from coe.cascade import Decision
from coe.zoo import digits
from edge.config import read_config
from edge.sinks import Outcome
from edge.sources import Example
from edge.spool.store import SpoolStore

SHARE = 0.2
LIVE = "{kind: digits, interval_ms: 25}"


def run(folder: Path, port: int, n_backlog: int, *, n_live: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Live decisions of the cloud, and corrections."""
    folder.mkdir()
    sink = folder / "out.jsonl"
    more = ("state: state", "when_unavailable: spool", f"spool: {{link_share: {SHARE}}}")
    config = edge_config(folder, port, *more, source=LIVE, rule="confidence: 1.0", sink=str(sink))
    fill(config, n_backlog)
    with edge(folder, config, "--limit", n_live) as agent:
        assert agent.end() == 0, agent.complained
    records = [record for record in records_in(sink.read_text()) if "event" not in record]
    corrections = [record for record in records if "corrects" in record]
    return [record for record in records if record["exit_tier"] > 1 and "corrects" not in record], corrections


def fill(config: Path, n: int) -> None:
    spool = read_config(config).spool
    assert spool is not None
    store = SpoolStore(spool, [].append)
    for name, png, label in digits.test_examples()[:n]:
        decision = Decision(name, 0, 1, 1.0, 0.5, 3, 3, (1.0,), (0.001,), degraded="unavailable: gone")
        store.confirm(store.put(Example(f"old-{name}", png, label), Outcome(f"old-{name}", decision, 0.001)))
    store.close()


@pytest.mark.timing
def test_a_backlog_of_five_hundred_delays_no_live_example_and_has_its_share_alone(tmp_path):
    with Cloud(tmp_path) as server:
        run(tmp_path / "warm", server.port, 0, n_live=40)
        alone: list[float] = []
        beside: list[float] = []
        for turn in range(3):  # in turns: other work on this machine comes and goes
            live, _ = run(tmp_path / f"alone-{turn}", server.port, 0, n_live=100)
            alone += [record["latency_s"] for record in live]
            live, corrections = run(tmp_path / f"beside-{turn}", server.port, 500, n_live=100)
            beside += [record["latency_s"] for record in live]
            assert len(corrections) >= 10
            took_s = corrections[-1]["at"] - corrections[0]["at"]
            calls = [record["call"]["call_s"] for record in corrections]
            assert sum(calls[:-1]) <= SHARE * took_s * 1.1 + max(calls)
    print({"alone_s": statistics.median(alone), "beside_s": statistics.median(beside), "n": len(beside)})
    assert statistics.median(beside) < 1.5 * statistics.median(alone) + 0.002


@pytest.mark.timing
def test_a_backlog_drains_by_itself_once_the_cloud_is_there(tmp_path):
    with Cloud(tmp_path) as server:
        sink = tmp_path / "out.jsonl"
        (tmp_path / "in").mkdir()
        more = ("state: state", "when_unavailable: spool", "spool: {link_share: 0.5}")
        config = edge_config(
            tmp_path, server.port, *more, source="{kind: folder, path: in, watch: true}", sink=str(sink)
        )
        fill(config, 300)
        with edge(tmp_path, config) as agent:
            until(lambda: sink.exists() and len(records_in(sink.read_text())) == 300, lambda: agent.complained)
            agent.send(signal.SIGTERM)
            assert agent.end() == 0, agent.complained
    assert len({record["corrects"] for record in records_in(sink.read_text())}) == 300
