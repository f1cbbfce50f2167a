"""Where a plan's tiers run: models from files or configs, what a device and a link take, and the configs to run it."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from coe import zoo
from coe.calibration import Calibration
from coe.calibration.bound import share_interval
from coe.cascade import Accounting, ConfigError
from coe.config import Fields, Report, format_seconds, format_yaml, read_yaml
from coe.config.cascade import read_cascade
from coe.config.manifest import Task, read_manifest
from coe.link import Link
from coe.models import ModelSpec
from sim.output import OURS, Figure, Part, Series, Table, document, log
from sim.traces import Costs, Trace

from .plan import Plan, n_on_device
from .record import Models
from .replay import lead, with_limits

ADDRESS = "127.0.0.1:8001"


@dataclass(frozen=True, slots=True)
class Source:
    """Models to plan with.

    Args:
        settings: task (and labels, input) as a config has them, its files by their full paths.
        files: of each model, as a config names it.
        on_device: names of those that a device's config holds; empty: none says.
    """

    models: Models
    settings: Mapping[str, Any]
    files: Mapping[str, str]
    on_device: tuple[str, ...] = ()


def read_source(reference: str) -> Source:
    """A bundled task by its name, a folder with a manifest or with edge.yaml and cloud.yaml, or a config."""
    folder = zoo.find(reference) if reference in zoo.TASKS else Path(reference)
    paths = [folder / "edge.yaml", folder / "cloud.yaml"] if folder.is_dir() else [folder]
    configs = [path for path in paths if path.is_file()]
    if not configs and not (folder / "manifest.yaml").is_file():
        expected = "a bundled task, a config, or a folder with manifest.yaml (or edge.yaml and cloud.yaml)"
        raise ConfigError([f'--models: expected {expected}, got "{reference}" (coe-edge init writes a config)'])
    specs: dict[str, ModelSpec] = {}
    tasks: list[Task] = []
    on_device: list[str] = []
    contents = [(path, read_yaml(path)) for path in configs] or [(folder / "manifest.yaml", _all_of(folder))]
    for path, content in contents:
        report = Report(str(path))
        config = read_cascade(Fields(content, report), path.parent)
        report.check()
        tasks.append(config.task)
        own = [spec for tier in config.local_tiers for spec in tier.members]
        specs |= {spec.name: spec for spec in own}
        on_device += [spec.name for spec in own] if path.name == "edge.yaml" else []
    first, content = contents[0]
    settings: dict[str, Any] = {key: content[key] for key in ("task", "labels", "input") if key in content}
    if (first.parent / str(settings["task"])).is_file():
        settings["task"] = str((first.parent / settings["task"]).resolve())
    is_bundled = reference in zoo.TASKS
    if is_bundled:
        settings["task"] = f"zoo:{reference}"
    files = {
        name: f"zoo:{reference}/{spec.path.name}" if is_bundled else str(spec.path.resolve())
        for name, spec in specs.items()
    }
    return Source(Models(tasks[0], list(specs.values())), settings, files, tuple(on_device))


def _all_of(folder: Path) -> dict[str, Any]:
    """A config with every model of the folder's manifest that is there."""
    there = [name for name in read_manifest(folder).models if (folder / name).is_file()]
    if not there:
        raise ConfigError([f"--models: {folder}: expected the models of its manifest.yaml, got none (copy them there)"])
    return {"task": "manifest.yaml", "tiers": [{"name": "all", "members": there}]}


def flops_in(source: Source) -> list[Costs]:
    """As the manifest counts them; nothing where it does not know them all."""
    known = {spec.name: float(spec.flops) for spec in source.models.specs if spec.flops}
    note = "two for each multiply-add of one example (the manifest)"
    return [Costs("flops", known, note)] if len(known) == len(source.models.specs) else []


def device_seconds(path: Path) -> dict[str, float]:
    """Seconds of each member on the device, from what `coe-edge bench --json` printed there."""
    try:
        found: dict[str, float] = {}
        for tier in json.loads(path.read_text(encoding="utf-8"))["tiers"]:
            timed = [plan["members"] for plan in tier["plans"] if len(plan["members"]) == len(tier["members"])]
            found |= dict(zip(tier["members"], map(float, timed[0]), strict=True))
    except OSError as error:
        raise ConfigError([f"--device: {path}: cannot be read: {error.strerror}"]) from None
    except (ValueError, KeyError, TypeError, IndexError):
        expected = "expected what coe-edge bench --json prints, got other content (run it on the device)"
        raise ConfigError([f"--device: {path}: {expected}"]) from None
    return found


def on_the_device(trace: Trace, costs: Sequence[Costs], seconds: Mapping[str, float]) -> list[Costs]:
    """The costs, with the device's own seconds for the models that it runs."""
    own = {name: seconds[name] for name in seconds if name in trace.models}
    note = "seconds of the device where it runs the model, else of this machine"
    return [replace(one, of={**one.of, **own}, note=note) if one.kind == "latency_s" else one for one in costs]


@dataclass(frozen=True, slots=True)
class Placed:
    """A plan on a device, a link and a cloud.

    Args:
        n_device: tiers from the first on that run on the device.
        sent_bytes: mean, of an example; None: not recorded. latency_s: mean; None: not known of every model.
    """

    plan: Plan
    n_device: int
    sent_share: float
    sent_bytes: float | None
    latency_s: float | None
    alone_s: float | None

    @classmethod
    def of(cls, plan: Plan, seconds: Costs | None, link: Link | None) -> Placed:
        tiers, shares = plan.chosen.choice.system.tiers, np.array(plan.chosen.shares)
        n_device = n_on_device(tiers, plan.wishes.on_device or ())
        sent, payload = float(shares[n_device:].sum()), plan.trace.payload_bytes
        size = None if payload is None else float(payload.mean())
        call_s = 0.0 if link is None else link.mean_call_s(size or 0.0)
        latency_s = alone_s = None
        if seconds is not None:
            latency_s = float(shares @ seconds.charges(tiers, Accounting.REACH_SERIAL)) + sent * call_s
            is_local = plan.reference in (plan.wishes.on_device or ())
            alone_s = seconds.of[plan.reference] + (0.0 if is_local else call_s)
        return cls(plan, n_device, sent, None if size is None else size * sent, latency_s, alone_s)

    def as_json(self) -> dict[str, Any]:
        tiers = [list(tier) for tier in self.plan.chosen.choice.system.tiers]
        return {
            "device": tiers[: self.n_device],
            "cloud": tiers[self.n_device :],
            "sent": self.sent_share,
            "sent_bytes": self.sent_bytes,
            "latency_s": self.latency_s,
            "reference_latency_s": self.alone_s,
        }

    def in_words(self) -> str:
        parts = [f"{self.sent_share:.1%} of the examples leave the device"]
        if self.sent_bytes is not None:
            parts.append(f"{self.sent_bytes:,.0f} B an example on average")
        if self.latency_s is not None and self.alone_s is not None:
            parts.append(
                f"{format_seconds(self.latency_s)} an example on average, members in turn "
                f"({self.plan.reference} alone: {format_seconds(self.alone_s)})"
            )
        return "; ".join(parts)


def signed(table: Calibration, task: Task, specs: Iterable[ModelSpec]) -> Calibration:
    """The table for these very models: task, labels, and the digest of every file."""
    by_name = {spec.name: spec for spec in specs}
    tiers = tuple(tuple(replace(one, sha256=by_name[one.name].digest()) for one in tier) for tier in table.tiers)
    return replace(table, task=task.name, labels=task.labels, fingerprint=task.fingerprint, tiers=tiers)


def configs_of(placed: Placed, source: Source, table: Calibration) -> dict[str, dict[str, Any]]:
    """`pi.yaml`, and `cloud.yaml` where a tier is not on the device, as `coe-edge` and `coe-cloud` read them."""
    system, model = placed.plan.chosen.choice.system, source.models.task.name
    is_calibrated = system.rule == "calibrated"
    tiers: list[dict[str, Any]] = []
    for number, members in enumerate(system.tiers, start=1):
        tier: dict[str, Any] = {"name": f"tier-{number}", "members": [source.files[name] for name in members]}
        if number < len(system.tiers) and not is_calibrated:
            tier[system.rule] = table.thresholds[number - 1]
        tiers.append(tier)
    device, cloud = tiers[: placed.n_device], tiers[placed.n_device :]
    remote: list[dict[str, Any]] = []
    if cloud:
        names = [tier["name"] for tier in cloud] if is_calibrated else ["cloud"]  # calibrated: the device weighs each
        served = [f"{model}-{name}" for name in names] if len(names) > 1 else [model]
        remote = [{"name": n, "address": ADDRESS, "model": m} for n, m in zip(names, served, strict=True)]
    kind = "digits" if source.settings["task"] == "zoo:digits" else "stdin"
    edge = {**source.settings, "tiers": [*device, *remote], "source": {"kind": kind}}
    if is_calibrated:
        edge["calibration"] = "calibration.json"
    found = {"pi.yaml": edge}
    if cloud:
        served_tiers = [dict(tier) for tier in cloud]
        if is_calibrated:  # each is asked by its own name; as a chain it would go on unless all agree
            served_tiers = [tier if tier is served_tiers[-1] else {**tier, **_unanimous(tier)} for tier in served_tiers]
        found["cloud.yaml"] = {**source.settings, "model": model, "tiers": served_tiers}
    return found


def _unanimous(tier: Mapping[str, Any]) -> dict[str, Any]:
    return {"agreement": "unanimous"} if len(tier["members"]) > 1 else {"confidence": 1.0}


def refused(plan: Plan) -> list[list[str]]:
    """Every model alone, and the best plain agreement, with what speaks against it."""
    chosen = plan.chosen.choice.system
    lines = []
    for name in plan.trace.models:
        difference, *limits = lead(plan.chosen.right, plan.test.right(name))
        cost = float(plan.charges(((name,),), plan.accounting)[0])
        reasons = []
        if cost > plan.wishes.max_cost:
            reasons.append(f"its cost, {cost:.2f}x, is over {plan.wishes.max_cost:g}x")
        if plan.wishes.max_sent is not None and name not in (plan.wishes.on_device or ()):
            reasons.append(f"it would send 100%, over {plan.wishes.max_sent:.0%}")
        if plan.ranked.right(name).mean() < plan.chosen.choice.expected:
            reasons.append("less accurate on the half that ranks")
        if chosen.tiers == ((name,),):
            reasons = ["chosen"]
        right = plan.test.right(name)
        accuracy = with_limits(float(right.mean()), share_interval(int(right.sum()), len(right)))
        differs = with_limits(difference, (limits[0], limits[1]), "+.2%")
        lines.append([name, accuracy, differs, f"{cost:.2f}x", "; ".join(reasons)])
    return lines


def with_placement(part: Part, placed: Placed) -> Part:
    """The plan's chapter with placement, every single model beside it, and pictures."""
    table = Table(
        "alone", "each model alone, against the choice",
        ("model", "accuracy", "the choice differs by", "cost", "why not alone"), refused(placed.plan),
        "On the examples that nothing was chosen on; 95% intervals of the same examples.",
    )  # fmt: skip
    why = {line[0]: line[-1] for line in table.lines}
    content = {**part.content, "placement": placed.as_json(), "why_not_alone": why}
    return replace(
        part, verdict=[*part.verdict, placed.in_words()], tables=[*part.tables, table], content=content,
        draw=lambda: _figures(placed),
    )  # fmt: skip


def _figures(placed: Placed) -> list[Figure]:
    from sim.charts import frontier, stacked_bars

    plan = placed.plan
    single = list(plan.trace.models)
    costs = [float(plan.charges(((name,),), plan.accounting)[0]) for name in single]
    alone = Series("single models", costs, [float(plan.ranked.right(name).mean()) for name in single], single)
    front = Series(OURS, [one.cost for one in plan.found], [one.accuracy for one in plan.found])
    system = plan.chosen.choice.system
    here = float(np.dot(plan.chosen.shares, plan.charges(system.tiers, plan.accounting)))
    choice = Series("chosen", [here], [plan.chosen.choice.expected], ["chosen"])
    floor = min([*front.accuracies, plan.chosen.choice.expected, max(alone.accuracies)]) - 0.02
    axis = f"{plan.costs.axis} against {plan.reference}, accounting: {plan.accounting.value}"
    tiers = [f"tier {n}: {', '.join(tier)}" for n, tier in enumerate(system.tiers, start=1)]
    places = ["device" if at < placed.n_device else "cloud" for at in range(len(tiers))]
    return [
        frontier([alone, front, choice], axis, lambda value: f"{value:.2g}x", name="front", title="The Pareto front",
                 floor=floor, caption="Accuracy on the half that ranks; the choice is among these, within the limits."),
        stacked_bars(["all examples"], [f"{tier} ({place})" for tier, place in zip(tiers, places, strict=True)],
                     [plan.chosen.shares], name="exits", title="Where examples exit", axis="share of examples",
                     caption=placed.in_words()),
    ]  # fmt: skip


def write_configs(placed: Placed, source: Source, table: Calibration, folder: Path) -> None:
    """`pi.yaml` and `cloud.yaml`."""
    for name, content in configs_of(placed, source, table).items():
        (folder / name).write_text(format_yaml(content), encoding="utf-8")
        log(f"wrote {folder / name}")


def write_page(part: Part, folder: Path) -> None:
    """`plan.html`: the plan as one page that opens offline."""
    body = f"<h1>{html.escape(part.title)}</h1>{part.as_html(part.draw())}"
    (folder / "plan.html").write_text(document(part.title, body), encoding="utf-8")
    log(f"wrote {folder / 'plan.html'}")
