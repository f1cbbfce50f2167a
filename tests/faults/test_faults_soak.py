"""A real agent for a long time on a link that comes and goes. COE_SOAK_S sets how long, by default half a minute.

COE_SOAK_S=1800 pytest -m slow tests/faults/test_faults_soak.py -s     # half an hour
"""

from __future__ import annotations

import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from proxies import BlackHole, CutAfter, Proxy, Refuse, Reset, Slow

sys.path.append(str(Path(__file__).parent.parent / "e2e"))

from programs import Cloud, edge, edge_config, records_in, until

pytestmark = pytest.mark.slow

SOAK_S = float(os.environ.get("COE_SOAK_S", "30"))
DEADLINE_S = 0.4  # of one example
SLACK_S = 1.5  # two busy cores
MORE = (
    "when_unavailable: spool",
    "state: state",
    f"deadline_ms: {DEADLINE_S * 1000:g}",
    "link: {backoff_ms: [100, 1000]}",
)
FAULTS = (BlackHole, Reset, Refuse, lambda: Slow(1.0), lambda: CutAfter(2000))


def test_every_example_is_answered_memory_stays_flat_and_the_spool_is_empty_in_the_end(tmp_path):
    dice = random.Random(20)
    memory: list[float] = []
    faults: Counter[str] = Counter()
    with Cloud(tmp_path) as cloud, Proxy(cloud.port) as proxy:
        source = "{kind: digits, repeat: 1000000, interval_ms: 5}"
        config = edge_config(tmp_path, proxy.port, *MORE, source=source, sink="out.jsonl", deadline_ms=300)
        with edge(tmp_path, config) as agent:
            until(lambda: (tmp_path / "out.jsonl").exists(), lambda: agent.complained)
            end = time.monotonic() + SOAK_S
            while time.monotonic() < end:
                rest(agent, dice.uniform(2, 8), memory)
                proxy.fault = dice.choice(FAULTS)()
                faults[type(proxy.fault).__name__] += 1
                rest(agent, dice.uniform(1, 6), memory)
                proxy.fault = None
            until(lambda: waiting(config) == 0, lambda: f"{waiting(config)} examples are still in the spool")
            agent.send(15)
            assert agent.end() == 0, agent.complained
            assert waiting(config) == 0
        complained = agent.complained
    records = [record for record in records_in((tmp_path / "out.jsonl").read_text()) if "event" not in record]
    first = [record for record in records if "corrects" not in record]
    late = [record for record in records if "corrects" in record]
    ids = [record["id"] for record in first]
    assert sorted(ids, key=in_order) == list(itertools.islice(given(), len(ids)))  # each once, none left out
    assert all("label" in record for record in first)
    spooled = {record["spooled"]: record["id"] for record in first if "spooled" in record}
    assert Counter(record["corrects"] for record in late) == Counter(list(spooled))
    assert all(spooled[record["corrects"]] == record["id"] for record in late)
    slowest = max(record["latency_s"] for record in first)
    assert slowest < DEADLINE_S + SLACK_S
    quarter = len(memory) // 4
    early, latest = statistics.median(memory[quarter : 2 * quarter]), statistics.median(memory[3 * quarter :])
    n_degraded = sum(record["degraded"] is not None for record in first)
    print(
        f"\n{len(first):,} examples in {SOAK_S:.0f} s, {n_degraded:,} degraded, {len(late):,} corrected; "
        f"{dict(faults)}; slowest {slowest * 1000:.0f} ms; memory {early:.1f} MB in the second quarter, "
        f"{latest:.1f} MB in the last, {max(memory):.1f} MB at most"
    )
    assert n_degraded > 0
    assert latest < early * 1.03 + 3, memory
    assert "Traceback" not in complained


def rest(agent, seconds: float, memory: list[float]) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert agent.process.poll() is None, agent.complained
        memory.append(resident_mb(agent.process.pid))
        time.sleep(0.5)


def resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def waiting(config: Path) -> int:
    command = [sys.executable, "-m", "edge.main", "spool", "status", "--config", str(config), "--json"]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(told.stdout)["waiting"])


def given():
    """The ids as the source gives them."""
    for turn in itertools.count(1):
        for number in range(1000):
            yield f"digit-{number:04}" if turn == 1 else f"digit-{number:04}#{turn}"


def in_order(name: str) -> tuple[int, str]:
    digit, _, turn = name.partition("#")
    return int(turn or 1), digit
