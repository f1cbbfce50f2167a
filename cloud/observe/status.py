"""The state of the server and its models as one JSON object, and the HTML page that shows it.

`status.json`, schema 1: `state`, `summary`, `notices`, `now` (the last 10 to 20 s), `models`, `errors` and
`history` (equally long lists, one entry a slot, oldest first; the last slot is still under way).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from coe import __version__
from coe.config import format_seconds
from coe.config.cascade import CascadeConfig, RemoteTierConfig, TierConfig, rule_in_words
from coe.status_page import SECURITY_HEADERS, status_page

from .tally import Histogram, History, ModelTally, Slot, Tally, TierTally, errors_of, merged_slots, quantile


@dataclass(frozen=True, slots=True)
class MemberFacts:
    """One member. `sha256`: of the file; `accuracy`: on the calibration split, None where unknown."""

    name: str
    format: str
    sha256: str
    runs_on: str
    accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class TierFacts:
    """One tier. `rule`: when it answers, in words. `address`: of the server that holds it; "": this one."""

    name: str
    rule: str
    address: str = ""
    members: tuple[MemberFacts, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """One model of the protocol: a cascade of these tiers, or one of them alone."""

    name: str
    version: str
    tiers: tuple[TierFacts, ...]

    def tier_name(self, number: int) -> str:
        """Of tier `number`, from 1; those behind another server have no name here but their number."""
        return self.tiers[number - 1].name if number <= len(self.tiers) else str(number)


@dataclass(frozen=True, slots=True)
class ServerView:
    """The running server, as metrics and status read it. All are called often, and must be quick.

    Args:
        is_ready: of the server (""), or of a model by name.
        facts: of all models, as served now.
        queued: rows waiting now, by queue: a tier's, or a model's.
        failures: of all members: tier, name, rows on which it did not vote, and why, if it fails now.
    """

    is_ready: Callable[[str], bool]
    facts: Callable[[], Sequence[ModelFacts]]
    queued: Callable[[], Mapping[str, int]]
    failures: Callable[[], Sequence[tuple[str, str, int, str | None]]] = tuple


def describe(cascade: CascadeConfig, model: str, runs_on: Mapping[str, str] | None = None) -> tuple[ModelFacts, ...]:
    """The whole cascade as `model`, and each local tier alone as `model-tier`. Reads files that have no checksum yet.

    Args:
        runs_on: what runs a member, by its name, as LoadedMember says; where it is not known, its tier's options.
    """
    tiers = tuple(_tier_facts(tier, runs_on or {}, is_last=tier is cascade.tiers[-1]) for tier in cascade.tiers)
    version = cascade.task.fingerprint
    alone = [ModelFacts(f"{model}-{facts.name}", version, (facts,)) for facts in tiers if not facts.address]
    return (ModelFacts(model, version, tiers), *alone)


def _tier_facts(tier: TierConfig, runs_on: Mapping[str, str], is_last: bool) -> TierFacts:
    rule = rule_in_words(tier, is_last=is_last)
    if isinstance(tier, RemoteTierConfig):
        return TierFacts(tier.name, rule, f"{tier.model} at {tier.address}")
    members = []
    for spec in tier.members:
        where = tier.options.device if spec.format.startswith("torch") else ", ".join(tier.options.providers)
        threads = f"{tier.options.threads} thread{'s' * (tier.options.threads != 1)}"
        on = runs_on.get(spec.name) or f"{spec.format}, {where}, {threads}"
        members.append(MemberFacts(spec.name, spec.format, spec.digest() or "", on, spec.calibration_accuracy))
    return TierFacts(tier.name, rule, "", tuple(members))


SCHEMA = 1
BUG = "the log has its trace, with the request's id"
MEANINGS = {  # of each code of `coe.protocol.status.TABLE`, and of the tally's own
    "INVALID_ARGUMENT": "the message contradicts itself, or an example in it cannot be read",
    "NOT_FOUND": "no such model, or not of that version",
    "UNAUTHENTICATED": "the caller showed no certificate or token, or not a valid one",
    "PERMISSION_DENIED": "the caller is known, and not allowed to do this",
    "RESOURCE_EXHAUSTED": "a limit or a quota: too many calls, or too many rows waiting",
    "DEADLINE_EXCEEDED": "the deadline passed, in the queue or in the call",
    "UNAVAILABLE": "this server is draining, or the next tier's cannot be reached",
    "FAILED_PRECONDITION": "the next server refused the example",
    "UNIMPLEMENTED": "an extension of the protocol that this server does not offer",
    "CANCELLED": "the caller went away",
    "INTERNAL": f"no member of a tier voted, or a bug: {BUG}",
}
ALARMING = ("INTERNAL", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "UNAVAILABLE")
Notice = dict[str, str]
Page = Callable[[str], tuple[bytes, dict[str, str]]]  # from a request's Accept header: body and headers


def status(server: ServerView, tally: Tally, history: History) -> dict[str, Any]:
    """Everything the status page shows. `level` of a notice: "bad", "warn" or "info"."""
    facts = server.facts()
    tally.keep_only([model.name for model in facts])
    slots = history.slots()
    now, hour = merged_slots(slots[-2:]), errors_of(slots)
    ready = server.is_ready("")
    return {
        "schema": SCHEMA,
        "name": "coe-cloud",
        "version": __version__,
        "time": slots[-1].ends_at,
        "uptime_s": round(history.uptime_s, 1),
        "state": "ready" if ready else "not ready",
        "summary": _summary(ready, now, facts),
        "notices": _notices(server, facts, now, hour),
        "now": _of_slot(now) | {"waiting": sum(server.queued().values()), "under_way": tally.n_open},
        "models": [_model(model, tally.models[model.name], server) for model in facts],
        "errors": _errors(tally, now, hour),
        "history": _history(slots, facts),
    }


def status_json(server: ServerView, tally: Tally, history: History, every_s: float = 1.0) -> Page:
    """A page with `status` as JSON, made at most once in `every_s`, however many ask."""
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store", **SECURITY_HEADERS}
    made_at, body = 0.0, b""

    def json_page(accept: str = "") -> tuple[bytes, dict[str, str]]:
        nonlocal made_at, body
        if not body or history.uptime_s - made_at >= every_s:
            made_at = history.uptime_s
            body = json.dumps(status(server, tally, history), separators=(",", ":"), allow_nan=False).encode()
        return body, headers

    return json_page


def _summary(ready: bool, now: Slot, facts: Sequence[ModelFacts]) -> str:
    if not ready:
        return "Not taking requests: models are loading, or the server is draining."
    if not now.requests:
        return "Ready. No requests at the moment."
    rate = now.requests / max(now.seconds, 1e-9)
    rounded = f"{rate:,.0f}" if rate >= 10 else f"{rate:.1g}"
    text = f"Answering {rounded} requests a second: half of them within {_seconds(now.p50_s)}, "
    text += f"99% within {_seconds(now.p99_s)}."
    for model in facts:
        exits = now.exits.get(model.name, [])
        rows = sum(exits)
        if len(exits) > 1 and rows:
            return f"{text} {exits[0] / rows:.0%} of the rows for {model.name} go no further than its first tier."
    return text


def _notices(server: ServerView, facts: Sequence[ModelFacts], now: Slot, hour: Counter[str]) -> list[Notice]:
    found: list[tuple[str, str]] = []
    ready = server.is_ready("")
    if not ready:
        found.append(("bad", "The server takes no requests. Loading ends by itself; draining ends with a stop."))
    found += [
        ("bad", f"Member {member} of tier {tier} does not vote: {reason}.")
        for tier, member, _, reason in server.failures()
        if reason is not None
    ]
    not_ready = [one.name for one in facts if ready and not server.is_ready(one.name)]
    found += [("bad", f"Model {name} takes no requests.") for name in not_ready]
    asked = now.requests + now.failed
    ours = sum(now.errors[code] for code in ALARMING)
    if asked and ours / asked > 0.01:
        code = max(ALARMING, key=lambda code: now.errors[code])
        share = ours / asked
        text = f"{share:.0%} of requests fail at the moment, most with {code}: {MEANINGS[code]}."
        found.append(("bad" if share > 0.1 else "warn", text))
    if bugs := hour["INTERNAL"]:
        found.append(("warn", f"{bugs} request{'s' * (bugs != 1)} met a bug in the last hour: {BUG}."))
    if now.degraded:
        share = now.degraded / max(now.rows, 1)
        text = f"{share:.0%} of rows get the answer of an earlier tier at the moment: the next one gives none."
        found.append(("warn", text))
    return [{"level": level, "text": text} for level, text in found]


def _model(facts: ModelFacts, tally: ModelTally, server: ServerView) -> dict[str, Any]:
    queued, known = server.queued(), len(facts.tiers)
    tiers = enumerate(tally.tiers_up_to(known), start=1)
    return {
        "name": facts.name,
        "version": facts.version,
        "ready": server.is_ready(facts.name),
        "requests": tally.requests,
        "rows": tally.rows,
        "failed": tally.failed.total(),
        **_percentiles(tally.seconds),
        "tiers": [_tier(n, facts.tiers[n - 1] if n <= known else None, tier, queued) for n, tier in tiers],
    }


def _tier(number: int, facts: TierFacts | None, tally: TierTally, queued: Any) -> dict[str, Any]:
    """One tier; `facts` None: it is behind another server, which alone knows more."""
    described = asdict(facts or TierFacts(str(number), "held by another server"))
    return {
        "number": number,
        **described,
        "rows": tally.rows,
        "exits": tally.exits,
        "agreement": _digits(tally.shares.total / tally.rows) if tally.rows else None,
        **_percentiles(tally.seconds),
        "queued": queued.get(described["name"], 0),
    }


def _errors(tally: Tally, now: Slot, hour: Counter[str]) -> list[dict[str, Any]]:
    """By code, the most frequent first."""
    totals = sum((model.failed_by_code for _, model in tally.everybody), Counter[str]())
    return [
        {"code": code, "meaning": MEANINGS.get(code, ""), "now": now.errors[code], "hour": hour[code], "total": n}
        for code, n in totals.most_common()
    ]


def _of_slot(slot: Slot) -> dict[str, Any]:
    seconds = max(slot.seconds, 1e-9)
    return {
        **{name: _digits(getattr(slot, name)) for name in ("seconds", "p50_s", "p99_s")},
        **{f"{name}_per_s": _digits(getattr(slot, name) / seconds) for name in ("requests", "rows", "failed")},
        "queued": slot.queued,
        "open_calls": slot.open_calls,
    }


def _history(slots: Sequence[Slot], facts: Sequence[ModelFacts]) -> dict[str, Any]:
    return {
        "ends_at": [round(slot.ends_at, 1) for slot in slots],
        "seconds": [round(slot.seconds, 2) for slot in slots],
        **{name: [getattr(slot, name) for slot in slots] for name in ("requests", "failed", "queued")},
        **{name: [_digits(getattr(slot, name)) for slot in slots] for name in ("p50_s", "p99_s")},
        "exits": {model.name: [slot.exits.get(model.name, []) for slot in slots] for model in facts},
    }


def _percentiles(seconds: Histogram) -> dict[str, float | None]:
    return {f"p{share}_s": _digits(quantile(seconds.counts, share / 100)) for share in (50, 99)}


def _digits(value: float | None) -> float | None:
    """To four digits: more is noise, and costs bytes."""
    return None if value is None else float(f"{value:.4g}")


def _seconds(value: float | None) -> str:
    return "no time" if value is None else format_seconds(value, 2)


def page() -> tuple[bytes, dict[str, str]]:
    """The status page and its HTTP headers."""
    return status_page("coe-cloud", "cloud.observe")
