"""REPORT.md of a task: its files, the rules that calibration chooses, and what `coe-sim` prints of them on test.

Rules of a cascade are chosen on calibration; test is looked at once, after everything is trained. All numbers of the
cascade come from the two traces and the manifest, so that anybody can compute them again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from sim.studies.replay import Replayed, as_part, replay_trace
from sim.traces import Costs, Trace, parse_tiers, read_costs, read_trace
from sim.traces.files import flops_of

from .bundle import read_entries

AGREEMENTS = ("2/3", "unanimous")
Rules = tuple[str, ...]  # of all tiers but the last, which always answers
Members = Sequence[Sequence[str]]  # of each tier, by file


def read_traces(folder: Path) -> tuple[Trace, Trace]:
    """The calibration and the test trace in a task's folder."""
    calibration, test = (read_trace(folder / f"{split}.parquet") for split in ("calibration", "test"))
    return calibration, test


def tiers_of(members: Members, rules: Rules) -> list[str]:
    """The cascade as `coe-sim replay --tiers` takes it."""
    return [",".join(own) + (f"@{rule}" if rule else "") for own, rule in zip(members, (*rules, ""), strict=True)]


def replayed(trace: Trace, members: Members, rules: Rules) -> Replayed:
    """What the cascade decides on a trace."""
    specs, _ = parse_tiers(tiers_of(members, rules), trace)
    return replay_trace(trace, specs)


def by_agreement(trace: Trace, members: Members) -> dict[Rules, Replayed]:
    """The cascade with each combination of agreements."""
    return {rules: replayed(trace, members, rules) for rules in product(AGREEMENTS, repeat=len(members) - 1)}


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown; the first column is text, the others are numbers."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return ["| " + " | ".join(row) + " |" for row in (header, rule, *rows)]


def files_table(folder: Path, calibration: Trace, test: Trace) -> list[str]:
    """Each file of the manifest; accuracy on test and latency only where the file is in the trace."""
    rows, absent = [], []
    for one in read_entries(folder):
        path = folder / one.file
        size = f"{path.stat().st_size:,}" if path.exists() else ""
        absent += [] if path.exists() else [one.file]
        known = calibration.accuracy(one.file) if one.file in calibration.models else one.calibration_accuracy
        seconds = test.latency_s(one.file) if one.file in test.models else None
        on_test = f"{test.accuracy(one.file):.2%}" if one.file in test.models else ""
        latency = "" if seconds is None else f"{seconds * 1e6:,.0f} us"
        rows.append([one.file, str(one.tier), size, f"{one.parameters:,}", f"{one.flops:,}", f"{known:.2%}", on_test,
                     latency])  # fmt: skip
    return [
        *table(("file", "tier", "bytes", "parameters", "FLOPs", "calibration", "test", "latency"), rows),
        "",
        "FLOPs are two for each multiply-add of one example. Latency: median of the test examples, each alone, on one",
        "thread of one machine; compare, do not quote.",
        *(["Not bundled, for their size, and made again by the recipe:", f"{', '.join(absent)}."] if absent else []),
    ]


def rules_table(found: Mapping[Rules, Replayed]) -> list[str]:
    """The cascade on calibration with each combination of rules."""
    n_rules = len(next(iter(found)))
    header = [*(f"tier {number}" for number in range(1, n_rules + 1)), "accuracy", "leave at each tier"]
    rows = [[*rules, f"{run.accuracy:.2%}", exits(run)] for rules, run in found.items()]
    return ["## The cascade on calibration", "", *table(header, rows)]


def exits(run: Replayed) -> str:
    return " / ".join(f"{share:.1%}" for share in run.exits)


def cascade_section(title: str, task: str, folder: Path, members: Members, rules: Rules) -> list[str]:
    """What `coe-sim replay TASK` prints of the cascade on the task's test trace."""
    test = replace(read_trace(folder / "test.parquet"), name=f"{task}-test")
    flops = flops_of(task, test, folder)
    costs = [*([] if flops is None else [flops]), *read_costs(None, test)]
    return [title, "", *replay_block(test, members, rules, costs, f"coe-sim replay {task}")]


def replay_block(test: Trace, members: Members, rules: Rules, costs: Sequence[Costs], command: str) -> list[str]:
    """The command and its output, as code."""
    tiers = " ".join(f"'{tier}'" for tier in tiers_of(members, rules))
    return ["```", f"$ {command} --tiers {tiers}", as_part(replayed(test, members, rules), costs).as_text(), "```"]


def write_report(folder: Path, title: str, lines: Sequence[str]) -> None:
    """REPORT.md in the task's folder; also printed."""
    text = "\n".join([f"# {title}: what the models do", "", *lines, ""])
    (folder / "REPORT.md").write_text(text, encoding="utf-8")
    print(text)
