"""`coe-sim paper`: every printed cell, what follows for it within its rounding, and what does not."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from simulator import Program

from coe.cascade import ConfigError
from coe.config import Fields, Report
from sim.studies.paper import METRICS, TABLES, Printed, average, exactly, read_tables

SMALL = {
    "gpus": {"small": "0.5", "large": "2.0"},
    "delays_s": [1e-6, 1.0],
    "table2": {
        "A": {
            "exit": ["0.75", "0.25", "1.00", "1.00"],
            "cost_usd_per_hour": ["0.38", "0.50", "0.88", "2.00"],
            "latency_ms": ["2.0", "10.0", "4.0", "10.0"],
            "flops": ["1.00e6", "5.00e6", "2.00e6", "5.00e6"],
            "communication": "4.0",
        }
    },
    "table3": {"A": [[3, "1.0", "40", "30", "75.00"]]},
}


def read(text: str) -> Printed:
    return Printed.read(Fields({}, Report("a test")), "cell", text)


@pytest.fixture(scope="module")
def found() -> dict:
    from sim.studies.paper import content

    return json.loads(json.dumps(content(read_tables(TABLES))))


def changed(tmp_path: Path, **cells: object) -> Path:
    content = json.loads(json.dumps(SMALL))
    content["table2"]["A"] |= cells
    path = tmp_path / "tables.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_every_cell_of_table_2_follows_within_its_rounding(found):
    assert list(found["table2"]) == ["CIFAR-10", "ImageNet-1K", "SWAG", "SST-2", "Twitter Financial News"]
    cells = [cell for task in found["table2"].values() for cell in task["cells"]]
    n_tiers = sum(len(task["exits"]) for task in found["table2"].values())
    assert len(cells) == n_tiers + 5 * (1 + 2 * len(METRICS))
    assert all(cell["follows"] for cell in cells)
    assert all(cell["low_high"][0] <= cell["computed"] <= cell["low_high"][1] for cell in cells)


def test_the_communication_of_figure_5_follows(found):
    ratios = {name: one["ratio"] for name, one in found["communication"].items()}
    assert [ratios[name] for name in ("SST-2", "CIFAR-10", "SWAG", "Twitter Financial News")] == pytest.approx(
        [14.29, 9.18, 3.45, 2.86], abs=0.005
    )
    assert found["communication"]["CIFAR-10"]["delays_s"] == [1e-6, 0.01, 0.1, 1.0]
    assert [one["follows"] for one in found["communication"].values()] == [True, None, True, True, True]
    assert ratios["ImageNet-1K"] is None  # of three tiers the delays are not said


def test_the_misprint_of_table_3_is_found_and_no_other(found):
    (wrong,) = [row for row in found["table3"] if not row["follows"]]
    assert (wrong["task"], wrong["models"], wrong["threshold"]) == ("SWAG", 4, 0.66)
    assert (wrong["wrong"], wrong["large_wrong_too"], wrong["rate"], wrong["correct"]) == (2141, 213, 56.66, 1213)
    assert len(found["table3"]) == 15
    assert any("so 213 must be 1,213" in line for line in found["says"])


def test_what_reach_says_of_imagenet_stays_said(found):
    imagenet = found["table2"]["ImageNet-1K"]
    ratios = [imagenet[metric]["reach"] / imagenet[metric]["best_single"] for metric in ("latency_ms", "flops")]
    assert ratios == pytest.approx([1.40, 1.13], abs=0.005)
    assert any("charged for every tier reached, the cascade costs 1.40x" in line for line in found["says"])


def test_claims_in_words_are_held_to_the_tables(found):
    held = {one["claim"]: one["follows"] for one in found["claims"]}
    assert held["over 3x lower monetary cost"]
    assert held["14x lower communication"]
    assert not held["up to 7x lower average cost of inference"]  # 6.25x
    assert not held["the large model is wrong on 1/2 to 3/4 of the wrong agreements"]  # 45% to 88%


def test_every_cell_is_carried_as_it_is_printed():
    content = yaml.safe_load(TABLES.read_text())
    assert content["status"] == "printed"
    assert content["gpus"] == {"V100": "0.5", "A6000": "0.8", "A100": "1.29", "H100": "2.49"}
    assert content["table2"]["Twitter Financial News"]["cost_usd_per_hour"][2] == "0.61"
    for task in content["table2"].values():
        assert {len(task[key]) for key in ("exit", *METRICS)} == {len(task["exit"])}


@given(st.integers(0, 9999), st.integers(0, 3))
def test_a_printed_number_stands_for_all_that_round_to_it(digits: int, decimals: int):
    printed = read(f"{digits / 10**decimals:.{decimals}f}")
    assert printed.value == pytest.approx(digits / 10**decimals)
    assert printed.high - printed.low == pytest.approx(10.0**-decimals)
    assert read("2.15e9").high == 2.155e9


@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(0.1, 9.9)), min_size=2, max_size=5))
def test_what_is_printed_always_holds_what_was_rounded(tiers):
    shares = [share / sum(own for own, _ in tiers) for share, _ in tiers]
    costs = [cost for _, cost in tiers]
    printed = average([read(f"{share:.2f}") for share in shares], [read(f"{cost:.2f}") for cost in costs])
    true = sum(share * cost for share, cost in zip(shares, costs, strict=True))
    assert printed.low - 1e-9 <= true <= printed.high + 1e-9


def test_the_range_of_an_average_is_that_of_shares_that_sum_to_one():
    found = average([read("0.7"), read("0.3")], [exactly(1.0), exactly(2.0)])
    assert (found.low, found.value, found.high) == pytest.approx((1.25, 1.3, 1.35))


def test_what_does_not_follow_is_said(tmp_path: Path, sim: Program):
    path = changed(tmp_path, latency_ms=["2.0", "10.0", "3.0", "10.0"], communication="5.0")
    out = sim("paper", "--tables", path)[0]
    assert "A, latency, ms, cascade: 3.0 DOES NOT FOLLOW: 4" in out
    assert "A, communication: 5.0x DOES NOT FOLLOW: 4.00x" in out
    out = sim("paper", "--tables", changed(tmp_path))[0]
    assert "DOES NOT" not in out


def test_averages_are_in_two_accountings(tmp_path: Path, sim: Program):
    task = json.loads(sim("paper", "--tables", changed(tmp_path), "--json")[0])["table2"]["A"]
    assert [task["latency_ms"][kind] for kind in ("exit", "reach")] == pytest.approx([4.0, 4.5])
    assert [task["cost_usd_per_hour"][kind] for kind in ("exit", "reach")] == pytest.approx([0.875, 1.0])
    assert math.isclose(task["flops"]["reach"], 2.25e6)


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        ({"exit": ["x", "0.25", "1", "1"]}, "table2.A.exit[0]: expected a number from 0 as it is printed, got 'x'"),
        ({"exit": 5}, "table2.A.exit: expected a cell for each tier, CoE and the best model, got 0"),
        ({"flops": ["1e6"]}, "table2.A.flops: expected a cell for each tier, CoE and the best model, got 1"),
        ({"latency": 5}, "table2.A.latency: unknown setting"),
        ({key: ["0.2"] * 7 for key in ("exit", *METRICS)}, "expected at most 2 tiers, of GPUs and delays, got 5"),
    ],
)
def test_a_wrong_cell_is_named(tmp_path: Path, cells: dict, says: str):
    with pytest.raises(ConfigError) as error:
        read_tables(changed(tmp_path, **cells))
    assert says in str(error.value)


def test_figures_4_5_and_7_are_drawn_from_printed_numbers(tmp_path: Path, sim: Program):
    pytest.importorskip("matplotlib")
    sim("paper", "--out", tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"paper-cost.png", "paper-communication.png", "paper-exits.png", "paper-table2.csv"} <= names
