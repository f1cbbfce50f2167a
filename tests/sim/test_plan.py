"""`coe-sim plan` and `certify`: what they print, that it is what the chosen system does, and errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from simulator import Program, shared

from coe.calibration import Calibration, TableMember
from coe.calibration.choose import System, asked
from coe.cascade import Accounting
from sim.studies.candidates import n_labels_of, panel_of, sequences
from sim.sweep import EnsembleVotes
from sim.traces import read_costs, read_trace

SUM = {"a": 1, "b": 2, "c": 3, "best": 10}


@pytest.fixture
def costs(tmp_path: Path) -> Path:
    path = tmp_path / "costs.yaml"
    path.write_text(f"flops: {json.dumps(SUM)}\n")
    return path


def test_the_json_has_the_choice_its_certificate_and_plain_agreement(sim: Program, trace_path: Path, costs: Path):
    out, _ = sim("plan", trace_path, "--costs", costs, "--calibration", 300, "--json")
    found = json.loads(out)
    assert (found["n_calibration"], found["n_test"]) == (300, 300)
    assert set(found["reference"]) == {"model", "accuracy"}
    for name in ("chosen", "plain"):
        one = found[name]
        assert one["rule"] in ("agreement", "calibrated", "confidence", "single")
        assert one["difference_low"] <= one["difference"] <= one["difference_high"]
        assert one["difference"] == pytest.approx(one["accuracy"] - found["reference"]["accuracy"])
        assert set(one["cost"]) == {kind.value for kind in Accounting}
        assert sum(one["exit_shares"]) == pytest.approx(1)
        assert set(one["certificate"]) == {"epsilon", "delta", "holds", "lower_bound", "labels_needed"}
    assert found["plain"]["rule"] == "agreement"
    assert "300 labels are few" in " ".join(found["words"])


def test_the_same_seed_gives_the_same_plan_and_files_hold_it(sim: Program, trace_path: Path, costs: Path, tmp_path):
    pytest.importorskip("matplotlib")
    given = ("plan", trace_path, "--costs", costs, "--on-device", "a,b,c", "--max-sent", "60%", "--json")
    first, _ = sim(*given, "--out", tmp_path / "out")
    assert sim(*given)[0] == first
    found = json.loads(first)
    assert json.loads((tmp_path / "out" / "plan.json").read_text()) == found
    table = Calibration.read(tmp_path / "out" / "calibration.json")
    assert table.rule == found["chosen"]["rule"]
    assert table.bound is not None
    assert table.bound.holds == found["chosen"]["certificate"]["holds"]
    assert 1 - found["chosen"]["kept"] <= 0.62
    assert "on the device" in found["words"][0] or "alone" in found["words"][0]


def test_nothing_that_can_be_certified_is_said_with_the_labels_it_would_take(sim: Program, trace_path, costs):
    out, _ = sim("plan", trace_path, "--costs", costs, "--certified", "--bound", "0.1%", "--delta", "1%")
    assert "run best alone: nothing cheaper can be certified; " in out


def test_a_latency_is_kept(sim: Program, trace_path: Path, costs: Path):
    out, _ = sim("plan", trace_path, "--costs", costs, "--max-latency", "12ms", "--max-cost", 2, "--json")
    shares, system = json.loads(out)["chosen"]["exit_shares"], json.loads(out)["chosen"]["system"]
    seconds = {"a": 1e-3, "b": 1.5e-3, "c": 2e-3, "best": 2e-2}
    tiers = [[name.split("@")[0] for name in tier.split(",")] for tier in system.split(" | ")]
    reach = np.cumsum([max(seconds[name] for name in tier) for tier in tiers])
    assert np.dot(shares, reach) < 13e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reference", "x"], '--reference: no model "x" in the trace'),
        (["--on-device", "a,x"], '--on-device: no model "x" in the trace'),
        (["--max-sent", "10%"], "--max-sent: expected --on-device beside it, got none"),
    ],
)
def test_a_wish_that_cannot_be_read_is_an_error_of_one_line(sim: Program, trace_path, costs, arguments, message):
    _, err = sim("plan", trace_path, "--costs", costs, *arguments, code=2)
    assert message in err


def test_prices_are_read_from_a_table_by_the_task_in_the_name(tmp_path: Path, plain_path: Path):
    trace = read_trace(plain_path)
    table = tmp_path / "prices.tsv"
    lines = [f"PLAIN\t{name}\t{price}" for name, price in SUM.items()] + ["OTHER\ta\t99"]
    table.write_text("\n".join(["task\tmodel\tprice_usd_per_10k_calls", *lines]))
    assert read_costs(str(table), trace)[0].of == SUM
    table.write_text("task\tmodel\tprice_usd_per_10k_calls\nPLAIN\ta\t1")
    with pytest.raises(Exception, match=r'expected a price of "b" for the task of plain'):
        read_costs(str(table), trace)


def test_tiers_to_rank_are_few_where_models_are_many():
    cost = {f"m{number}": float(number + 1) for number in range(10)}
    found = sequences(cost, 300, np.random.default_rng(0))
    assert len(found) < 400
    assert {(("m0",),), (("m0",), ("m9",))} <= set(found)
    few = sequences(dict(list(cost.items())[:3]), 300, np.random.default_rng(0))
    assert len(few) == len(set(few))
    assert (("m0", "m1"), ("m2",)) in few
    assert (("m2",), ("m0",)) not in few


def test_certify_says_whether_the_bound_holds_against_every_model(sim: Program, trace_path: Path):
    out, _ = sim("certify", trace_path, "--tiers", "a,b,c@2/3", "best", "--bound", "10%", "--json")
    found = json.loads(out)
    assert set(found["against"]) == {"a", "b", "c", "best"}
    assert found["holds"] == all(one["holds"] for one in found["against"].values())
    assert found["lower_bound"] == min(one["lower_bound"] for one in found["against"].values())
    out, _ = sim("certify", trace_path, "--tiers", "best", "--against", "a")
    assert "at least a - 1.0 points: shown with 90% confidence (600 examples)" in out


def test_certify_without_data_says_what_labels_can_show(sim: Program):
    out, _ = sim("certify", "--labels", 500, "--gain", "1%", "--loss", "1%", "--json")
    found = json.loads(out)
    assert 0 < found["power"] < 0.8
    assert 1000 < found["labels_needed"] < 3000
    assert found["exact_binomial"]["0"] == 230
    _, err = sim("certify", "x.tsv", code=2)
    assert "--tiers: expected the tiers to certify, got none" in err


@pytest.mark.slow
def test_on_a_shared_trace_the_choice_matches_the_best_single_model_for_less(sim: Program):
    trace, prices = shared("traces_frugalml_waimai.parquet"), shared("traces_frugalml_prices.tsv")
    out, _ = sim("plan", trace, "--costs", prices, "--calibration", 3000, "--json")
    chosen = json.loads(out)["chosen"]
    assert chosen["difference_high"] >= -0.002
    assert chosen["cost"]["reach-serial"] <= 0.96


@pytest.mark.parametrize("rule", ["calibrated", "agreement", "confidence"])
def test_a_table_replays_to_what_the_chooser_decided(
    sim: Program, synthetic, trace_path: Path, tmp_path: Path, rule: str
):
    panel = panel_of(EnsembleVotes(synthetic), n_labels_of(synthetic))
    tiers = (("a",), ("b", "c"), ("best",)) if rule == "calibrated" else (("a", "b", "c"), ("best",))
    tiers = (("a",), ("c",), ("best",)) if rule == "confidence" else tiers
    thresholds = {"calibrated": (), "agreement": (2.0,), "confidence": (0.75, 0.5)}[rule]
    system = System(rule, tiers, thresholds)
    if rule == "calibrated":
        stages = [panel.fitted(asked(tiers, place))[0] for place in range(len(tiers))]
        stages = [replace(stage, threshold=t) for stage, t in zip(stages, (0.8, 0.9, None), strict=True)]
        system = System(rule, tiers, (0.8, 0.9), tuple(stages))
    texts = ("2/3",) if rule == "agreement" else system.thresholds
    labels = tuple(map(str, range(panel.n_labels)))
    members = tuple(tuple(map(TableMember, tier)) for tier in tiers)
    Calibration(rule, "t", labels, None, members, system.stages, texts, 600, "2026-01-01", "best").write(
        tmp_path / "c.json"
    )
    told = json.loads(sim("replay", trace_path, "--calibration", tmp_path / "c.json", "--json")[0])
    right, exit_tier = system.decide(panel)
    assert told["accuracy"] == pytest.approx(right.mean())
    assert told["exit"] == pytest.approx(np.bincount(exit_tier, minlength=len(tiers)) / len(right))
    assert 0.05 < told["exit"][0] < 0.95


def test_a_table_of_other_models_is_one_line(sim: Program, plain_path: Path, tmp_path: Path):
    members = ((TableMember("a"), TableMember("other")), (TableMember("best"),))
    labels = tuple(map(str, range(6)))
    Calibration("agreement", "t", labels, None, members, (), ("2/2",), 9, "2026-01-01", "best").write(
        tmp_path / "c.json"
    )
    _, err = sim("replay", plain_path, "--calibration", tmp_path / "c.json", code=2)
    assert err == 'coe-sim: --calibration: no model "other" in the trace (known: a, b, c, best)\n'
