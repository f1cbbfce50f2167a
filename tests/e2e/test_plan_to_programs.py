"""From labelled examples to a running agent and server, by the configs that `coe-sim plan` writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from programs import Cloud, edge

from sim.main import main

pytestmark = pytest.mark.slow
pytest.importorskip("pyarrow")
pytest.importorskip("matplotlib")


def test_the_written_configs_run_and_decide_as_the_plan_replays(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "plan"
    given = [
        "plan",
        "--models",
        "digits",
        "--data",
        "digits",
        "--max-sent",
        "30%",
        "--most",
        "80",
        "--out",
        str(folder),
    ]
    assert main([*given, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["placement"]["device"]
    assert plan["placement"]["cloud"]
    assert main(["record", str(tmp_path / "digits.parquet"), "--json"]) == 0
    capsys.readouterr()
    replay = ["replay", str(tmp_path / "digits.parquet"), "--calibration", str(folder / "calibration.json"), "--json"]
    assert main(replay) == 0
    replayed = json.loads(capsys.readouterr().out)
    with Cloud(tmp_path, folder / "cloud.yaml") as server:
        config = folder / "pi.yaml"
        config.write_text(config.read_text().replace("127.0.0.1:8001", f"127.0.0.1:{server.port}"))
        with edge(tmp_path, config) as agent:
            assert agent.end() == 0, agent.complained
    records = agent.records
    assert len(records) == replayed["n"] == 1000
    assert not any(record["degraded"] for record in records)
    # Batched answers may differ in the last bit from those of one example alone: a score at the very threshold.
    right = sum(record["label"] == record["truth"] for record in records)
    assert abs(right / 1000 - replayed["accuracy"]) <= 0.002
    for tier, share in enumerate(replayed["exit"], start=1):
        assert abs(sum(record["exit_tier"] == tier for record in records) / 1000 - share) <= 0.002
