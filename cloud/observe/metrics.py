"""The counters as Prometheus metrics, built when they are scraped, so that a request costs nothing more.

Names follow Prometheus' conventions: base units, `_total` on counters. Labels are bounded: no device, no request id,
no name that a caller made up. docs/operate.md lists them all; docs/grafana.json draws them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

from coe import __version__
from coe.models.loading import import_runtime

from .status import ModelFacts, ServerView
from .tally import OK, REASONS, ROWS, SECONDS, SHARES, Tally

PREFIX = "coe_cloud_"
TIMES = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
TIER = ("model", "tier", "tier_name")
Shown = tuple[tuple[str, int], ...]  # upper bounds as text, and the place of each in the tally's own
BY_TIME: Shown = tuple((str(time), SECONDS.index(time)) for time in TIMES)  # the tally's are finer
BY_ROWS: Shown = tuple((str(float(n)), place) for place, n in enumerate(ROWS))
BY_SHARE: Shown = tuple((str(share), place) for place, share in enumerate(SHARES))


class Metrics:
    """The tally and this process, in a registry of their own.

    Raises:
        RuntimeMissing: prometheus_client is not installed.
    """

    def __init__(self, tally: Tally, server: ServerView) -> None:
        self.tally = tally
        self.server = server
        client, self._core, self._exposition = (
            import_runtime(f"prometheus_client{part}", "Prometheus client", "pip install 'coe-cascade[cloud]'")
            for part in ("", ".core", ".exposition")
        )
        self._gauge = partial(_filled, self._core.GaugeMetricFamily)
        self._counter = partial(_filled, self._core.CounterMetricFamily)
        self.registry = self._core.CollectorRegistry()
        self.registry.register(self)
        client.ProcessCollector(registry=self.registry)

    def expose(self, accept: str = "") -> tuple[bytes, dict[str, str]]:
        """Body and headers of the response to a scrape with that `Accept`."""
        encode, content_type = self._exposition.choose_encoder(accept)
        return encode(self.registry), {"Content-Type": content_type, "Cache-Control": "no-store"}

    def collect(self) -> Iterator[Any]:
        """Every metric of ours, as prometheus_client's families."""
        facts = {model.name: model for model in self.server.facts()}
        self.tally.keep_only(facts)
        yield from self._of_server(list(facts.values()))
        yield from self._of_models()
        yield from self._of_tiers(facts)

    def describe(self) -> list[Any]:
        """Nothing: registering must not call `collect` yet."""
        return []

    def _of_server(self, facts: Sequence[ModelFacts]) -> Iterator[Any]:
        tally, is_ready = self.tally, self.server.is_ready
        yield self._gauge("build_info", "Version of the server.", ("version",), [((__version__,), 1)])
        yield self._gauge("ready", "1 while the server takes requests.", (), [((), int(is_ready("")))])
        ready = [((model.name,), int(is_ready(model.name))) for model in facts]
        yield self._gauge("model_ready", "1 while the model takes requests.", ("model",), ready)
        labels = ("model", "version", "tier", "tier_name", "member", "format", "sha256", "runs_on")
        members = [  # a row for each member; one for a tier on another server
            ((model.name, model.version, str(number), tier.name, *member), 1)
            for model in facts
            for number, tier in enumerate(model.tiers, start=1)
            for member in [(one.name, one.format, one.sha256, one.runs_on) for one in tier.members]
            or [("", "remote", "", tier.address)]
        ]
        yield self._gauge("model_info", "What each model is made of.", labels, members)
        yield self._gauge("open_calls", "Requests under way.", (), [((), tally.n_open)])
        queued = [((name,), n) for name, n in self.server.queued().items()]
        yield self._gauge("queued_rows", "Rows waiting, by queue.", ("queue",), queued)
        failures = [((tier, member), n) for tier, member, n, _ in self.server.failures()]
        about = "Rows on which a member did not vote, because it failed."
        yield self._counter("member_failed_rows", about, ("tier", "member"), failures)
        refused = [((by,), n) for by, n in tally.refused.items()]
        yield self._counter("refused", "Requests shed, by what shed them.", ("by",), refused)
        yield self._counter("response_bytes", "Bytes of answers.", (), [((), tally.bytes_out)])

    def _of_models(self) -> Iterator[Any]:
        everybody = self.tally.everybody
        requests = []
        for name, model in everybody:
            codes = {OK: model.requests} | model.failed_by_code
            requests += [((name, code), n) for code, n in codes.items() if n or name in self.tally.models]
        yield self._counter("requests", "Requests, by what came of them.", ("model", "code"), requests)
        failed = [((name, *key), n) for name, model in everybody for key, n in model.failed.items()]
        about = "Requests that failed, by status code and kind of error."
        yield self._counter("errors", about, ("model", "code", "kind"), failed)
        yield self._counter("rows", "Rows answered.", ("model",), [((name,), m.rows) for name, m in everybody])
        degraded = [
            ((name, reason), n)
            for name, model in self.tally.models.items()
            for reason, n in (dict.fromkeys(REASONS, 0) | model.degraded).items()
        ]
        about = "Rows answered by the tier before, because the next gave no answer."
        yield self._counter("degraded_rows", about, ("model", "reason"), degraded)
        n_bytes = [((name,), model.bytes_in) for name, model in everybody]
        yield self._counter("request_bytes", "Bytes of requests.", ("model",), n_bytes)
        for metric, about, shown, column in (
            ("request_seconds", "Time from a request's arrival to its answer.", BY_TIME, "seconds"),
            ("queue_seconds", "Time a request's rows waited in queues.", BY_TIME, "queue"),
            ("batch_rows", "Rows decided together with a request's, its own included.", BY_ROWS, "batches"),
        ):
            served = [((name,), getattr(model, column)) for name, model in self.tally.models.items()]
            yield self._histogram(metric, about, ("model",), served, shown)

    def _of_tiers(self, facts: dict[str, ModelFacts]) -> Iterator[Any]:
        tiers = [
            ((name, str(number), facts[name].tier_name(number)), tier)
            for name, model in self.tally.models.items()
            for number, tier in enumerate(model.tiers, start=1)
        ]
        yield self._counter("tier_rows", "Rows that reached the tier.", TIER, [(key, t.rows) for key, t in tiers])
        yield self._counter("tier_exits", "Rows that left at the tier.", TIER, [(key, t.exits) for key, t in tiers])
        about = "Share of the members asked that voted for the tier's label, by row."
        yield self._histogram("tier_agreement_ratio", about, TIER, [(key, t.shares) for key, t in tiers], BY_SHARE)
        about = "Time a request waited for the tier's votes, with its queue."
        yield self._histogram("tier_seconds", about, TIER, [(key, t.seconds) for key, t in tiers], BY_TIME)

    def _histogram(self, name: str, about: str, labels: Sequence[str], values: Sequence[Any], shown: Shown) -> Any:
        family = self._core.HistogramMetricFamily(PREFIX + name, about, labels=labels)
        for key, histogram in values:
            below = list(accumulate(histogram.counts))
            buckets = [(bound, below[place]) for bound, place in shown]
            family.add_metric(key, [*buckets, ("+Inf", below[-1])], histogram.total)
        return family


def _filled(kind: Any, name: str, about: str, labels: Sequence[str], values: Sequence[Any]) -> Any:
    family = kind(PREFIX + name, about, labels=labels)
    for key, value in values:
        family.add_metric(key, value)
    return family
