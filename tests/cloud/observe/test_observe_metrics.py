"""The metrics as Prometheus would read them, and the dashboard that draws them."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from watching import World, core, request, served

from cloud.config import ObserveConfig
from cloud.observe.metrics import TIMES, Metrics
from cloud.observe.observer import Observer
from cloud.observe.tally import Tally
from coe.cascade import CascadeError, TierOverloaded

pytest.importorskip("prometheus_client", reason="prometheus_client is not installed")
from prometheus_client.parser import text_string_to_metric_families

DOCS = Path(__file__).parents[3] / "docs"


def scrape(metrics: Metrics) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Samples by name and labels."""
    body, headers = metrics.expose()
    assert headers["Content-Type"].startswith("text/plain")
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


@pytest.fixture
def busy() -> tuple[Metrics, Tally, World]:
    """After eight rows in three requests, one stranger's and one refused."""
    world, tally = World(waiting=3), Tally()
    metrics = Metrics(tally, world.view)

    class Only:
        gates = watchers = (tally,)

    made = core(Only, served())

    async def ask() -> None:
        for rows in ([0], [2], [0, 1, 2, 3]):
            await made.infer(request(rows, caller="device-7", id="secret-id"))
        with pytest.raises(CascadeError):
            await made.infer(request(model="stranger's"))

    asyncio.run(ask())
    tally.failed(request(), TierOverloaded("quota", "x"), 0.0)
    tally.sent(500)
    return metrics, tally, world


def labels(**pairs: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(pairs.items()))


def test_requests_rows_and_exits_are_there_by_model_and_tier(busy):
    told = scrape(busy[0])
    assert told["coe_cloud_requests_total"][labels(model="digits", code="OK")] == 3
    assert told["coe_cloud_requests_total"][labels(model="digits", code="RESOURCE_EXHAUSTED")] == 1
    assert told["coe_cloud_requests_total"][labels(model="(unknown)", code="NOT_FOUND")] == 1
    assert told["coe_cloud_refused_total"] == {labels(by="quota"): 1}
    tiers = [labels(model="digits", tier="1", tier_name="medium"), labels(model="digits", tier="2", tier_name="best")]
    assert [told["coe_cloud_tier_rows_total"][tier] for tier in tiers] == [6, 3]
    assert [told["coe_cloud_tier_exits_total"][tier] for tier in tiers] == [3, 3]
    assert told["coe_cloud_request_bytes_total"][labels(model="digits")] == 400
    assert told["coe_cloud_response_bytes_total"][()] == 500
    assert told["coe_cloud_queued_rows"][labels(queue="medium")] == 3


def test_members_that_fail_are_counted(busy):
    busy[2].failures = (("medium", "a.onnx", 3, "OSError: disk on fire"), ("medium", "b.onnx", 0, None))
    assert scrape(busy[0])["coe_cloud_member_failed_rows_total"] == {
        labels(tier="medium", member="a.onnx"): 3,
        labels(tier="medium", member="b.onnx"): 0,
    }


def test_a_histogram_adds_up_and_ends_at_infinity(busy):
    told = scrape(busy[0])
    buckets = {
        dict(key)["le"]: n for key, n in told["coe_cloud_request_seconds_bucket"].items() if ("model", "digits") in key
    }
    assert [float(bound) for bound in buckets] == [*TIMES, float("inf")]
    values = list(buckets.values())
    assert values == sorted(values)
    assert values[-1] == told["coe_cloud_request_seconds_count"][labels(model="digits")] == 3
    batches = {
        dict(key)["le"]: n for key, n in told["coe_cloud_batch_rows_bucket"].items() if ("model", "digits") in key
    }
    assert (batches["1.0"], batches["2.0"], batches["4.0"]) == (2, 2, 3)


def test_what_a_model_is_made_of_is_there_with_its_checksum(busy):
    lines = [dict(key) for key in scrape(busy[0])["coe_cloud_model_info"]]
    ripple = next(line for line in lines if line["member"] == "ripple.onnx")
    assert ripple["sha256"] == "a" * 64
    assert ripple["tier_name"] == "medium"


def test_no_device_no_request_and_no_strangers_name_becomes_a_label(busy):
    body = busy[0].expose()[0].decode()
    for word in ("device-7", "secret-id", "stranger"):
        assert word not in body


def test_readiness_follows_the_server(busy):
    metrics, _, world = busy
    assert scrape(metrics)["coe_cloud_ready"][()] == 1
    world.ready = False
    assert scrape(metrics)["coe_cloud_ready"][()] == 0
    assert scrape(metrics)["coe_cloud_model_ready"][labels(model="digits")] == 0


def test_names_follow_prometheus_conventions(busy):
    body = busy[0].expose()[0].decode()
    kinds = dict(re.findall(r"^# TYPE (coe_cloud_\w+) (\w+)", body, re.M))
    assert len(kinds) >= 15
    for name, kind in kinds.items():
        assert name.endswith("_total") == (kind == "counter"), name
        assert not re.search(r"_(ms|us|kb|mb|percent)(_|$)", name), name
    assert all(help_text.endswith(".") for help_text in re.findall(r"^# HELP coe_cloud_\w+ (.*)", body, re.M))


def test_the_process_itself_is_measured_too(busy):
    assert scrape(busy[0])["process_resident_memory_bytes"][()] > 1e6


def test_a_server_nobody_asked_yet_has_its_models_at_zero():
    told = scrape(Metrics(Tally(), World().view))
    assert told["coe_cloud_requests_total"][labels(model="digits", code="OK")] == 0


def test_metrics_switched_off_need_no_package_and_are_not_there():
    observer = Observer(ObserveConfig(metrics=False), World().view)
    assert "/metrics" not in observer.pages


def test_every_metric_the_dashboard_draws_is_one_the_server_has(busy):
    known = set(scrape(busy[0]))
    queries = list(_queries(json.loads((DOCS / "grafana.json").read_text(encoding="utf-8"))))
    assert len(queries) >= 15
    drawn = {name for query in queries for name in re.findall(r"\b(?:coe_cloud|process)_\w+", query)}
    assert drawn <= known
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in drawn}
    ours = {re.sub(r"_(bucket|sum|count)$", "", name) for name in known if name.startswith("coe_cloud_")}
    assert ours - shown == set()  # and everything the server has is drawn


def test_the_dashboard_asks_for_its_data_source_as_it_is_imported():
    board = json.loads((DOCS / "grafana.json").read_text(encoding="utf-8"))
    assert [one["type"] for one in board["__inputs"]] == ["datasource"]
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    assert all(panel["datasource"]["uid"] == "${DS_PROMETHEUS}" for panel in board["panels"] if panel["type"] != "row")


def test_the_page_for_operators_lists_every_metric(busy):
    text = (DOCS / "operate.md").read_text(encoding="utf-8")
    names = {re.sub(r"_(bucket|sum|count)$", "", name) for name in scrape(busy[0]) if name.startswith("coe_cloud_")}
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []


def _queries(node: Any) -> Any:
    """Every PromQL text, wherever in the dashboard."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("expr", "query", "definition") and isinstance(value, str):
                yield value
            else:
                yield from _queries(value)
    elif isinstance(node, list):
        for value in node:
            yield from _queries(value)
