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
        [sys.executable, str(BENCH / name), *arguments], capture_output=True, text=True, check=True, timeout=400
    )
    return json.loads(done.stdout)


@pytest.mark.timing
def test_the_decision_benchmark_compares_ways_within_one_run():
    result = bench("edge.py", "--rounds", "9", "--examples", "200")
    ways = {"bare_all_members", "models_own"}
    ways |= {"decide_all_members", "decide_early_two_of_three", "decide_early_unanimous"}
    ways |= {"decide_early_two_of_three_measured_order", "decide_early_unanimous_measured_order"}
    ways |= {"decide_calibrated_all_members", "decide_calibrated_early"}
    assert result["seconds_per_example"].keys() == ways
    assert 0 < result["overhead_s"] < 100e-6
    assert sorted(result["measured_order"]) == ["loom.onnx", "mosaic.onnx", "stroke.onnx"]
    assert result["same_decisions_in_either_order"]


@pytest.mark.timing
def test_stopping_early_is_cheaper_than_a_bare_loop_over_all_members():
    for _ in range(5):  # other programs may come in between, now and then
        result = bench("edge.py", "--rounds", "9", "--examples", "200")
        if result["ratio_early_two_of_three"] < min(1.0, result["ratio_early_unanimous"]):
            return
    pytest.fail(f"in none of five runs; the last: {result}")


@pytest.mark.timing
def test_an_agent_starts_light_and_soon():
    result = bench("footprint.py", "--runs", "1")
    for runtime in ("onnx", "tflite"):
        assert result[runtime]["heavy_imports"] == []
        assert result[runtime]["memory_within_bound"]
        assert result[runtime]["start_to_first_decision_s"] < 3  # the bound of 1 s is for a quiet machine


@pytest.mark.slow
def test_the_agent_benchmark_compares_real_processes_on_the_same_files():
    result = bench("agent.py", "--files", "30", "--rounds", "1")
    assert result["rounds"][0].keys() == {"plain", "jsonlines", "sqlite", "page"}
    assert result["ratio_to_plain"].keys() == result["bounds"].keys() == {"jsonlines", "sqlite", "page"}
    assert all(way.keys() == {"us_each", "cpu_us_each"} for way in result["ratio_to_plain"].values())


@pytest.mark.slow
def test_the_agent_benchmark_says_what_a_watched_folder_costs():
    result = bench("agent.py", "--watched", "200", "--seconds", "1")
    assert 0 <= result["reported"]["cpu_share"] < 1
    assert result["polled"].keys() == {"cpu_share", "cpu_share_of_100_files", "bytes_a_file"}
