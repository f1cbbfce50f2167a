"""`coe-sim replay` against a loop that shares no code with it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulator import Program, shared

from coe.cascade import Always
from sim.traces import Answers, Trace, parse_tiers, to_cascade, vote_of

Said = dict[str, dict[str, tuple[int, float]]]  # example -> model -> (prediction, score)


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".tsv":
        header, *lines = [line.split("\t") for line in path.read_text().splitlines()]
        return [dict(zip(header, line, strict=True)) for line in lines]
    parquet = pytest.importorskip("pyarrow.parquet")
    return parquet.read_table(path, columns=["example_id", "label", "model", "prediction", "score"]).to_pylist()


def loop(path: Path, tiers: Sequence[tuple[Sequence[str], Fraction | None]]) -> dict[str, Any]:
    """Algorithm 1 on one example after the other, with dictionaries, from the table itself."""
    said: Said = {}
    truth: dict[str, int] = {}
    for row in rows_of(path):
        said.setdefault(row["example_id"], {})[row["model"]] = (int(row["prediction"]), float(row["score"]))
        truth[row["example_id"]] = int(row["label"])
    exits, wrong = [0] * len(tiers), [0] * len(tiers)
    for example, answers in said.items():
        for number, (members, theta) in enumerate(tiers):
            votes: dict[int, list[float]] = {}
            for member in members:
                label, score = answers[member]
                votes.setdefault(label, []).append(score)
            best = sorted(votes, key=lambda label: (-len(votes[label]), -sum(votes[label]) / len(votes[label]), label))
            if theta is None or Fraction(len(votes[best[0]]), len(members)) >= theta:
                exits[number] += 1
                wrong[number] += best[0] != truth[example]
                break
    n = len(said)
    models = next(iter(said.values()))
    return {
        "n": n,
        "accuracy": 1 - sum(wrong) / n,
        "exit": [count / n for count in exits],
        "wrong_exit": wrong,
        "single": {name: sum(said[key][name][0] == truth[key] for key in said) / n for name in models},
    }


def assert_equal(told: dict[str, Any], expected: dict[str, Any]) -> None:
    assert told["n"] == expected["n"]
    assert told["wrong_exit"] == expected["wrong_exit"]
    assert [round(share * told["n"], 6) for share in told["exit"]] == [
        round(share * told["n"], 6) for share in expected["exit"]
    ]
    assert round((1 - told["accuracy"]) * told["n"], 6) == sum(expected["wrong_exit"])
    assert told["single"] == pytest.approx(expected["single"])


def test_the_shared_imagenet_trace_is_replayed_to_the_last_example(sim: Program):
    path = shared("traces_imagenet_val.parquet")
    out, _ = sim("replay", path, "--tiers", "ResNet50,SimCLR,DINO@2/3", "ViT", "--json")
    told = json.loads(out)
    limits = {"accuracy_low_high", "difference", "difference_low_high", "exit_low_high"}
    assert told.keys() == {"n", "accuracy", "exit", "wrong_exit", "single"} | limits
    assert_equal(told, loop(path, [(("ResNet50", "SimCLR", "DINO"), Fraction(2, 3)), (("ViT",), None)]))


@pytest.mark.parametrize(
    ("texts", "tiers"),
    [
        (("a,b,c@2/3", "best"), [("abc", Fraction(2, 3)), (("best",), None)]),
        (("a,b", "best"), [("ab", Fraction(1)), (("best",), None)]),
        (
            ("a,b@1/2", "c,best@2 of 2", "best"),
            [("ab", Fraction(1, 2)), (("c", "best"), Fraction(1)), (("best",), None)],
        ),
        (("a,b,c",), [("abc", None)]),
    ],
)
def test_a_trace_of_top_scores_is_replayed_to_the_last_example(sim: Program, plain_path: Path, texts, tiers):
    out, _ = sim("replay", plain_path, "--tiers", *texts, "--json")
    assert_equal(json.loads(out), loop(plain_path, tiers))


def test_costs_are_charged_in_three_accountings(sim: Program, plain_path: Path, tmp_path: Path):
    costs = tmp_path / "costs.yaml"
    costs.write_text("flops: {a: 1, b: 2, c: 3, best: 100}\n")
    out, _ = sim("replay", plain_path, "--tiers", "a,b,c", "best", "--costs", costs, "--json")
    told = json.loads(out)
    stays, goes = told["exit"]
    assert told["costs"]["flops"]["exit"] == pytest.approx(3 * stays + 100 * goes)
    assert told["costs"]["flops"]["reach"] == pytest.approx(3 + 100 * goes)
    assert told["costs"]["flops"]["reach-serial"] == pytest.approx(6 + 100 * goes)


def test_latencies_and_payloads_of_the_trace_are_used(sim: Program, trace_path: Path, synthetic):
    out, _ = sim("replay", trace_path, "--tiers", "a,b,c", "best", "--json")
    told = json.loads(out)
    assert told["costs"]["latency_s"]["reach"] == pytest.approx(2e-3 + 2e-2 * told["exit"][1], rel=0.02)
    assert told["sent_bytes"]["all"] == pytest.approx(synthetic.payload_bytes.mean())
    assert told["sent_bytes"]["cascade"] == pytest.approx(told["sent_bytes"]["all"] * told["exit"][1], rel=0.1)


def test_a_confidence_tier_defers_by_score(sim: Program, plain_path: Path):
    out, _ = sim("replay", plain_path, "--tiers", "a@confidence>=0.8", "best", "--json")
    rows = [row for row in rows_of(plain_path) if row["model"] == "a"]
    sure = sum(float(row["score"]) >= 0.8 for row in rows)
    assert json.loads(out)["exit"][0] == pytest.approx(sure / len(rows))


def test_six_examples_show_little_and_are_never_exact(sim: Program, tmp_path: Path):
    lines = ["example_id\tlabel\tmodel\tprediction\tscore"]
    lines += [f"e{row}\t{row % 2}\t{name}\t{row % 2}\t0.9" for name in ("a", "b", "best") for row in range(6)]
    (tmp_path / "six.tsv").write_text("\n".join(lines) + "\n")
    (tmp_path / "costs.yaml").write_text("flops: {a: 1, b: 1, best: 10}\n")
    arguments = ("replay", tmp_path / "six.tsv", "--tiers", "a,b", "best", "--costs", tmp_path / "costs.yaml")
    out = sim(*arguments)[0]
    told = json.loads(sim(*arguments, "--json")[0])
    assert "100.00% (54.07% to 100.00%) of 6 examples right" in out
    assert told["difference"] == 0
    low, high = told["difference_low_high"]
    assert low < -0.1 < 0.1 < high
    low, high = told["costs_low_high"]["flops"]["reach-serial"]
    assert (low, round(high, 2)) == (2, 6.59)  # up to 46% may go on
    assert told["exit_low_high"][0] == pytest.approx([0.5407, 1], abs=1e-4)


def test_the_table_says_accuracy_and_margin(sim: Program, plain_path: Path):
    out, err = sim("replay", plain_path, "--tiers", "a,b,c@0.67", "best@2/3")
    assert "best single model (best)" in out
    assert re.search(r"difference [-+.\d]+% \([-+.\d]+% to [-+.\d]+%\)", out)
    assert "0.67 of 3 members needs 3 votes" in err
    assert "the last tier always answers" in err


@pytest.mark.parametrize(
    ("tiers", "words"),
    [
        (["a,bb", "best"], 'no model "bb" in the trace (did you mean "b"?)'),
        (["a,a", "best"], "expected each model once"),
        (["a", "best"], "one member always agrees with itself"),
        (["a,b@3/2", "best"], "expected a share in (0, 1]"),
        (["a,b@often", "best"], "expected an agreement"),
    ],
)
def test_a_wrong_tier_is_one_line_and_exit_code_two(sim: Program, plain_path: Path, tiers: list[str], words: str):
    _, err = sim("replay", plain_path, "--tiers", *tiers, code=2)
    assert words in err
    assert len(err.splitlines()) == 1
    assert err.startswith("coe-sim: ")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("flops: {a: 1, b: 2, c: 3}\n", "flops.best: expected a number, got nothing (add it)"),
        ("flops: {a: 1, b: 2, c: 3, best: many}\n", 'flops.best: expected a number, got "many"'),
        ("about: nothing\n", "expected a section of costs"),
    ],
)
def test_wrong_costs_are_one_line(sim: Program, plain_path: Path, tmp_path: Path, content: str, words: str):
    (tmp_path / "costs.yaml").write_text(content)
    _, err = sim("replay", plain_path, "--tiers", "a,b", "best", "--costs", tmp_path / "costs.yaml", code=2)
    assert words in err
    assert len(err.splitlines()) == 1


def test_an_unknown_name_of_costs_lists_the_bundled_ones(sim: Program, plain_path: Path):
    _, err = sim("replay", plain_path, "--tiers", "a,b", "best", "--costs", "imagnet", code=2)
    assert "frugalml-emotion" in err
    assert "imagenet" in err


def test_recorded_answers_decide_as_a_plain_loop_does():
    rng = np.random.default_rng(3)
    tiers = [{f"{tier}{member}": rng.dirichlet(np.ones(4), 300).astype(np.float32) for member in range(n)}
             for tier, n in ((1, 3), (2, 3), (3, 1))]  # fmt: skip
    answers = {name: Answers.of(outputs) for tier in tiers for name, outputs in tier.items()}
    trace = Trace("t", tuple(map(str, range(300))), np.zeros(300, dtype=np.int32), answers)
    rules = [f"{','.join(tiers[0])}@unanimous", f"{','.join(tiers[1])}@2/3", *tiers[2]]
    run = to_cascade(parse_tiers(rules, trace)[0], trace).decide(trace.batch())
    for row in range(300):
        for number, (tier, needed) in enumerate(zip(tiers, (3, 2, 1), strict=True), start=1):
            said = [int(outputs[row].argmax()) for outputs in tier.values()]
            if max(said.count(label) for label in said) >= needed:
                assert run.exit_tier[row] == number
                assert run.labels[row] == max(said, key=said.count)
                break
    everyone = vote_of(trace, list(tiers[0]), Always()).labels
    votes = np.stack([outputs.argmax(axis=1) for outputs in tiers[0].values()])
    clear = np.array([np.bincount(column).max() >= 2 for column in votes.T])
    assert [int(np.bincount(column).argmax()) for column in votes.T[clear]] == everyone[clear].tolist()
