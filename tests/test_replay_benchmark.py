"""The replay benchmark runs, and comes to what the plain path comes to; its bound is for a quiet machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench" / "replay.py"

pytestmark = pytest.mark.skipif(not BENCH.exists(), reason="the benchmarks are in the checkout, not in the wheel")


@pytest.mark.timing
def test_many_cascades_at_once_are_faster_than_one_by_one_and_the_same():
    command = [sys.executable, str(BENCH), "--examples", "20000", "--configurations", "200", "--plain", "5"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    result = json.loads(done.stdout)
    assert result["equal_to_plain"]
    assert result["seconds"] < 10
    assert result["times_faster"] > 2
