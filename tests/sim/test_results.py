"""docs/results.md and its pages say what their commands give; each is run where its trace is at hand."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from simulator import SHARED, Program, shared

from coe.config import format_seconds
from sim.studies.replay import with_limits

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted([*DOCS.glob("results.md"), *DOCS.glob("results/*.md")])
TEXT = "\n\n".join(page.read_text(encoding="utf-8") for page in PAGES)
STUDIES = re.findall(r"`(coe-sim pareto [^`]+)`\n\n(\|.+?)\n\n", TEXT, re.DOTALL)
ERRORS = re.findall(r"`(coe-sim errors DATA/traces_imagenet[^`]+)`\n\n(\|.+?)\n\n", TEXT, re.DOTALL)

pytest.importorskip("coe_zoo", reason="needs the tasks of coe-zoo: pip install ./zoo")
pytestmark = pytest.mark.skipif(not TEXT, reason="the documentation is in the checkout, not in the wheel")


def at_hand(command: str) -> list[str]:
    """Its arguments, on the shared data."""
    arguments = shlex.split(command)[1:]
    for argument in arguments:
        if argument.startswith("DATA/"):
            shared(argument.removeprefix("DATA/"))
        if argument.startswith("zoo/") and not (DOCS.parent / argument).is_file():
            pytest.skip(f"{argument} is in the checkout, not beside the tests of a wheel")
    checkout = f"{DOCS.parent}/zoo/"
    return [re.sub("^zoo/", checkout, argument.replace("DATA", str(SHARED))) for argument in arguments]


def test_every_trace_has_its_table():
    assert {command.split()[2] for command, _ in STUDIES} >= {"cifar10", "DATA/traces_imagenet_val.parquet"}
    assert len(STUDIES) == 11
    assert len(REPLAYS) == 6
    assert len(PLANS) == 5


HEADER = """| method | accuracy | difference | exit | reach | reach-serial | exits | sent | system |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


def rows_of(told: dict[str, Any]) -> list[str]:
    """The lines of a page's table, from the JSON of `pareto`."""
    kind, best = told["cost"], told["best_single"]
    alone = with_limits(best["accuracy"], best["accuracy_low_high"])
    found = [["best single model", alone, "", *["1.00x"] * 3, "", "100%", f"{best['model'].removesuffix('.onnx')}"]]
    for name, method in told["methods"].items():
        if name == "single models":
            continue
        point = method["points"][method["drop_in"]]
        charged = []
        for by, cost in point["costs"][kind].items():
            low, high = (end / best["costs"][kind] for end in point["costs_low_high"][kind][by])
            limits = f" ({low:.2f} to {high:.2f})" if by == told["accounting"] else ""
            charged.append(f"{cost / best['costs'][kind]:.2f}x{limits}")
        system = re.sub(r"(\.int8)?\.onnx", "", point["system"]).replace(" | ", " → ")
        found.append([
            name if method["is_drop_in"] else f"{name} *",
            with_limits(point["accuracy"], point["accuracy_low_high"]),
            with_limits(point["difference"], point["difference_low_high"], "+.2%"),
            *charged,
            " / ".join(f"{share:.0%}" for share in point["exit"]),
            "-" if point["sent"] is None else with_limits(point["sent"], point["sent_low_high"], ".0%"),
            f"`{system}`",
        ])  # fmt: skip
    return [f"| {' | '.join(cells)} |" for cells in found]


SLOW = ("cifar10", "_command", "_imdb", "_waimai", "_rafdb")  # many examples or models: half a minute each


@pytest.mark.parametrize(
    ("command", "table"),
    [
        pytest.param(*study, marks=pytest.mark.slow if any(name in study[0] for name in SLOW) else ())
        for study in STUDIES
    ],
)
def test_a_table_is_what_its_command_gives(sim: Program, command: str, table: str):
    for row in rows_of(json.loads(sim(*at_hand(command), "--json")[0])):
        assert row in table


REPLAYS = re.findall(r"\$ (coe-sim replay .+?)\n(.+?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize(("command", "body"), REPLAYS)
def test_the_replay_of_the_page_is_what_its_command_gives(sim: Program, command: str, body: str):
    printed = " ".join(sim(*at_hand(command))[0].split())
    for line in body.splitlines():
        assert " ".join(line.split()) in printed


PLANS = re.findall(r"`(coe-sim plan zoo:[^`]+)` says:\n\n((?:> .+\n)+)", TEXT)


@pytest.mark.slow  # seconds each
@pytest.mark.parametrize(("command", "words"), PLANS)
def test_a_plan_of_the_page_says_what_its_command_says(sim: Program, command: str, words: str):
    said = json.loads(sim(*at_hand(command), "--json")[0])["words"]
    assert " ".join(words.replace("> ", "").split()) in " ".join(said)


EDGE = {
    "cifar10": ("stride.onnx,tiles.onnx,gate.onnx,weave.onnx", "summit.onnx"),
    "sst2": ("bag.onnx,filters.onnx,attention.onnx", "minilm.int8.onnx"),
    "tfns": ("bag.onnx,filters.onnx,attention.onnx", "minilm.int8.onnx"),
}
FOUR = (
    "stride.onnx,tiles.onnx,feather.onnx",
    "stair.onnx,gate.onnx,weave.onnx",
    "ladder.onnx,funnel.onnx,tower.onnx",
    "summit.onnx",
)


@pytest.mark.parametrize(
    ("name", "trace", "tiers"),
    [
        ("CIFAR-10, `edge.yaml`", "cifar10", EDGE["cifar10"]),
        ("CIFAR-10, four tiers", "cifar10", FOUR),
        ("SST-2", "sst2", EDGE["sst2"]),
        ("Twitter", "tfns", EDGE["tfns"]),
        ("ImageNet-1K, three and ViT", "DATA/traces_imagenet_val.parquet", ("ResNet50,SimCLR,DINO", "ViT")),
    ],
)
def test_the_exits_of_the_page_are_what_the_command_gives(sim: Program, name: str, trace: str, tiers: tuple[str, ...]):
    told = json.loads(sim(*at_hand(f"coe-sim exits {trace} --tiers {' '.join(tiers)} --json"))[0])
    for row in told["rows"]:
        right = [
            "-" if not share else f"{1 - wrong / (share * told['n']):.1%}"
            for share, wrong in zip(row["exit"], row["wrong_exit"], strict=True)
        ]
        shares = " / ".join(f"{share:.1%}" for share in row["exit"])
        cells = [name, row["theta"], shares, " / ".join(right), f"{row['accuracy']:.2%}"]
        assert f"| {' | '.join(cells)} |" in TEXT


@pytest.mark.parametrize(
    ("name", "task", "n"),
    [("CIFAR-10, four voters", "cifar10", 4), ("SST-2, three", "sst2", 3), ("Twitter, three", "tfns", 3)],
)
def test_the_times_of_first_tiers_on_the_page_are_those_of_the_traces(sim: Program, name: str, task: str, n: int):
    row = json.loads(sim("parallel", task, "--members", EDGE[task][0], "--json")[0])["rows"][-1]
    times = [row["side_by_side_s"], row["in_turn_s"], row["early_s"]]
    asked, ratio = f"{row['early_asked']:.2f} of {n}", f"{times[1] / times[0]:.2f}x"
    assert f"| {' | '.join([name, *map(format_seconds, times), asked, ratio])} |" in TEXT


@pytest.mark.parametrize(
    "rows", re.findall(r"`(coe-sim errors DATA/traces_imagenet[^`]+)`\n\n(\|.+?)\n\n", TEXT, re.DOTALL)
)
def test_the_wrong_agreements_of_the_page_are_what_its_command_gives(sim: Program, rows: tuple[str, str]):
    command, table = rows
    told = json.loads(sim(*at_hand(command), "--json")[0])
    for row in told["rows"]:
        cells = [
            ", ".join(row["members"]),
            f"{row['needed']} of {len(row['members'])}",
            f"{row['agreed'] / told['n']:.1%}",
            f"{row['wrong'] / row['agreed']:.1%}",
            f"{row['shared'] / row['wrong']:.0%}",
            f"{(row['wrong'] - row['shared']) / told['n']:.2%}",
        ]
        assert f"| {' | '.join(cells)} |" in table
