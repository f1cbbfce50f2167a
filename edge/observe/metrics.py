"""The same facts for Prometheus. Every name begins with coe_edge_."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .status import SECONDS, RecentDecisions

LinkStatus = Callable[[], dict[str, Any]]
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(status: LinkStatus, recent: RecentDecisions) -> Callable[[], bytes]:
    """A function that gives the text of `/metrics`."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector(status, recent))
    return lambda: generate_latest(registry)


class Collector:
    """Reads the status when it is asked; nothing is counted twice."""

    def __init__(self, status: LinkStatus, recent: RecentDecisions) -> None:
        self._status = status
        self._recent = recent

    def collect(self) -> Iterator[Any]:
        told = self._status()
        yield from _examples(told)
        yield self._seconds()
        yield from _links(told["links"])
        if told["spool"] is not None:
            yield from _spool(told["spool"])
        yield from _sinks(told["sinks"])
        if told["audit"] is not None:
            yield from _audit(told["audit"])
        yield from _drift(told["drift"])

    def describe(self) -> Iterable[Any]:
        return ()

    def _seconds(self) -> Any:
        from prometheus_client.core import HistogramMetricFamily

        total, buckets = 0, []
        times = list(self._recent.times)
        for bound, n in zip((*map(str, SECONDS), "+Inf"), times, strict=True):
            total += n
            buckets.append((bound, total))
        return HistogramMetricFamily(
            "coe_edge_decision_seconds", "From taking an example to its answer.", buckets, self._recent.time_s
        )


def _examples(told: dict[str, Any]) -> Iterator[Any]:
    yield _counter("examples", "Examples with an outcome, decided or not.", told["examples"])
    yield _counters("decisions", "Decisions by the tier that made them.", "exit_tier", told["exits"])
    yield _counter("deferred", "Examples the local tiers did not settle.", told["deferred"])
    yield _counters("missed", "Outcomes that are not what was wanted, by why.", "reason", told["reasons"])
    yield _counter("calls", "Calls to other machines.", told["calls"])
    yield _counter("sent_bytes", "Bytes of requests.", told["bytes_sent"])
    yield _counter("received_bytes", "Bytes of answers.", told["bytes_received"])
    yield _counter("spooled", "Examples kept for a later answer.", told["spooled"])
    yield _counter("corrected", "Of those, answered.", told["corrected"])
    yield _gauge("waiting", "Examples under way at a server.", told["waiting"])
    yield _gauge("start_time_seconds", "When the agent started, since 1970.", told["started_at"])


def _links(links: list[dict[str, Any]]) -> Iterator[Any]:
    up = {link["tier"]: float(link["status"] == "closed") for link in links}
    yield _gauges("link_up", "1 where calls to the tier pass, 0 where its breaker is open or half-open.", "tier", up)
    known = {link["tier"]: link["round_trip_s"] for link in links if link["round_trip_s"] is not None}
    yield _gauges("link_round_trip_seconds", "Moving average of a call's time.", "tier", known)
    for key, what in (("opened", "went down"), ("probes", "was probed"), ("rebuilds", "was connected anew")):
        values = {link["tier"]: link[key] for link in links}
        yield _counters(f"link_{key}", f"How often the link {what}.", "tier", values)


def _spool(spool: dict[str, Any]) -> Iterator[Any]:
    yield _gauge("spool_examples", "Examples that wait for a later answer.", spool["waiting"])
    yield _gauge("spool_bytes", "Bytes of the spool's file.", spool["bytes"])
    yield _gauge("spool_oldest_seconds", "Age of the oldest of them.", spool["oldest_s"] or 0.0)
    yield _counters("spool_dropped", "Examples dropped from the spool, by why.", "reason", spool["dropped"])


def _sinks(sinks: list[dict[str, Any]]) -> Iterator[Any]:
    for key, what in (("written", "Records written."), ("dropped", "Records that could not be written.")):
        yield _counters(f"sink_{key}", what, "sink", {sink["name"]: sink[key] for sink in sinks})
    failing = {sink["name"]: float(sink["failing"]) for sink in sinks}
    yield _gauges("sink_failing", "1 where the sink takes nothing now.", "sink", failing)


def _audit(audit: dict[str, Any]) -> Iterator[Any]:
    yield _counter("audit_drawn", "Examples drawn for the audit.", audit["drawn"])
    yield _counter("audit_answered", "Of those, answered.", audit["answered"])
    if audit["error"] is not None:
        values = {"estimate": audit["error"], "low": audit["low"], "high": audit["high"]}
        yield _gauges(
            "audit_error", "Share of the device's decisions the cloud differs on; 95% interval.", "bound", values
        )
        by_label = {name: facts["error"] for name, facts in audit["by_label"].items() if facts["error"] is not None}
        yield _gauges("audit_error_by_label", "The same by the device's label.", "label", by_label)


def _drift(gauges: list[dict[str, Any]]) -> Iterator[Any]:
    known = {gauge["what"]: gauge["share"] for gauge in gauges if gauge["share"] is not None}
    yield _gauges("drift_share", "A share over the latest window.", "what", known)
    outside = {gauge["what"]: float(gauge["state"] == "outside") for gauge in gauges}
    yield _gauges("drift_outside", "1 where that share has left the band of calibration.", "what", outside)


def _counter(name: str, what: str, value: float) -> Any:
    return _counters(name, what, "", {"": value})


def _counters(name: str, what: str, label: str, values: dict[str, float]) -> Any:
    from prometheus_client.core import CounterMetricFamily

    return _filled(CounterMetricFamily(f"coe_edge_{name}", what, labels=[label] if label else []), values)


def _gauge(name: str, what: str, value: float) -> Any:
    return _gauges(name, what, "", {"": value})


def _gauges(name: str, what: str, label: str, values: dict[str, float]) -> Any:
    from prometheus_client.core import GaugeMetricFamily

    return _filled(GaugeMetricFamily(f"coe_edge_{name}", what, labels=[label] if label else []), values)


def _filled(family: Any, values: dict[str, float]) -> Any:
    for key, value in values.items():
        family.add_metric([key] if key else [], value)
    return family
