"""The agent's state as Prometheus metrics; every name begins with coe_edge_."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any

from .status import SECONDS, RecentDecisions

Status = Callable[[], dict[str, Any]]
Values = float | dict[str, float]  # by the value of the label
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(status: Status, recent: RecentDecisions) -> Callable[[], bytes]:
    """A function that returns the body of `/metrics`."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector(status, recent))
    return lambda: generate_latest(registry)


class Collector:
    """A collector of prometheus_client, which reads the status at each scrape: nothing is counted twice."""

    def __init__(self, status: Status, recent: RecentDecisions) -> None:
        self._status = status
        self._recent = recent

    def collect(self) -> Iterator[Any]:
        facts = self._status()
        yield from _examples(facts)
        yield self._seconds()
        yield from _members(facts["members"])
        yield from _links(facts["links"])
        if facts["link_budget"] is not None:
            yield from _link_budget(facts["link_budget"])
        if facts["spool"] is not None:
            yield from _spool(facts["spool"])
        yield from _sinks(facts["sinks"])
        if facts["audit"] is not None:
            yield from _audit(facts["audit"])
        yield from _drift(facts["drift"])

    def describe(self) -> tuple[()]:
        return ()

    def _seconds(self) -> Any:
        from prometheus_client.core import HistogramMetricFamily

        below = accumulate(list(self._recent.times))
        buckets = list(zip((*map(str, SECONDS), "+Inf"), below, strict=True))
        return HistogramMetricFamily(
            "coe_edge_decision_seconds", "From taking an example to its answer.", buckets, self._recent.time_s
        )


def _examples(facts: dict[str, Any]) -> Iterator[Any]:
    yield _counter("examples", "Examples with an outcome, decided or not.", facts["examples"])
    yield _counter("decisions", "Decisions by the tier that made them.", facts["exits"], "exit_tier")
    yield _counter("deferred", "Examples the local tiers did not settle.", facts["deferred"])
    yield _counter("missed", "Outcomes without the answer that was wanted, by reason.", facts["reasons"], "reason")
    yield _counter("calls", "Calls to other machines.", facts["calls"])
    yield _counter("sent_bytes", "Bytes of requests.", facts["bytes_sent"])
    yield _counter("received_bytes", "Bytes of answers.", facts["bytes_received"])
    yield _counter("spooled", "Examples kept for a later answer.", facts["spooled"])
    yield _counter("corrected", "Of those, answered.", facts["corrected"])
    yield _gauge("waiting", "Examples under way at a server.", facts["waiting"])
    yield _gauge("start_time_seconds", "When the agent started, since 1970.", facts["started_at"])


def _members(members: list[dict[str, Any]]) -> Iterator[Any]:
    names = [f"{one['tier']}/{one['member']}" for one in members]
    failed = dict(zip(names, (one["failed"] for one in members), strict=True))
    yield _counter("member_failed", "Examples on which a member did not vote, because it failed.", failed, "member")
    failing = {name: float(one["error"] is not None) for name, one in zip(names, members, strict=True)}
    yield _gauge("member_failing", "1 while the member fails.", failing, "member")


def _links(links: list[dict[str, Any]]) -> Iterator[Any]:
    up = {link["tier"]: float(link["status"] == "closed") for link in links}
    yield _gauge("link_up", "1 if calls to the tier pass, 0 if its breaker is open or half-open.", up, "tier")
    known = {link["tier"]: link["round_trip_s"] for link in links if link["round_trip_s"] is not None}
    yield _gauge("link_round_trip_seconds", "Moving average of a call's time.", known, "tier")
    for key, what in (("opened", "went down"), ("probes", "was probed"), ("rebuilds", "was reconnected")):
        values = {link["tier"]: link[key] for link in links}
        yield _counter(f"link_{key}", f"How often the link {what}.", values, "tier")
    refused = {link["tier"]: link["refused"] for link in links}
    yield _counter("link_refused", "Calls refused, or answered with what cannot be read.", refused, "tier")


def _link_budget(budget: dict[str, Any]) -> Iterator[Any]:
    yield _gauge("link_month_bytes", "Bytes of requests and answers in this calendar month (UTC).", budget["bytes"])
    yield _gauge("not_sent_in_month", "Examples not sent in this month, by reason.", budget["not_sent"], "reason")


def _spool(spool: dict[str, Any]) -> Iterator[Any]:
    yield _gauge("spool_examples", "Examples that wait for a later answer.", spool["waiting"])
    yield _gauge("spool_bytes", "Bytes of the spool's file.", spool["bytes"])
    yield _gauge("spool_oldest_seconds", "Age of the oldest of them.", spool["oldest_s"] or 0.0)
    yield _counter("spool_dropped", "Examples dropped from the spool, by reason.", spool["dropped"], "reason")


def _sinks(sinks: list[dict[str, Any]]) -> Iterator[Any]:
    for key, what in (("written", "Records written."), ("dropped", "Records that could not be written.")):
        yield _counter(f"sink_{key}", what, {sink["name"]: sink[key] for sink in sinks}, "sink")
    failing = {sink["name"]: float(sink["failing"]) for sink in sinks}
    yield _gauge("sink_failing", "1 while the sink accepts no records.", failing, "sink")


def _audit(audit: dict[str, Any]) -> Iterator[Any]:
    yield _counter("audit_drawn", "Examples drawn for the audit.", audit["drawn"])
    yield _counter("audit_answered", "Of those, answered.", audit["answered"])
    if audit["error"] is not None:
        values = {"estimate": audit["error"], "low": audit["low"], "high": audit["high"]}
        what = "Share of the device's decisions that the cloud differs on; 95% interval."
        yield _gauge("audit_error", what, values, "bound")
        by_label = {name: facts["error"] for name, facts in audit["by_label"].items() if facts["error"] is not None}
        yield _gauge("audit_error_by_label", "The same by the device's label.", by_label, "label")


def _drift(gauges: list[dict[str, Any]]) -> Iterator[Any]:
    known = {gauge["what"]: gauge["share"] for gauge in gauges if gauge["share"] is not None}
    yield _gauge("drift_share", "A share over the latest window.", known, "what")
    outside = {gauge["what"]: float(gauge["state"] == "outside") for gauge in gauges}
    yield _gauge("drift_outside", "1 while that share is outside its band.", outside, "what")


def _counter(name: str, what: str, values: Values, label: str = "") -> Any:
    return _family("Counter", name, what, values, label)


def _gauge(name: str, what: str, values: Values, label: str = "") -> Any:
    return _family("Gauge", name, what, values, label)


def _family(kind: str, name: str, what: str, values: Values, label: str) -> Any:
    """A metric with one value, or with one for each value of its label."""
    from prometheus_client import core

    family = getattr(core, f"{kind}MetricFamily")(f"coe_edge_{name}", what, labels=[label] if label else [])
    for key, value in values.items() if isinstance(values, dict) else (("", values),):
        family.add_metric([key] if label else [], value)
    return family
