"""`coe-sim fleet`: how many servers a fleet of devices needs, what latency it gets, and what it costs."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
from numpy.typing import NDArray

from coe.cascade import ConfigError
from coe.config import format_seconds, parse_seconds
from coe.config.link import open_link
from coe.link import Link
from coe.models.tables import read_table
from sim import arguments
from sim.fleet.fleet import CloudTier, Fleet, Phase, run_fleet
from sim.fleet.queues import Floats, Service
from sim.fleet.sizing import Prices, Slo, as_json, part_of, size, through, troubles
from sim.output import Figure, Part, Table, log
from sim.traces import TierSpec, Trace, parse_tiers
from sim.traces.tiers import vote_of

from .replay import replay_trace

PRICES = Path(__file__).parents[1] / "costs" / "fleet.yaml"
WARM = 0.1  # of the duration, before anything is counted
MOST = 50e6  # requests simulated; of a larger fleet a part stands for all where servers have queues of their own
CURVE = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # times the devices
SYSTEMS = {"cascade": "cascade", "send-everything": "send everything", "best-on-device": "best model on the device"}


@dataclass(slots=True)
class Case:
    """One way to serve the fleet, how accurate it is on the trace, and what came of it, as printed.

    Args:
        met: True if the servers meet the SLO; None: they were given.
    """

    fleet: Fleet
    accuracy: float
    servers: Sequence[int] = ()
    met: bool | None = None
    content: Mapping[str, Any] = field(default_factory=dict)

    def run(self, options: argparse.Namespace, shape: Sequence[float], prices: Prices) -> None:
        self.servers = [options.servers or 1] * len(self.fleet.tiers)
        if options.servers is None:
            self.servers, self.met = size(self.fleet, options.slo, max(shape))
        seconds = options.duration[0]
        part, servers = part_of(self.fleet, self.servers, MOST / max(self.fleet.sent_per_s * seconds, 1e-9))
        phases = [Phase(seconds / len(shape), servers, factor) for factor in shape]
        warm = replace(phases[0], seconds=seconds * WARM)
        found = run_fleet(part, [warm, *phases], n_regions=options.regions, seed=options.seed, engine=options.engine)
        self.content = {**as_json(self.fleet, self.servers, found[1:], prices), "accuracy": self.accuracy}

    def p99(self, kind: str = "all") -> str:
        return _time(self.content["latency_s"][kind]["p99"])


def cases_of(options: argparse.Namespace, trace: Trace, specs: Sequence[TierSpec]) -> list[Case]:
    """The cascade, everything sent to its last tier, and the trace's best single model on the device.

    Raises:
        ConfigError: what a model takes is not known, or `--service` names none.
    """
    here = min(len(specs) - 1, 1)  # tiers on the device; of a single one none
    best, everyone = max(trace.models, key=trace.accuracy), np.arange(len(trace))
    given = dict(options.service)
    names = {*(f"tier {number}" for number in range(1, len(specs) + 1)), *trace.models}
    findings = [
        f'--service: no tier or model "{name}" (known: {", ".join(sorted(names))})' for name in {*given} - names
    ]

    def seconds(name: str) -> Floats:
        found = trace.models[name].latency_s
        if name in given:
            return np.full(len(trace), given[name].of(1))
        if found is None:
            findings.append(f"--service: the trace has no latencies of {name} (write --service {name}=10ms)")
        return np.zeros(len(trace)) if found is None else found.astype(np.float64)

    def of_tier(number: int, spec: TierSpec) -> tuple[Service | None, Floats]:
        """(of a call, where it is given; (B,) of each example alone: members in turn, until the vote is settled)."""
        one = given.get(f"tier {number}", given.get(spec.members[0]) if len(spec.members) == 1 else None)
        if one is not None:
            return one, np.full(len(trace), one.of(1))
        asked = vote_of(trace, spec.members, spec.rule, early=number < len(specs)).asked
        return None, np.cumsum([seconds(name) for name in spec.members], axis=0)[asked - 1, everyone]

    takes, alone = [of_tier(number, spec) for number, spec in enumerate(specs, start=1)], seconds(best)
    if findings:
        raise ConfigError(sorted(set(findings)))
    replayed = replay_trace(trace, specs)
    if options.downlink and not options.uplink:
        raise ConfigError(["--downlink: expected --uplink with it, got it alone (add the recording of the way up)"])

    def cloud_tier(number: int, reached: NDArray[np.bool_]) -> CloudTier:
        """A tier as what reaches it finds it: (B,) True for these."""
        service, own = takes[number - 1]
        usual = service or Service(0.0, float(own[reached].mean()))
        deferred = float((replayed.exit_tier > number)[reached].mean()) if number < len(specs) else 0.0
        drawn = None if service else own[reached]
        return CloudTier(f"tier {number}", usual, options.batch, options.max_wait[0], deferred, drawn)

    reach = {number: replayed.exit_tier >= number for number in range(here + 1, len(specs) + 1)}
    tiers = [cloud_tier(number, reached) for number, reached in reach.items() if reached.any()]
    last_tier = cloud_tier(len(specs), np.ones(len(trace), np.bool_))
    sizes = np.zeros(len(trace)) if trace.payload_bytes is None else trace.payload_bytes.astype(np.float64)
    device_s = takes[0][1] * options.slow_down if here else np.zeros(len(trace))
    sent, nothing = replayed.exit_tier > here, np.empty(0)
    ways = {"up": {"trace": str(options.uplink)}, "down": {"trace": str(options.downlink)}}
    link = Link() if options.uplink is None else open_link(ways if options.downlink else str(options.uplink))
    cascade = Fleet(
        options.devices, options.rate, float(sent.mean()), device_s[~sent], device_s[sent], sizes[sent], tiers, link,
        options.deadline[0],
    )  # fmt: skip
    all_sent = replace(cascade, sent=1.0, kept_s=nothing, sent_s=np.zeros(1), sent_bytes=sizes, tiers=[last_tier])
    device = replace(cascade, sent=0.0, kept_s=alone * options.slow_down, sent_s=nothing, sent_bytes=nothing, tiers=[])
    last = replay_trace(trace, specs[-1:]).accuracy
    return [Case(cascade, replayed.accuracy), Case(all_sent, last), Case(device, trace.accuracy(best))]


def read_arrivals(path: Path) -> list[float]:
    """Each part of a day against the mean: of a CSV with `time_s,rate` in equal steps, or with times of arrival.

    Raises:
        ConfigError: it is neither.
    """
    try:
        table = read_table(path)
        times = np.array(table["time_s"], dtype=np.float64)
        rates = np.array(table["rate"], dtype=np.float64) if "rate" in table else None
    except (ConfigError, ValueError, KeyError) as error:
        fix = "expected CSV with the columns time_s and rate, or time_s alone"
        raise ConfigError([f"--arrivals: {path}: {fix}, got other content ({error})"]) from None
    steps = np.diff(times) if rates is not None else np.ones(1)
    rates = np.histogram(times, bins=24)[0].astype(np.float64) if rates is None else rates
    if (rates < 0).any() or not rates.any() or not np.allclose(steps, steps[:1]):
        raise ConfigError([f"--arrivals: {path}: expected rates from 0 at equal steps of time, got others"])
    return [max(float(rate), 1e-6) for rate in rates / rates.mean()]


def as_measured(reference: str, fleet: Fleet) -> Fleet:
    """The fleet with the arrivals, deferral and calls that a running server's metrics tell of, since it started.

    Raises:
        ConfigError: they cannot be read, or count no rows.
    """
    is_url = reference.startswith(("http://", "https://"))
    try:
        with urlopen(reference, timeout=10) if is_url else Path(reference).open("rb") as file:
            text = file.read().decode()
        now = time.time() if is_url else Path(reference).stat().st_mtime
    except (OSError, ValueError) as error:
        raise ConfigError([f"--from-metrics: {reference}: cannot be read: {error}"]) from None
    lines = re.findall(r"^(\w+)(?:\{(.*)\})? (\S+)$", text, re.MULTILINE)
    found = [(name, dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value)) for name, labels, value in lines]

    def total(name: str, **labels: str) -> float:
        return sum(value for own, has, value in found if own == name and labels.items() <= has.items())

    rows, exits, seconds, queue = (
        f"coe_cloud_{name}" for name in ("tier_rows_total", "tier_exits_total", "tier_seconds", "queue_seconds")
    )
    model = max(
        (has["model"] for name, has, _ in found if name == rows),
        key=lambda one: total(rows, model=one, tier="1"),
        default="",
    )
    tiers, elapsed = [], now - total("process_start_time_seconds")
    for number, tier in enumerate(fleet.tiers, start=1):
        of, n = {"model": model, "tier": str(number)}, total(f"{seconds}_count", model=model, tier=str(number))
        if not n:
            raise ConfigError(
                [f"--from-metrics: {reference}: expected rows at {len(fleet.tiers)} tiers, got none at {number}"]
            )
        wait_s = total(f"{queue}_sum", model=model) / len(fleet.tiers)
        call_s = max((total(f"{seconds}_sum", **of) - wait_s) / n, 1e-6)
        deferred = 1 - total(exits, **of) / total(rows, **of) if number < len(fleet.tiers) else 0.0
        tiers.append(replace(tier, service=Service(call_s), deferred=deferred, seconds=None))
    return replace(fleet, tiers=tiers, rate=total(rows, model=model, tier="1") / elapsed / (fleet.devices * fleet.sent))


def curve_of(options: argparse.Namespace, cases: Sequence[Case], peak: float, prices: Prices) -> list[dict[str, Any]]:
    """Servers and dollars a month of the cascade and of sending everything, for fewer and for more devices."""
    points: list[dict[str, Any]] = []
    for factor in CURVE:
        points.append({"devices": max(1, round(options.devices * factor))})
        for name, case in zip(SYSTEMS, cases[:2], strict=False):
            fleet = replace(case.fleet, devices=points[-1]["devices"])
            servers, _ = size(fleet, options.slo, peak)
            points[-1][name] = {"servers": sum(servers), "usd_per_month": prices.of_month(fleet, servers)}
    return points


def verdict(cases: Sequence[Case], curve: Sequence[Mapping[str, Any]], slo: Slo) -> list[str]:
    """What to know first, and whether the cascade pays."""
    own, sends, alone = cases
    lines = [
        "; ".join(
            f"{title}: {sum(one.servers):,} servers, ${one.content['usd_per_month']:,.0f} a month, p99 {one.p99()}, "
            f"accuracy {one.accuracy:.2%}" for title, one in zip(SYSTEMS.values(), cases, strict=True)
        )
    ]  # fmt: skip
    wanted = f"p{slo.quantile * 100:g} <= {format_seconds(slo.seconds)}"
    for title, one in zip(SYSTEMS.values(), cases, strict=True):
        if one.fleet.device_load >= 1:
            lines.append(
                f"{title}: it does not keep up: the device would compute {one.fleet.device_load:.0%} of the time"
            )
        elif one.met is False:
            lines.append(f"{title}: no number of servers meets {wanted}: device and link alone take longer")
    against = []
    if own.content["usd_per_month"] >= sends.content["usd_per_month"]:
        against.append("it costs no less than sending everything")
    if alone.met is not False and alone.fleet.device_load < 1 and alone.accuracy >= own.accuracy:
        against.append(f"the best model on the device is as accurate and keeps up (p99 {alone.p99()}), with no server")
    saves = [one["devices"] for one in curve if one["cascade"]["servers"] < one["send-everything"]["servers"]]
    if curve and (not saves or saves[0] > curve[0]["devices"]):
        lines.append(f"it saves servers from {saves[0]:,} devices on" if saves else "at no size does it save a server")
    return [*lines, f"the cascade does not pay here: {'; '.join(against)}" if against else "the cascade pays here"]


def as_part(
    options: argparse.Namespace, trace: Trace, cases: Sequence[Case], curve: list[dict[str, Any]],
    trouble: Mapping[str, Mapping[str, Any]], about: str,
) -> Part:  # fmt: skip
    titled = list(zip(SYSTEMS.values(), cases, strict=True))
    content = {
        **cases[0].content,
        "against": {name: one.content for name, one in zip(SYSTEMS, cases, strict=True) if name != "cascade"},
        "devices": options.devices,
        "rate_per_s": options.rate,
        "slo": {"quantile": options.slo.quantile, "seconds": options.slo.seconds, "met": cases[0].met},
        "curve": curve,
        "trouble": trouble,
    }
    lines = [
        [title, f"{sum(one.servers):,}", _time(one.content["latency_s"]["all"]["p50"]), *map(one.p99, KINDS),
         f"{one.content['sent_share']:.1%}", _gigabytes(one.content["bytes_up_per_day"]),
         f"{one.content['degraded_share']:.2%}", f"${one.content['usd_per_month']:,.0f}", f"{one.accuracy:.2%}"]
        for title, one in titled
    ]  # fmt: skip
    tiers = [
        [title, tier["name"], f"{tier['servers']:,}", f"{tier['utilisation']:.1%}", f"{tier['load']:.1%}",
         f"{tier['batch_mean'] or 0:.1f}", _time(tier["wait_s"]["mean"]), _time(tier["wait_s"]["p99"])]
        for title, one in titled for tier in one.content["tiers"]
    ]  # fmt: skip
    points = [
        [f"{one['devices']:,}", *(f"{one[name][what]:,.0f}" for what in ("servers", "usd_per_month") for name in WAYS)]
        for one in curve
    ]
    worst = [
        [name, _time(one["p99_before_s"]), _time(one["p99_worst_s"]), f"{one['degraded_share']:.1%}",
         {None: "not within 5 min", 0: "at once"}.get(one["recovered_s"], _time(one["recovered_s"]))]
        for name, one in trouble.items()
    ]  # fmt: skip
    header = ("system", "servers", "p50", *(f"p99 {kind}" for kind in KINDS), *FURTHER)
    tables = [
        Table("systems", f"{options.devices:,} devices at {options.rate:g} examples a second", header, lines,
              "p99 of all examples, of those that stay on the device (kept) and of those that leave it (sent). "
              "Degraded: answered by the device at the deadline, because the cloud had not."),
        Table("tiers", "tiers", ("system", "tier", "servers", "busy", "load", "batch", "mean wait", "p99 wait"), tiers,
              "Busy: share of the time in calls. Load: against what full batches could take; a batcher is busy long "
              "before it is full.", 2),
        Table("curve", "capacity", ("devices", "servers", "if all is sent", "a month", "if all is sent"), points,
              about),
        Table("trouble", "trouble of five minutes", ("trouble", "p99 before", "worst", "degraded", "over after"),
              worst,
              "p99 of what is sent, in steps of 10 to 60 s; over: at most 1.5 times what it was before."),
    ]  # fmt: skip
    shown = [table for table in tables if table.lines]
    title = f"A fleet: {trace.name}"
    said = verdict(cases, curve, options.slo)
    return Part(f"{trace.name}-fleet", title, said, shown, content, draw=lambda: _figures(cases, curve))


KINDS, WAYS = ("all", "kept", "sent"), ("cascade", "send-everything")
FURTHER = ("sent", "a day", "degraded", "a month", "accuracy")


def _figures(cases: Sequence[Case], curve: Sequence[Mapping[str, Any]]) -> list[Figure]:
    from sim.charts import grouped_bars

    titles, names = list(SYSTEMS.values()), ("p50", "p95", "p99")
    shown = [(title, one) for title, one in zip(titles, cases, strict=True) if one.fleet.device_load < 1]
    quantiles = [[one.content["latency_s"]["all"][name] or 0.0 for _, one in shown] for name in names]
    found = [
        grouped_bars(
            names,
            [title for title, _ in shown],
            quantiles,
            _time,
            name="latency",
            title="Latency",
            axis="over all examples",
        )
    ]
    if curve:
        servers = [[one[name]["servers"] for name in WAYS] for one in curve]
        groups = [f"{one['devices']:,}" for one in curve]
        found.append(
            grouped_bars(
                groups, titles[:2], servers, lambda n: f"{n:,.0f}", name="capacity", title="Capacity",
                axis="servers that meet the SLO", caption="By number of devices.",
            )
        )  # fmt: skip
    return found


def _gigabytes(n: float) -> str:
    return f"{n / 1e9:,.0f} GB" if n >= 1e11 else f"{n / 1e9:.3g} GB"


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else format_seconds(seconds)


NAME = "fleet"
HELP = "servers, latency and cost of a fleet of devices"
DESCRIPTION = "How many servers a fleet needs, what latency it gets and what it costs: queues in virtual time."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_trace(parser)
    add, count, seconds = parser.add_argument, arguments.count, arguments.seconds
    add("--tiers", nargs="+", required=True, metavar="TIER", help="as of replay; the first of several is on the device")
    add("--devices", type=count, default=1000, metavar="N", help="default 1000")
    add("--rate", type=_rate, default=1.0, metavar="N/s", help="examples of one device: 5/s, 2/min, 10/h; default 1/s")
    add("--arrivals", default="poisson", metavar="poisson|FILE", help="a day's shape: CSV of time_s,rate, or of times")
    add("--uplink", type=Path, metavar="FILE", help="of each device: YAML of link_model, CSV, or Mahimahi's recording")
    add("--downlink", type=Path, metavar="FILE", help="Mahimahi's recording of the way back")
    add("--servers", type=_servers, metavar="auto|N", help="of each tier; default auto: as few as meet the SLO")
    add("--batch", type=count, default=64, metavar="N", help="most examples a call; 1: one queue for all; default 64")
    add("--max-wait", type=seconds, default=[0.0], metavar="TIME", help="that a call waits for more; default 0s")
    add("--slo", type=_slo, default=Slo(0.99, 0.3), metavar="p99=TIME", help="over all examples; default p99=300ms")
    add("--deadline", type=seconds, default=[2.0], metavar="TIME", help="then the device decides; default 2s")
    service = "of a tier or a member: 1.01ms a call, or 1ms+0.2ms with each example; default: as in the trace"
    add("--service", type=_service, action="append", default=[], metavar="NAME=TIME", help=service)
    add(
        "--from-metrics", metavar="URL|FILE", help="a server's /metrics: its arrivals, deferral and calls, for --rate's"
    )
    add("--slow-down", type=arguments.ratio, default=1.0, metavar="N", help="times that devices are slower; default 1")
    add("--prices", type=Path, metavar="FILE", help="YAML: usd_per_hour, usd_per_gb, usd_per_device_month")
    add("--duration", type=seconds, default=[60.0], metavar="TIME", help="to simulate, of a day too; default 60s")
    add("--regions", type=count, default=1, metavar="N", help="equal parts with servers of their own; default 1")
    add("--engine", choices=("local", "ray"), default="local", help="where regions are simulated")
    add("--trouble", action="store_true", help="what outages, drift, a rush hour and a dead server do")
    add("--start-up", type=seconds, default=[60.0], metavar="TIME", help="of a new server in a rush hour; default 60s")
    add("--no-curve", action="store_true", help="leave out the capacity curve")
    add("--seed", type=arguments.seed, default=0, help="default 0")
    arguments.add_output(parser)


def run_command(options: argparse.Namespace) -> Part:
    trace = arguments.open_trace(options)
    specs, warnings = parse_tiers(options.tiers, trace)
    for warning in warnings:
        log(warning)
    prices = Prices.read(options.prices or PRICES)
    shape = [1.0] if options.arrivals == "poisson" else read_arrivals(Path(options.arrivals))
    cases = cases_of(options, trace, specs)
    cascade = cases[0]
    if options.from_metrics is not None:
        cascade.fleet = as_measured(options.from_metrics, cascade.fleet)
        options.rate = cascade.fleet.rate
        for case in cases[1:]:
            case.fleet = replace(
                case.fleet, rate=options.rate, tiers=cascade.fleet.tiers[-1:] if case.fleet.tiers else []
            )
    load = cascade.fleet.device_load * max(shape)
    if load >= 1:
        raise ConfigError([f"--rate: expected a device to keep up, got one busy {load:.0%} of the time (lower it)"])
    for case in cases:
        case.run(options, shape, prices)
    curve = [] if options.no_curve else curve_of(options, cases, max(shape), prices)
    trouble: dict[str, Mapping[str, Any]] = {}
    if options.trouble and cascade.fleet.tiers:
        call_s = cascade.content["latency_s"]["sent"]["p50"]
        for name, during, after in troubles(cascade.fleet, cascade.servers, options.start_up[0], call_s):
            trouble[name] = through(cascade.fleet, during, after, options.seed)
    return as_part(options, trace, cases, curve, trouble, prices.about)


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
        call_s, *row_s = map(parse_seconds, times.split("+"))
        return name, Service(call_s, *row_s)
    except (ValueError, TypeError) as error:
        raise argparse.ArgumentTypeError(f"{error} (write best=2ms or best=2ms+0.3ms)") from None
