"""The cloud's benchmarks run and print what they promise; their figures are for quiet machines, not for tests."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from coe.protocol.service import SERVICE

BENCH = Path(__file__).parents[1] / "bench"

pytestmark = [
    pytest.mark.timing,
    pytest.mark.skipif(not BENCH.is_dir(), reason="the benchmarks are in the checkout, not in the wheel"),
    pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the benchmarks read CPU and memory from Linux's /proc"),
]


def bench(name: str, *arguments: str) -> dict:
    done = subprocess.run(
        [sys.executable, str(BENCH / name), *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def ask(worker: str, **job: object) -> dict:
    done = subprocess.run(
        [sys.executable, str(BENCH / worker)], input=json.dumps(job) + "\n", capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_server_is_compared_with_an_echo_and_with_its_models_alone():
    result = bench("cloud.py", "--rounds", "1", "--seconds", "0.2", "--clients", "1,8", "--payload", "png")
    assert result["errors"] == {}
    for clients in ("1", "8"):
        row = result["by_clients"][clients]
        assert {"asyncio", "coe", "models_alone"} <= row.keys()
        assert 0 < row["coe"]["p50_s"] <= row["coe"]["p99_s"] < 5
        assert row["coe"]["labels_right"] > 0.9, "each client is answered about its own digit"
        assert row["coe"]["ratio_to_echo_asyncio"] > 0
        assert row["models_alone"]["batch_is_known"], "the server says how many rows its batches had"
    assert result["by_clients"]["1"]["coe"]["batch"] == 1.0, "one client with one row is alone in its batch"
    assert result["goals"]["latency"]["models_s"] > 0


def test_the_same_is_measured_on_streams_that_stay_open():
    result = bench("cloud.py", "--stream", "--rounds", "1", "--seconds", "0.2", "--clients", "4")
    assert result["errors"] == {}
    row = result["by_clients"]["4"]
    assert row["asyncio"]["requests_per_s"] > 0, "the echo is on streams too"
    assert row["coe"]["labels_right"] > 0.9


def test_a_large_request_is_compared_with_single_ones_and_put_beside_small_ones():
    result = bench("cloud.py", "--large", "--rounds", "1", "--seconds", "0.6")
    assert result["errors"] == {}
    assert result["rows_at_once"]["ratio_to_single_at_once"] < 1, "100 rows at once cost less than 100 single ones"
    beside = result["beside"]
    assert beside["small_beside_large"]["p99_s"] >= beside["small_beside_large"]["p50_s"] > 0
    assert beside["large_beside_small"]["requests_per_s"] > 0, "large ones are not starved either"


def test_the_overload_offers_four_times_the_peak_and_says_what_became_of_it():
    result = bench("overload.py", "--seconds", "1.5", "--peak-seconds", "0.2", "--deadline", "0.5")
    over = result["overload"]
    assert over["due_per_s"] == pytest.approx(4 * result["peak"]["goodput_per_s"], rel=0.15)
    counts = dict(over["counts"])
    counts.pop("with_push_back", None)
    assert sum(counts.values()) == pytest.approx(over["due_per_s"] * 1.5, abs=1), "every call is accounted for"
    assert not {"connection_lost", "unreadable", "no_label"} & counts.keys()
    assert result["memory"]["at_end_bytes"] > 2**20
    assert result["checks"].keys() >= {"goodput_holds", "p99_is_bounded", "memory_does_not_grow"}


@pytest.fixture
def refusing():
    """The address of a server that refuses every call and asks to be left alone for a second."""

    def refuse(request: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata((("grpc-retry-pushback-ms", "1000"),))
        return context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")

    server = grpc.server(ThreadPoolExecutor(2))
    method = {"ModelInfer": grpc.unary_unary_rpc_method_handler(refuse)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, method),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0)


def test_polite_devices_hold_back_when_they_are_asked_to_and_rude_ones_do_not(refusing):
    job = {"address": refusing, "pid": 0, "seconds": 0.5, "payload": "png", "rows": 1, "deadline_s": 1.0}
    job |= {"connections": 2, "devices": 10, "rate": 400.0}
    rude = ask("flood.py", **job, polite=0.0)
    assert rude["counts"]["RESOURCE_EXHAUSTED"] == rude["counts"]["with_push_back"] == rude["due"]
    assert rude["words"] == {"RESOURCE_EXHAUSTED": "full"}
    polite = ask("flood.py", **job, polite=1.0)
    assert 10 <= polite["counts"]["RESOURCE_EXHAUSTED"] < polite["due"] / 2, "about one call each"
    assert polite["counts"]["held_back"] == polite["due"] - polite["counts"]["RESOURCE_EXHAUSTED"]


def test_the_load_generator_counts_every_error_by_its_code(refusing):
    job = {"address": refusing, "clients": 2, "seconds": 0.2, "payload": "png"}
    answer = ask("load.py", do="closed", **job)
    assert answer["errors"].keys() == {"RESOURCE_EXHAUSTED"}
    assert answer["latencies_us"] == []


def test_a_server_that_is_watched_is_compared_with_one_that_is_not():
    result = bench("watching.py", "--rounds", "1", "--seconds", "0.3")
    assert 0.1 < result["throughput_watched_of_unwatched"] < 10
    assert all(not told["errors"] for one in result["rounds"] for told in one.values())
