"""`coe-sim paper`: what follows from the numbers that are carried, and everything once the tables are complete."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from simulator import Program

from coe.cascade import ConfigError
from sim.studies.paper import TABLES, as_part, read_tables
from sim.studies.paper_tables import METRICS, Cell, by_both, by_cost, by_ratio, recompute

COMPLETE = {
    "gpus": {"small": 0.5, "large": 2.0},
    "delays_s": [[1e-6, 1.0], [1e-6, 0.01, 0.1, 1.0]],
    "table1": [["CIFAR-10", 10_000]],
    "table2": {
        "A": {
            "tiers": [
                {"exit": 0.75, "latency_ms": 2.0, "flops": 1e6, "gpu": "small", "members": 3},
                {"exit": 0.25, "latency_ms": 10.0, "flops": 5e6, "gpu": "large", "members": 1},
            ],
            "cascade": {"latency_ms": 4.0, "cost_usd_per_hour": 0.88, "flops": 2e6},
            "best_single": {"latency_ms": 10.0, "cost_usd_per_hour": 2.0, "flops": 5e6},
            "communication_ratio": 4.0,
        }
    },
    "table3": [{"task": "A", "models": 3, "agreed": 400, "wrong": 40, "rate": 0.1, "large_wrong_too": 30}],
}


def written(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "tables.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_a_complete_table_is_computed_in_three_accountings(tmp_path: Path, sim: Program):
    told = json.loads(sim("paper", "--tables", written(tmp_path, COMPLETE), "--json")[0])
    latency, cost, flops = (told["table2"]["A"][metric] for metric in METRICS)
    assert latency["exit"] == pytest.approx(0.75 * 2 + 0.25 * 10)
    assert latency["reach"] == pytest.approx(0.75 * 2 + 0.25 * 12)
    assert latency["reach_serial"] == pytest.approx(0.75 * 6 + 0.25 * 16)
    assert (latency["paper"], latency["best_single"]) == (4.0, 10.0)
    assert [cost[kind] for kind in ("exit", "reach")] == pytest.approx([0.875, 0.75 * 0.5 + 0.25 * 2.5])
    assert [flops[kind] for kind in ("exit", "reach", "reach_serial")] == pytest.approx([2e6, 2.25e6, 4.25e6])
    assert set(latency["status"].values()) == {"printed"}
    assert told["communication"]["A"]["ratio"] == pytest.approx(1 / (0.25 + 0.75e-6))
    assert told["table3"][0]["rate_recomputed"] == pytest.approx(0.1)
    assert told["table3"][0]["large_wrong_too_share"] == pytest.approx(0.75)
    assert told["missing"] == []
    assert told["table1"] == [["CIFAR-10", 10_000]]


def test_what_does_not_follow_is_said(tmp_path: Path, sim: Program):
    content = json.loads(json.dumps(COMPLETE))
    content["table2"]["A"]["cascade"]["latency_ms"] = 3.0
    content["table2"]["A"]["communication_ratio"] = 5.0
    content["table2"]["A"]["best_single"]["latency_ms"] = 4.2
    out = sim("paper", "--tables", written(tmp_path, content))[0]
    assert "A, latency, ms: 3.00 DOES NOT FOLLOW: 4.00 by exit" in out
    assert "A, communication: 5x DOES NOT FOLLOW: 4.00x" in out
    assert "A, cost, USD/h: 0.88 follows" in out
    assert "A, latency, ms: charged for every tier reached, the cascade costs 1.07x its best single model" in out


def test_the_printed_exits_of_sst2_give_its_ratio_and_its_cost(sim: Program):
    told = json.loads(sim("paper", "--json")[0])
    assert told["communication"]["SST-2"]["ratio"] == pytest.approx(14.3, abs=0.1)
    assert told["communication"]["SST-2"]["status"] == "printed"
    cost = told["table2"]["SST-2"]["cost_usd_per_hour"]
    assert cost["exit"] == pytest.approx(0.93 * 0.5 + 0.07 * 0.8)
    assert (cost["status"]["exit"], cost["status"]["paper"]) == ("inferred", "inferred")


def test_the_ratio_and_the_cost_of_two_tiers_confirm_each_other(sim: Program):
    """Each is computed from the exits that the other implies, never from itself."""
    told = json.loads(sim("paper", "--json")[0])
    for task, ratio, cost in (("SWAG", 3.4, 0.59), ("Twitter Financial News", 2.9, 0.60)):
        column = told["table2"][task]["cost_usd_per_hour"]
        assert column["exit"] == pytest.approx((1 - 1 / ratio) * 0.5 + 1 / ratio * 0.8, abs=1e-5)
        assert column["exit"] == pytest.approx(cost, abs=0.01)
        assert told["communication"][task]["ratio"] == pytest.approx(0.3 / (cost - 0.5), abs=1e-3)
        assert told["communication"][task]["ratio"] == pytest.approx(ratio, abs=0.11)
        assert told["communication"][task]["status"] == "inferred"


def test_nothing_is_made_up_where_a_cell_is_not_carried(sim: Program):
    told = json.loads(sim("paper", "--json")[0])
    cifar10 = told["table2"]["CIFAR-10"]
    latency = {"paper": 4.13, "exit": None, "reach": None, "reach_serial": None, "best_single": 9.07}
    assert {key: cifar10["latency_ms"][key] for key in latency} == latency
    assert told["communication"]["CIFAR-10"] == {
        "ratio": None, "paper": 9.2, "delays_s": [1e-6, 0.01, 0.1, 1.0], "exits_from": None, "status": "missing",
    }  # fmt: skip
    assert all(value is None for key, value in told["table2"]["ImageNet-1K"]["flops"].items() if key != "status")
    assert "table2.CIFAR-10.tiers[0].exit: not carried: fill in tables.yaml from the paper's Table 2" in told["missing"]
    assert "table3[0].rate: not carried: fill in tables.yaml from the paper's Table 3" in told["missing"]
    least, most = cifar10["flops"]["bounds"]["exit"]
    assert 5.4e6 < least < most < 2.5e8


def test_every_column_follows_once_a_copy_is_filled(tmp_path: Path, sim: Program):
    """The carried tables, with CIFAR-10's exits and latencies filled by a user."""
    content = yaml.safe_load(TABLES.read_text(encoding="utf-8"))
    shares = (0.8, 0.06, 0.04, 0.1)
    for tier, share, latency in zip(content["table2"]["CIFAR-10"]["tiers"], shares, (1, 2, 4, 9), strict=True):
        tier |= {"exit": share, "latency_ms": float(latency), "members": 2}
    told = json.loads(sim("paper", "--tables", written(tmp_path, content), "--json")[0])
    cifar10 = told["table2"]["CIFAR-10"]
    assert cifar10["latency_ms"]["exit"] == pytest.approx(0.8 + 0.12 + 0.16 + 0.9)
    assert cifar10["latency_ms"]["status"]["exit"] == "printed"
    assert cifar10["flops"]["reach_serial"] == pytest.approx(2 * cifar10["flops"]["reach"])
    assert told["communication"]["CIFAR-10"]["ratio"] == pytest.approx(1 / (0.8e-6 + 0.0006 + 0.004 + 0.1))
    assert not any("CIFAR-10.tiers" in cell for cell in told["missing"])


def test_a_complete_file_leaves_no_number_out(tmp_path: Path, sim: Program):
    content = yaml.safe_load(TABLES.read_text(encoding="utf-8"))
    content["table1"] = [["CIFAR-10", 10_000]]
    content["table2"]["ImageNet-1K"] |= {
        "tiers": [{"gpu": gpu} for gpu in content["gpus"]][:3],
        "delays_s": [0, 0.1, 1],
    }
    content["table2"]["ImageNet-1K"]["communication_ratio"] = 4.0
    for task in content["table2"].values():
        n = len(task["tiers"])
        for tier in task["tiers"]:
            tier |= {"exit": 1 / n, "latency_ms": 2.0, "flops": 3.0e6, "members": 3}
        for column in ("cascade", "best_single"):
            task[column] = {"latency_ms": 1.0, "cost_usd_per_hour": 1.0, "flops": 1.0e6}
    content["table3"][0] |= {"agreed": 2000, "rate": 0.1, "large_wrong_too": 100}
    told = json.loads(sim("paper", "--tables", written(tmp_path, content), "--json")[0])
    assert told["missing"] == []
    for task in told["table2"].values():
        for metric in METRICS:
            assert all(
                task[metric][key] is not None for key in ("paper", "exit", "reach", "reach_serial", "best_single")
            )
    assert all(one["ratio"] is not None for one in told["communication"].values())
    assert None not in told["table3"][0].values()
    assert "not carried" not in sim("paper", "--tables", tmp_path / "tables.yaml")[0].replace(
        "a cell is not carried", ""
    )


def test_what_rests_on_inferred_numbers_fits_and_is_not_said_to_follow(tmp_path: Path, sim: Program):
    out = sim("paper")[0]
    assert "SST-2, cost, USD/h: ~0.52 fits: ~0.52 by exit" in out
    assert "SST-2, communication: 14.3x follows: 14.29x (from printed numbers" in out
    assert "it shows that they go together, not that each is right" in out
    content = yaml.safe_load(TABLES.read_text(encoding="utf-8"))
    content["gpus"]["A6000"] = {"value": 1.8, "status": "inferred"}
    assert "SST-2, cost, USD/h: ~0.52 DOES NOT FIT: ~0.59" in sim("paper", "--tables", written(tmp_path, content))[0]
    assert "go together" not in sim("paper", "--tables", written(tmp_path, COMPLETE))[0]


def test_the_lost_digit_of_table_3_is_said(sim: Program):
    out = sim("paper")[0]
    assert "213 wrong agreements are printed, and the row's own rate comes to about 1,213" in " ".join(out.split())
    assert "- a cell is not carried, and nothing is made up for it" in out


def task_of(shares: list[float], prices: list[float], delays: list[float], cost: float, ratio: float):
    from sim.studies.paper_tables import TaskCells, TierCells

    tiers = [TierCells(Cell(), {**dict.fromkeys(METRICS, Cell()), "cost_usd_per_hour": Cell(price, "printed")}, Cell())
             for price in prices]  # fmt: skip
    nothing = dict.fromkeys(METRICS, Cell())
    return TaskCells("t", tiers, {**nothing, "cost_usd_per_hour": Cell(cost, "printed")}, nothing, delays,
                     Cell(ratio, "printed"))  # fmt: skip


@given(st.floats(0.01, 0.99))
def test_two_tiers_and_one_number_give_the_exits_back(first: float):
    delays = [1e-6, 1.0]
    ratio = 1.0 / (first * delays[0] + (1 - first) * delays[1])
    cost = first * 0.5 + (1 - first) * 2.0
    task = task_of([], [0.5, 2.0], delays, cost, ratio)
    for one in (by_ratio(task), by_cost(task, task.cascade["cost_usd_per_hour"])):
        assert one is not None
        assert one.is_exact
        assert one.exits[0] == pytest.approx([first, 1 - first], abs=1e-6)


@given(st.lists(st.floats(0.01, 1.0), min_size=4, max_size=4))
def test_four_tiers_and_two_numbers_bound_the_exits(weights: list[float]):
    shares = [weight / sum(weights) for weight in weights]
    prices, delays = [0.5, 0.8, 1.29, 2.49], [1e-6, 0.01, 0.1, 1.0]
    ratio = 1.0 / sum(share * delay for share, delay in zip(shares, delays, strict=True))
    cost = sum(share * price for share, price in zip(shares, prices, strict=True))
    task = task_of(shares, prices, delays, cost, ratio)
    both = by_both(task, task.cascade["cost_usd_per_hour"])
    assert both is not None
    assert not both.is_exact
    for least, share, most in zip(both.exits.min(axis=0), shares, both.exits.max(axis=0), strict=True):
        assert least - 1e-6 <= share <= most + 1e-6
    for corner in both.exits:
        assert sum(corner * prices) == pytest.approx(cost, abs=1e-6)


def test_numbers_that_no_exits_fit_imply_none():
    assert by_cost(task_of([], [0.5, 2.0], [1e-6, 1.0], 2.5, 3.0), Cell(2.5, "printed")) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"exit": 75}, "tiers[0].exit: expected a share from 0 to 1, got 75 (write 0.93 for 93%)"),
        ({"exit": 0.5}, "tiers: expected exit shares that sum to 1, got 0.75"),
        ({"gpu": "smal"}, 'tiers[0].gpu: expected one of small, large, got "smal"'),
        ({"flops": "many"}, "tiers[0].flops: expected a number from 0, or null, got 'many'"),
        ({"flops": {"value": 1.0, "status": "sure"}}, 'expected the status printed or inferred, got "sure"'),
        ({"flops": {"value": 1.0, "from": "x"}}, 'expected value, status and source, got "from"'),
        ({"latency": 2}, "latency: unknown setting"),
        ({"members": 2.5}, "tiers[0].members: expected a whole number from 1, got 2.5"),
        ({"members": 0}, "tiers[0].members: expected a whole number from 1, got 0"),
    ],
)
def test_a_wrong_cell_is_named(tmp_path: Path, change: dict[str, object], words: str):
    content = json.loads(json.dumps(COMPLETE))
    content["table2"]["A"]["tiers"][0] |= change
    with pytest.raises(ConfigError) as error:
        read_tables(written(tmp_path, content))
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"table1": 5}, "table1: expected a list, got 5"),
        ({"delays_s": 3}, "delays_s: expected a list, got 3"),
        ({"delays_s": [[1e-6, "soon"]]}, 'delays_s[0][1]: expected a number, got "soon"'),
    ],
)
def test_a_wrong_list_is_one_line(tmp_path: Path, sim: Program, change: dict[str, object], words: str):
    _, err = sim("paper", "--tables", written(tmp_path, {**COMPLETE, **change}), code=2)
    assert words in err
    assert len(err.splitlines()) == 1


def test_the_part_is_written_with_its_pictures(tmp_path: Path, sim: Program):
    pytest.importorskip("matplotlib")
    sim("paper", "--out", tmp_path)
    assert {"paper-cost.png", "paper-communication.png", "paper-table2.csv"} <= {
        path.name for path in tmp_path.iterdir()
    }
    assert "DOES NOT F" not in as_part(recompute(read_tables(TABLES))).as_text()
