"""What each model costs on one example: FLOPs, seconds, dollars, from a YAML file or from the trace itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coe.cascade import Accounting, ConfigError, tier_charges
from coe.config import Fields, Report, format_seconds, read_yaml

BUNDLED = Path(__file__).parents[1] / "costs"
AXES = {
    "flops": "FLOPs per example",
    "latency_s": "model time per example",
    "usd_per_million": "US dollars per million examples",
    "usd_per_10k_calls": "US dollars per 10,000 calls",
    "layers": "transformer layers per example",
}


@dataclass(frozen=True, slots=True)
class Costs:
    """One kind of cost: what each model takes for one example.

    Args:
        kind: "flops", "latency_s", "usd_per_million", or another name of the file's.
        note: where the numbers are from.
    """

    kind: str
    of: Mapping[str, float]
    note: str = ""

    @property
    def axis(self) -> str:
        return AXES.get(self.kind, f"{self.kind} per example")

    @property
    def usual_accounting(self) -> Accounting:
        """`reach` for time, in which members side by side cost no more than the slowest, and `reach-serial` for all
        else, where every member asked is paid for."""
        return Accounting.REACH if self.kind == "latency_s" else Accounting.REACH_SERIAL

    def charges(self, tiers: Sequence[Sequence[str]], accounting: Accounting) -> NDArray[np.float64]:
        """(T,) what an example pays that leaves at each of these tiers."""
        return tier_charges([[self.of[name] for name in tier] for tier in tiers], accounting)

    def text(self, value: float) -> str:
        """A value in its unit, short."""
        if self.kind == "latency_s":
            return format_seconds(value)
        if self.kind.startswith("usd_per_"):
            return f"${value:,.0f}" if value >= 100 else f"${value:.3g}"
        return si_prefixed(value) if self.kind == "flops" else f"{value:.3g}"


def si_prefixed(value: float) -> str:
    """12.4 G for 1.24e10."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g}"


def costs_in(reference: str, models: Sequence[str]) -> list[Costs]:
    """The costs of these models in a file: a YAML file, or the name of a bundled one.

    Raises:
        ConfigError: a model is missing in the file, or a number is none.
    """
    path = _resolved(reference)
    report = Report(str(path))
    fields = Fields(read_yaml(path), report)
    note = fields.text("about", "")
    found = []
    for kind in fields.content:
        if kind == "about":
            continue
        section = fields.section(str(kind))
        of = {model: section.number(model, low=0.0, high=1e18) for model in models}
        found.append(Costs(str(kind), of, note))
    if not found:
        report.findings.append("expected a section of costs, such as flops: {model: 1.0e9}, got none (add one)")
    report.check()
    return found


def _resolved(reference: str) -> Path:
    path = Path(reference)
    if path.suffix in (".yaml", ".yml") or path.exists():
        return path
    bundled = BUNDLED / f"{reference}.yaml"
    if not bundled.exists():
        known = ", ".join(sorted(path.stem for path in BUNDLED.glob("*.yaml")))
        raise ConfigError([f'--costs: expected a YAML file or one of {known}, got "{reference}" (write a path)'])
    return bundled


def pick(costs: Sequence[Costs], kind: str | None) -> list[Costs]:
    """The kind asked for ahead of the others; None: as they are.

    Raises:
        ConfigError: no costs are known, or not of that kind.
    """
    if not costs:
        raise ConfigError(
            ["--costs: expected costs of the models, got none and the trace has no latencies (write a YAML file: "
             "flops: {model: 1.0e9, ..}, or usd_per_million:, or latency_s:)"]
        )  # fmt: skip
    if kind not in (None, *(one.kind for one in costs)):
        raise ConfigError([f'--by: expected one of {", ".join(one.kind for one in costs)}, got "{kind}"'])
    return sorted(costs, key=lambda one: kind not in (None, one.kind))
