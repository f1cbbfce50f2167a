"""`coe-sim fleet`: how many servers a fleet of devices needs, what latency it gets, and what it costs."""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from coe.cascade import ConfigError
from coe.config import format_seconds, parse_seconds
from coe.link import Link, read_recorded
from sim import arguments
from sim.fleet.fleet import CloudTier, Fleet, Phase, run_fleet
from sim.fleet.queues import Floats, Service
from sim.fleet.sizing import Prices, Slo, as_json, size
from sim.output import Figure, Part, Table, log
from sim.traces import TierSpec, Trace, parse_tiers
from sim.traces.tiers import vote_of

from .replay import replay_trace

PRICES = Path(__file__).parents[1] / "costs" / "fleet.yaml"
WARM = 0.1  # of the duration, before anything is counted
CURVE = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # times the devices
SYSTEMS = {"cascade": "cascade", "send-everything": "send everything", "best-on-device": "best model on the device"}


@dataclass(frozen=True, slots=True)
class Case:
    """One way to serve the fleet: `fleet`, and how accurate it is on the trace."""

    fleet: Fleet
    accuracy: float
    note: str = ""


def cases_of(options: argparse.Namespace, trace: Trace, specs: Sequence[TierSpec]) -> dict[str, Case]:
    """The cascade, everything sent to its last tier, and the trace's best single model on the device.

    Raises:
        ConfigError: what a model takes is not known, or `--service` names none.
    """
    n_here = options.on_device if options.on_device is not None else min(len(specs) - 1, 1)
    if n_here >= len(specs) and len(specs) > 1:
        raise ConfigError([f"--on-device: expected fewer tiers than there are ({len(specs)}), got {n_here}"])
    best = max(trace.models, key=trace.accuracy)
    times = _Times(trace, options.service)
    seconds = [times.of_tier(number, spec, number == len(specs)) for number, spec in enumerate(specs, start=1)]
    alone = times.of_model(best) * options.slow_down
    service = [times.service(number, spec) for number, spec in enumerate(specs, start=1)]
    times.check()
    replayed = replay_trace(trace, specs)
    exits = replayed.exit_tier
    sizes = np.zeros(len(trace)) if trace.payload_bytes is None else trace.payload_bytes.astype(np.float64)
    sent = exits > n_here
    here = (
        np.sum([own * (exits > place) for place, own in enumerate(seconds[:n_here])], axis=0)
        * options.slow_down
        * np.ones(len(trace))
    )
    shares = [float((exits > number + 1).sum() / max((exits > number).sum(), 1)) for number in range(len(specs))]
    tiers = [
        CloudTier(
            f"tier {number + 1}", service[number] or Service(0.0, float(seconds[number][exits > number].mean())),
            options.batch, options.max_wait[0], 0.0 if number == len(specs) - 1 else shares[number],
            None if service[number] else seconds[number],
        )
        for number in range(n_here, len(specs))
        if (exits > number).any()
    ]  # fmt: skip
    last, nothing = tiers[-1:] or [], np.empty(0)
    link = _link(options)
    cascade = Fleet(
        options.devices,
        options.rate,
        float(sent.mean()),
        here[~sent],
        here[sent],
        sizes[sent],
        tiers,
        link,
        options.deadline[0],
    )
    everything = replace(cascade, sent=1.0, kept_s=nothing, sent_s=np.zeros(1), sent_bytes=sizes, tiers=last)
    device = replace(cascade, sent=0.0, kept_s=alone, sent_s=nothing, sent_bytes=nothing, tiers=[], link=Link())
    members = " ".join(specs[-1].members)
    top = trace.accuracy(members) if len(specs[-1].members) == 1 else replay_trace(trace, specs[-1:]).accuracy
    return {
        "cascade": Case(cascade, replayed.accuracy),
        "send-everything": Case(everything, top, members),
        "best-on-device": Case(device, trace.accuracy(best), best),
    }


class _Times:
    """What models take, from `--service` or the trace."""

    def __init__(self, trace: Trace, given: Mapping[str, Service]) -> None:
        self._trace, self._given, self._unused = trace, given, set(given)
        self._findings: list[str] = []

    def of_model(self, name: str) -> Floats:
        """(B,) of one example alone."""
        given = self._take(name)
        if given is not None:
            return np.full(len(self._trace), given.of(1))
        found = self._trace.models[name].latency_s
        if found is None:
            self._findings.append(f"--service: the trace has no latencies of {name} (write --service {name}=10ms)")
            return np.ones(len(self._trace))
        return found.astype(np.float64)

    def of_tier(self, number: int, spec: TierSpec, is_last: bool) -> Floats:
        """(B,) of one example: members in turn, until the vote is settled."""
        given = self._take(f"tier {number}")
        if given is not None:
            return np.full(len(self._trace), given.of(1))
        each = np.cumsum([self.of_model(name) for name in spec.members], axis=0)
        asked = vote_of(self._trace, spec.members, spec.rule, early=not is_last).asked
        found: Floats = each[asked - 1, np.arange(len(self._trace))]
        return found

    def service(self, number: int, spec: TierSpec) -> Service | None:
        """Of a call of the tier, where it is given; a member alone is its tier."""
        alone = self._take(spec.members[0]) if len(spec.members) == 1 else None
        return self._take(f"tier {number}") or alone

    def check(self) -> None:
        known = ", ".join(self._trace.models)
        unknown = [f'--service: no tier or model "{name}" (known: tier 1, .., {known})' for name in self._unused]
        if self._findings or unknown:
            raise ConfigError(list(dict.fromkeys([*self._findings, *unknown])))

    def _take(self, name: str) -> Service | None:
        self._unused.discard(name)
        return self._given.get(name)


def _link(options: argparse.Namespace) -> Link:
    ways = [
        () if path is None else read_recorded(path, up=up)
        for path, up in ((options.uplink, True), (options.downlink, False))
    ]
    return Link(ways[0], ways[1])


def read_arrivals(path: Path) -> list[float]:
    """Each part of the day against the mean: of a CSV with `time_s,rate` in equal steps, or with times of arrival.

    Raises:
        ConfigError: it is neither.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        times = np.array([float(row["time_s"]) for row in rows])
        rates = np.array([float(row["rate"]) for row in rows]) if "rate" in rows[0] else None
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        fix = "expected CSV with the columns time_s and rate, or time_s alone"
        raise ConfigError([f"--arrivals: {path}: {fix}, got other content ({error})"]) from None
    if rates is None:
        rates = np.histogram(times, bins=24)[0].astype(np.float64)
    steps = np.diff(times) if "rate" in rows[0] else np.ones(1)
    if len(rates) < 1 or (rates < 0).any() or not rates.any() or not np.allclose(steps, steps[:1]):
        raise ConfigError([f"--arrivals: {path}: expected rates from 0 at equal steps of time, not all 0"])
    return [float(rate) for rate in rates / rates.mean()]


@dataclass(frozen=True, slots=True)
class Answer:
    """One case, served: `content` as printed; `met`: its SLO; None: there is none."""

    case: Case
    servers: list[int]
    content: dict[str, Any]
    met: bool | None


def answer(options: argparse.Namespace, case: Case, shape: Sequence[float], prices: Prices) -> Answer:
    """Sized where asked for, and simulated."""
    fleet, met = case.fleet, None
    servers = [options.servers or 1] * len(fleet.tiers)
    if options.servers is None:
        servers, met = size(fleet, options.slo, peak=max(shape), seed=options.seed)
    seconds = options.duration[0]
    warm = Phase(seconds * WARM, servers, 0.0, shape[0])
    phases = [warm, *(Phase(seconds / len(shape), servers, 1.0, factor) for factor in shape)]
    tally = run_fleet(fleet, phases, n_regions=options.regions, seed=options.seed, engine=options.engine)
    return Answer(case, servers, {**as_json(fleet, servers, tally, prices), "accuracy": case.accuracy}, met)


def curve_of(
    options: argparse.Namespace, cases: Mapping[str, Case], shape: Sequence[float], prices: Prices
) -> list[dict[str, Any]]:
    """Servers and dollars a month of both ways with servers, for fewer and for more devices."""
    points = []
    for factor in CURVE:
        devices = max(1, round(options.devices * factor))
        point: dict[str, Any] = {"devices": devices}
        for name in ("cascade", "send-everything"):
            fleet = replace(cases[name].fleet, devices=devices)
            servers, _ = size(fleet, options.slo, peak=max(shape), seed=options.seed)
            mean_bytes = float(fleet.sent_bytes.mean()) if len(fleet.sent_bytes) else 0.0
            per_day = devices * fleet.rate * fleet.sent * mean_bytes * 86400
            point[name] = {"servers": sum(servers), "usd_per_month": prices.of_month(fleet, servers, per_day)}
        points.append(point)
    return points


def verdict(answers: Mapping[str, Answer], curve: Sequence[Mapping[str, Any]], slo: Slo) -> list[str]:
    """What to know first, and when the cascade does not pay."""
    own, sends, alone = (answers[name].content for name in SYSTEMS)
    p99 = [_time(one["latency_s"]["all"]["p99"]) for one in (own, sends)]
    lines = [
        f"{sum(answers['cascade'].servers):,} servers, {_dollars(own['usd_per_month'])} a month, p99 {p99[0]}; sending "
        f"everything: {sum(answers['send-everything'].servers):,} servers, {_dollars(sends['usd_per_month'])}, "
        f"p99 {p99[1]}"
    ]
    for name, one in answers.items():
        if one.met is False:
            wanted = f"p{slo.quantile * 100:g} <= {format_seconds(slo.seconds)}"
            lines.append(f"{SYSTEMS[name]}: no number of servers meets {wanted}: device and link alone take longer")
    against = []
    if own["usd_per_month"] >= sends["usd_per_month"]:
        against.append("it costs no less than sending everything")
    fast = alone["latency_s"]["all"]["p99"]
    if (
        fast is not None
        and fast <= slo.seconds
        and answers["best-on-device"].case.accuracy >= answers["cascade"].case.accuracy
    ):
        best = answers["best-on-device"].case.note
        against.append(f"{best} alone on the device is as accurate and keeps up (p99 {_time(fast)}), without a server")
    from_on = next(
        (point["devices"] for point in curve if point["cascade"]["servers"] < point["send-everything"]["servers"]), None
    )
    if curve and from_on is None:
        against.append("at no size of the fleet does it save a server")
    elif curve and from_on != curve[0]["devices"]:
        lines.append(f"it saves servers from about {from_on:,} devices on: below, the fewest there can be hold either")
    lines.append(f"the cascade does not pay here: {'; '.join(against)}" if against else "the cascade pays here")
    return lines


def as_part(
    options: argparse.Namespace, trace: Trace, answers: Mapping[str, Answer], curve: list[dict[str, Any]], about: str
) -> Part:
    content: dict[str, Any] = {
        **answers["cascade"].content,
        "against": {name: one.content for name, one in answers.items() if name != "cascade"},
        "devices": options.devices,
        "rate_per_s": options.rate,
        "slo": {"quantile": options.slo.quantile, "seconds": options.slo.seconds, "met": answers["cascade"].met},
        "curve": curve,
    }
    lines = [
        [SYSTEMS[name], str(sum(one.servers)), *(_time(one.content["latency_s"][kind][q]) for kind, q in SHOWN),
         f"{one.content['sent_share']:.1%}", _bytes(one.content["bytes_up_per_day"]),
         f"{one.content['degraded_share']:.2%}", _dollars(one.content["usd_per_month"]), f"{one.case.accuracy:.2%}"]
        for name, one in answers.items()
    ]  # fmt: skip
    tiers = [
        [SYSTEMS[name], tier["name"], f"{tier['servers']:,}", f"{tier['utilisation']:.1%}", f"{tier['load']:.1%}",
         "-" if tier["batch_mean"] is None else f"{tier['batch_mean']:.1f}",
         _time(tier["wait_s"]["mean"]), _time(tier["wait_s"]["p99"])]
        for name, one in answers.items() for tier in one.content["tiers"]
    ]  # fmt: skip
    header = (
        "system",
        "servers",
        *(f"{q}, {kind}" for kind, q in SHOWN),
        "sent",
        "a day",
        "degraded",
        "a month",
        "accuracy",
    )
    tables = [
        Table("systems", f"{options.devices:,} devices at {options.rate:g} examples a second", header, lines,
              "Latencies: of all examples, of those that stay on the device (kept) and of those that leave it (sent). "
              "Degraded: answered by the device at the deadline, because the cloud had not."),
        Table("tiers", "tiers", ("system", "tier", "servers", "busy", "load", "batch", "mean wait", "p99 wait"), tiers,
              "Busy: share of the time in calls. Load: against what full batches could take; a batcher is busy long "
              "before it is full.", 2),
    ]  # fmt: skip
    if curve:
        ways = ("cascade", "send-everything")
        rows = [
            [
                f"{one['devices']:,}",
                *(f"{one[way][what]:,.0f}" for way in ways for what in ("servers", "usd_per_month")),
            ]
            for one in curve
        ]
        columns = ("devices", "cascade: servers", "dollars a month", "send everything: servers", "dollars a month")
        tables.append(Table("curve", "capacity", columns, rows, about, 0))
    return Part(
        f"{trace.name}-fleet", f"A fleet: {trace.name}", verdict(answers, curve, options.slo), tables, content,
        draw=lambda: _figures(answers, curve),
    )  # fmt: skip


SHOWN = (("all", "p50"), ("all", "p99"), ("kept", "p99"), ("sent", "p99"))


def _figures(answers: Mapping[str, Answer], curve: Sequence[Mapping[str, Any]]) -> list[Figure]:
    return []


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else format_seconds(seconds)


def _dollars(usd: float) -> str:
    return f"${usd:,.0f}"


def _bytes(n: float) -> str:
    for unit, size_ in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if n >= size_:
            return f"{n / size_:.3g} {unit}"
    return f"{n:,.0f} B"


NAME = "fleet"
HELP = "servers, latency and cost of a fleet of devices"
DESCRIPTION = "How many servers a fleet needs, what latency it gets and what it costs: queues in virtual time."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_trace(parser)
    parser.add_argument(
        "--tiers", nargs="+", required=True, metavar="TIER", help="as of replay; the first runs on the device"
    )
    parser.add_argument(
        "--on-device", type=_whole, metavar="N", help="tiers on the device; default: 1, of one tier none"
    )
    parser.add_argument("--devices", type=arguments.count, default=1000, metavar="N", help="default 1000")
    parser.add_argument(
        "--rate", type=_rate, default=1.0, metavar="N/s", help="examples of one device: 5/s, 2/min, 10/h; default 1/s"
    )
    parser.add_argument(
        "--arrivals",
        default="poisson",
        metavar="poisson|FILE",
        help="CSV of a day's shape: time_s,rate, or times of arrival; --rate is its mean",
    )
    parser.add_argument(
        "--uplink", type=Path, metavar="FILE", help="each device's: a recording of Mahimahi's, or a CSV of bitrates"
    )
    parser.add_argument("--downlink", type=Path, metavar="FILE", help="the same of the way back")
    parser.add_argument(
        "--servers", type=_servers, metavar="auto|N", help="of each tier; default auto: as few as meet the SLO"
    )
    parser.add_argument(
        "--batch",
        type=arguments.count,
        default=64,
        metavar="N",
        help="most examples in one call; default 64; 1: one queue for all servers",
    )
    parser.add_argument(
        "--max-wait",
        type=arguments.seconds,
        default=[0.0],
        metavar="TIME",
        help="that a call waits for more; default 0",
    )
    parser.add_argument(
        "--slo", type=_slo, default=Slo(0.99, 0.3), metavar="p99=TIME", help="over all examples; default p99=300ms"
    )
    parser.add_argument(
        "--deadline", type=arguments.seconds, default=[2.0], metavar="TIME", help="then a device decides; default 2s"
    )
    parser.add_argument(
        "--service",
        type=_service,
        action="append",
        default=[],
        metavar="NAME=TIME",
        help="of a tier or a member: 1.01ms a call, or 1ms+0.2ms for each of its examples; default: as in the trace",
    )
    parser.add_argument(
        "--slow-down", type=arguments.ratio, default=1.0, metavar="N", help="times a device is slower; default 1"
    )
    parser.add_argument(
        "--prices", type=Path, metavar="FILE", help="YAML: usd_per_hour of servers, usd_per_gb, usd_per_device_month"
    )
    parser.add_argument(
        "--duration",
        type=arguments.seconds,
        default=[60.0],
        metavar="TIME",
        help="to simulate, of a day's shape too; default 60s",
    )
    parser.add_argument(
        "--regions",
        type=arguments.count,
        default=1,
        metavar="N",
        help="equal parts with servers of their own, side by side; default 1",
    )
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="where regions are simulated")
    parser.add_argument("--no-curve", action="store_true", help="leave out the capacity curve")
    parser.add_argument("--seed", type=arguments.seed, default=0, help="default 0")
    arguments.add_output(parser)


def run_command(options: argparse.Namespace) -> Part:
    trace = arguments.open_trace(options)
    specs, warnings = parse_tiers(options.tiers, trace)
    for warning in warnings:
        log(warning)
    options.service = dict(options.service)
    prices = Prices.read(options.prices or PRICES)
    shape = [1.0] if options.arrivals == "poisson" else read_arrivals(Path(options.arrivals))
    cases = cases_of(options, trace, specs)
    load = cases["cascade"].fleet.device_load * max(shape)
    if load >= 1:
        raise ConfigError(
            [f"--rate: the device would compute {load:.0%} of the time, so it cannot keep up (lower it, or --service)"]
        )
    answers = {name: answer(options, case, shape, prices) for name, case in cases.items()}
    curve = [] if options.no_curve else curve_of(options, cases, shape, prices)
    return as_part(options, trace, answers, curve, prices.about)


def _whole(text: str) -> int:
    return arguments.seed(text)


def _rate(text: str) -> float:
    match = re.fullmatch(r"([\d.]+(?:e-?\d+)?)(?:/(s|min|h|day))?", text.strip())
    value = float(match[1]) / {"s": 1, "min": 60, "h": 3600, "day": 86400, None: 1}[match[2]] if match else 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f'expected a rate above 0, got "{text}" (write 5/s, 2/min or 10/h)')
    return value


def _servers(text: str) -> int | None:
    return None if text == "auto" else arguments.count(text)


def _slo(text: str) -> Slo:
    match = re.fullmatch(r"p(\d{1,2}(?:\.\d+)?)=(.+)", text.strip())
    if not match:
        raise argparse.ArgumentTypeError(f'expected a quantile and a time, got "{text}" (write p99=300ms)')
    return Slo(float(match[1]) / 100, arguments.seconds(match[2])[0])


def _service(text: str) -> tuple[str, Service]:
    name, _, times = text.rpartition("=")
    try:
        parts = [parse_seconds(part) for part in times.split("+")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not name or not 1 <= len(parts) <= 2:
        raise argparse.ArgumentTypeError(
            f'expected a tier or a model and its time, got "{text}" (write best=2ms+0.3ms)'
        )
    return name, Service(*parts)
