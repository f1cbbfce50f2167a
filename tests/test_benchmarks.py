"""The benchmarks run and print what they promise; their figures are for quiet machines, not for tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"

pytestmark = pytest.mark.skipif(not BENCH.is_dir(), reason="the benchmarks are in the checkout, not in the wheel")


def bench(name: str, *arguments: str) -> dict:
    done = subprocess.run(
        [sys.executable, str(BENCH / name), *arguments], capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(done.stdout)


def test_the_decision_benchmark_compares_ways_within_one_run():
    result = bench("edge.py", "--rounds", "9", "--examples", "200")
    ways = {"bare_all_members", "decide_all_members", "decide_early_two_of_three", "decide_early_unanimous"}
    assert result["seconds_per_example"].keys() == ways
    assert result["ratio_early_two_of_three"] < 1.0, "stopping early is cheaper than a bare loop over all members"
    assert result["ratio_early_two_of_three"] < result["ratio_early_unanimous"]
    assert 0 < result["overhead_s"] < 100e-6


def test_an_agent_starts_light_and_soon():
    result = bench("footprint.py", "--runs", "1")
    for runtime in ("onnx", "tflite"):
        assert result[runtime]["heavy_imports"] == []
        assert result[runtime]["memory_within_bound"]
        assert result[runtime]["start_to_first_decision_s"] < 3  # the bound of 1 s is for a quiet machine
