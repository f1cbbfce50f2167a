"""`coe-sim cost`: what the GPUs of a cascade cost. Paper: Figure 4."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from coe.cascade import Accounting, ConfigError, average_cost
from coe.config import Fields, Report, read_yaml
from sim import arguments
from sim.output import Figure, Part, Table

PRICES = Path(__file__).parents[1] / "costs" / "gpus.yaml"
COLOURS, GREY = ("#0072B2", "#56A0D3"), "#8a8a8a"


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars per hour by GPU, from a file a user edits."""

    usd_per_hour: Mapping[str, float]
    about: str


def read_prices(path: Path) -> Prices:
    """The prices in a YAML file."""
    report = Report(str(path))
    fields = Fields(read_yaml(path), report)
    section = fields.section("usd_per_hour")
    prices = {str(name): section.number(str(name)) for name in section.content}
    about = fields.text("about", "")
    fields.finish()
    if not prices:
        fields.wrong("usd_per_hour", "expected at least one GPU, got none (add one, such as V100: 0.50)")
    report.check()
    return Prices(prices, about)


@dataclass(frozen=True, slots=True)
class GpuCosts:
    """The cascade's average price beside the last tier's alone, by accounting.

    Args:
        seconds: of one example on each tier's GPU; None: not known, so there is no cost per million examples.
        usd_per_hour, usd_per_million: accounting -> the cascade's average; `best_*`: the last tier alone.
    """

    gpus: Sequence[str]
    exits: Sequence[float]
    tier_usd_per_hour: Sequence[float]
    seconds: Sequence[float] | None
    usd_per_hour: Mapping[str, float]
    best_usd_per_hour: float
    usd_per_million: Mapping[str, float] | None
    best_usd_per_million: float | None
    about: str


def run(exits: Sequence[float], gpus: Sequence[str], prices: Prices, seconds: Sequence[float] | None) -> GpuCosts:
    """Tier i on one GPU of kind `gpus[i]`, its members side by side there."""
    findings = []
    for name, given in (("--gpus", gpus), ("--seconds", seconds)):
        if given is not None and len(given) != len(exits):
            findings.append(f"{name}: expected {len(exits)}, one per tier, got {len(given)}")
    known = ", ".join(prices.usd_per_hour)
    findings += [f'--gpus: no price of "{gpu}" (known: {known})' for gpu in gpus if gpu not in prices.usd_per_hour]
    if findings:
        raise ConfigError(findings)
    hourly = [prices.usd_per_hour[gpu] for gpu in gpus]
    kinds = (Accounting.EXIT, Accounting.REACH)
    per_hour = {kind.value: average_cost(exits, [[price] for price in hourly], kind) for kind in kinds}
    per_million, best = None, None
    if seconds is not None:
        million = _per_million(hourly, seconds)
        per_million = {kind.value: average_cost(exits, [[price] for price in million], kind) for kind in kinds}
        best = million[-1]
        seconds = list(seconds)
    return GpuCosts(list(gpus), list(exits), hourly, seconds, per_hour, hourly[-1], per_million, best, prices.about)


def _per_million(hourly: Sequence[float], seconds: Sequence[float]) -> list[float]:
    """US dollars for a million examples on each tier's GPU."""
    return [price / 3600 * time_s * 1e6 for price, time_s in zip(hourly, seconds, strict=True)]


def as_part(study: GpuCosts) -> Part:
    times = ["-"] * len(study.gpus) if study.seconds is None else [f"{at * 1000:.3g} ms" for at in study.seconds]
    columns = zip(study.gpus, study.exits, study.tier_usd_per_hour, times, strict=True)
    tiers = [
        [str(number), gpu, f"{share:.1%}", f"${price:.2f}", time]
        for number, (gpu, share, price, time) in enumerate(columns, start=1)
    ]
    lines = [
        [unit, kind, f"${value:.3g}", f"${best:.3g}", f"{value / best:.2f}x"]
        for unit, values, best in _rows(study)
        for kind, value in values.items()
    ]
    hourly = study.usd_per_hour
    verdict = [
        f"The average example is charged ${hourly['exit']:.2f} per GPU hour by exit (as the paper does), "
        f"${hourly['reach']:.2f} by reach, against ${study.best_usd_per_hour:.2f} for the last tier's GPU alone.",
        "Both suppose GPUs that are let while they have nothing to do: with each tier's GPU rented all the time the "
        f"cascade costs ${sum(study.tier_usd_per_hour):.2f} per hour, whatever exits.",
    ]
    header = ("price", "accounting", "cascade", "last tier", "ratio")
    tables = [
        Table("tiers", "tiers", ("tier", "GPU", "exits", "per hour", "time per example"), tiers, "", 2),
        Table("prices", "average price", header, lines, study.about, 2),
    ]
    return Part("cost", "What the GPUs cost", verdict, tables, asdict(study), draw=lambda: _figures(study))


def _rows(study: GpuCosts) -> list[tuple[str, Mapping[str, float], float]]:
    """(unit, the cascade's average by accounting, the last tier's)."""
    rows = [("per hour", study.usd_per_hour, study.best_usd_per_hour)]
    if study.usd_per_million is not None and study.best_usd_per_million is not None:
        rows.append(("per million examples", study.usd_per_million, study.best_usd_per_million))
    return rows


def _figures(study: GpuCosts) -> list[Figure]:
    from sim.charts import bar_chart

    tiers = [f"tier {number}: {gpu}" for number, gpu in enumerate(study.gpus, start=1)]
    each = {"per hour": list(study.tier_usd_per_hour)}
    if study.seconds is not None:
        each["per million examples"] = _per_million(study.tier_usd_per_hour, study.seconds)
    return [
        bar_chart(
            [*tiers, "cascade, by exit", "cascade, by reach"], [*each[unit], *values.values()],
            lambda value: f"${value:.2f}" if value >= 0.1 else f"${value:.2g}",
            name="per-hour" if unit == "per hour" else "per-million", title=f"Price {unit} (Figure 4)",
            axis=f"US dollars {unit}", colours=[*[GREY] * len(tiers), *COLOURS],
            caption="Grey: every example on that tier alone. Blue: the average example of the cascade.",
        )
        for unit, values, _ in _rows(study)
    ]  # fmt: skip


NAME = "cost"
HELP = "GPU prices, per hour and per million examples (Figure 4)"
DESCRIPTION = "The average price of an example whose tiers run on GPUs of different price."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--exits", type=arguments.shares, required=True, metavar="LIST", help="per tier: 0.7,0.2,0.1")
    parser.add_argument("--gpus", type=_gpus, required=True, metavar="LIST", help="per tier: V100,A6000,H100")
    parser.add_argument("--seconds", type=arguments.seconds, metavar="LIST", help="per example and tier: 2ms,5ms,20ms")
    parser.add_argument("--prices", type=Path, metavar="FILE", help="YAML of USD per hour; default: as in the paper")
    arguments.add_output(parser)


def run_command(options: argparse.Namespace) -> Part:
    prices = read_prices(options.prices or PRICES)
    study = run(options.exits, options.gpus, prices, options.seconds)
    return as_part(study)


def _gpus(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]  # two tiers may share a kind
