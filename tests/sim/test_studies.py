"""The smaller studies, each against a count by hand, and what their commands write."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from simulator import Program
from traces_of import trace_of

from coe.cascade import ConfigError
from sim.charts import spread_labels
from sim.studies import errors, exits, gpu_cost, model_table, parallel
from sim.studies.replay import replay_trace
from sim.traces import Answers, Trace, parse_tiers

TRACE = trace_of(
    [0, 0, 0, 0, 0, 0],
    {"a": [0, 1, 1, 0, 1, 2], "b": [0, 1, 1, 1, 1, 1], "c": [0, 1, 1, 0, 2, 0], "big": [0, 1, 0, 0, 0, 1]},
    {},
)


def test_wrong_agreements_are_counted_and_those_the_large_model_shares():
    (two, three) = errors.run(TRACE, [("a", "b", "c")], "big").rows
    assert (two.needed, two.agreed, two.wrong, two.shared, two.lost) == (2, 5, 3, 1, 2)
    assert (three.needed, three.agreed, three.wrong, three.shared, three.lost) == (3, 3, 2, 1, 1)
    assert [row.needed for row in errors.run(TRACE, [("a", "b")], "big").rows] == [2]


def test_exits_are_told_at_every_threshold_that_is_a_majority():
    specs, _ = parse_tiers(["a,b,c", "big"], TRACE)
    study = exits.run(TRACE, specs)
    assert list(map(str, study.thetas)) == ["2/3", "1"]
    assert [one.exits[0] for one in study.replays] == pytest.approx([5 / 6, 3 / 6])
    assert [one.wrong_exits for one in study.replays] == [[3, 1], [2, 1]]


def timed(**seconds: list[float]) -> Trace:
    said = {"a": [0, 0, 1, 0], "b": [0, 1, 1, 1], "c": [0, 1, 1, 0]}
    models = {
        name: Answers(np.array(said[name], np.int32), latency_s=np.array(seconds[name], np.float32)) for name in said
    }
    return Trace("timed", tuple("wxyz"), np.zeros(4, np.int32), models)


def test_members_side_by_side_take_the_slowest_and_in_turn_the_sum():
    trace = timed(a=[1.0, 1, 1, 1], b=[2.0, 2, 2, 2], c=[4.0, 4, 4, 8])
    rows = parallel.run(trace, ["a", "b", "c"]).rows
    assert [row.side_by_side_s for row in rows] == pytest.approx([1, 2, 5])
    assert [row.in_turn_s for row in rows] == pytest.approx([1, 3, 8])
    assert [row.early_asked for row in rows] == pytest.approx([1, 2, 2.5])  # w and y ask all, x and z stop at b
    assert rows[2].early_s == pytest.approx((7 + 3 + 7 + 3) / 4)


def test_latencies_that_were_not_recorded_are_asked_for():
    with pytest.raises(ConfigError, match="coe-sim record --latencies"):
        parallel.run(TRACE, ["a"])


def test_figure_8_has_both_modes_for_the_cascade_and_the_best_model(synthetic: Trace):
    study = parallel.run(synthetic, ["a"], parallel.cascade_of(synthetic, ["a,b,c", "best"]))
    cascade, best = study.systems
    of = {name: float(said.latency_s.mean()) for name, said in synthetic.models.items()}
    left = replay_trace(synthetic, parallel.cascade_of(synthetic)).exits[1]
    assert best.side_by_side_s == best.in_turn_s == pytest.approx(of["best"])
    assert cascade.side_by_side_s == pytest.approx(of["c"] + left * of["best"])
    assert cascade.in_turn_s == pytest.approx(of["a"] + of["b"] + of["c"] + left * of["best"])
    part = parallel.as_part(study)
    assert [row[0] for row in part.tables[1].lines] == ["cascade: a,b,c | best", "best alone"]
    assert len(part.draw()) == 2


def test_gpu_prices_are_averaged_over_exits():
    study = gpu_cost.run([0.9, 0.1], ["V100", "H100"], gpu_cost.read_prices(gpu_cost.PRICES), [0.001, 0.01])
    assert study.usd_per_hour == {"exit": pytest.approx(0.699), "reach": pytest.approx(0.5 + 0.249)}
    assert study.best_usd_per_million == pytest.approx(2.49 / 3600 * 0.01 * 1e6)
    assert study.usd_per_million["reach"] == pytest.approx((0.5 * 0.001 + 0.1 * 2.49 * 0.01) / 3600 * 1e6)


def test_prices_are_a_file_a_user_edits(sim: Program, tmp_path: Path):
    prices = tmp_path / "prices.yaml"
    prices.write_text("usd_per_hour: {pi: 0.01, gpu: 3}\n")
    out, _ = sim("cost", "--exits", "90%,10%", "--gpus", "pi,gpu", "--prices", prices, "--json")
    assert json.loads(out)["usd_per_hour"]["exit"] == pytest.approx(0.309)
    _, err = sim("cost", "--exits", "0.9,0.1", "--gpus", "pi,H100", "--prices", prices, code=2)
    assert err.strip() == 'coe-sim: --gpus: no price of "H100" (known: pi, gpu)'
    prices.write_text("usd_per_hour: {pi: cheap}\n")
    _, err = sim("cost", "--exits", "0.9,0.1", "--gpus", "pi,pi", "--prices", prices, code=2)
    assert 'usd_per_hour.pi: expected a number, got "cheap"' in err


TABLE = """model\timg_size\ttop1\tgmacs\tips
tiny\t96\t60\t0.1\t1000
small\t224\t70\t1.0\t100
odd\t224\t65\t2.0\t
big\t224\t80\t10.0\t10
"""


def test_the_set_of_a_table_of_models(sim: Program, tmp_path: Path):
    (tmp_path / "models.tsv").write_text(TABLE)
    study = model_table.run(tmp_path / "models.tsv", "top1", ["gmacs", "1/ips"])
    assert [study.names[row].split()[0] for row in study.against[0].rows[study.against[0].pareto_set]] == [
        "tiny", "small", "big"
    ]  # fmt: skip
    assert study.against[1].costs.tolist() == pytest.approx([0.001, 0.01, 0.1])
    out, _ = sim("models", tmp_path / "models.tsv", "--cost", "gmacs", "--out", tmp_path / "out")
    assert "3 of 4 models are in the Pareto set" in out
    assert (tmp_path / "out" / "models-gmacs.png").exists()
    _, err = sim("models", tmp_path / "models.tsv", "--cost", "flops", code=2)
    assert "no column flops (known: model, img_size, top1, gmacs, ips)" in err


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "column top1: expected the accuracy of one model at least, got none"),
        (["small\t\t1"], "column top1: expected the accuracy of one model at least, got none"),
        (["small\t70\t0"], "column 1/ips: expected a number above 0 of one model at least, got none"),
        (["small\t70\t"], "column 1/ips: expected a number above 0 of one model at least, got none"),
    ],
)
def test_a_table_without_a_model_to_tell_of_is_one_line(sim: Program, tmp_path: Path, lines: list[str], words: str):
    (tmp_path / "models.tsv").write_text("\n".join(["model\ttop1\tips", *lines, ""]))
    _, err = sim("models", tmp_path / "models.tsv", "--cost", "1/ips", code=2)
    assert words in err
    assert len(err.splitlines()) == 1


def test_the_report_is_one_page_that_stands_alone(sim: Program, trace_path: Path, plain_path: Path, tmp_path: Path):
    (tmp_path / "costs.yaml").write_text("flops: {a: 1, b: 2, c: 3, best: 100}\n")
    out, _ = sim(
        "report", trace_path, plain_path, "--costs", tmp_path / "costs.yaml", "--out", tmp_path / "o", "--json"
    )
    assert json.loads(out).keys() == {
        *(f"synthetic-{study}" for study in ("pareto", "errors", "exits", "parallel")),
        *(f"plain-{study}" for study in ("pareto", "errors", "exits")),
    }
    page = (tmp_path / "o" / "report.html").read_text()
    assert page.count("<h2>") == 7
    assert page.count("<svg") == 4 + 4 + 2 + 2 + 2
    assert not re.search(r"""(src|href)=["']?(https?:)?//|@import|url\((?!#)""", page), "nothing may be fetched"
    for path in (tmp_path / "o").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    for path in (tmp_path / "o").glob("*.csv"):
        rows = list(csv.reader(path.read_text().splitlines()))
        assert len(rows) > 1
        assert len({len(row) for row in rows}) == 1


def test_a_study_adds_its_chapter_to_the_page_of_its_folder(sim: Program, plain_path: Path, tmp_path: Path):
    sim("errors", plain_path, "--out", tmp_path)
    sim("exits", plain_path, "--out", tmp_path)
    sim("exits", plain_path, "--tiers", "a,b", "best", "--out", tmp_path)
    assert (tmp_path / "report.html").read_text().count("<h2>") == 2


def test_a_study_that_only_prints_needs_no_matplotlib(sim: Program, plain_path: Path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "sim.charts", raising=False)
    assert "large: best" in sim("errors", plain_path)[0]
    _, err = sim("errors", plain_path, "--out", "nowhere", code=2)
    assert "pip install 'coe-cascade[sim]'" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["errors", "--large", "huge"], '--large: no model "huge" in the trace (known: a, b, c, best)'),
        (["errors", "--members", "a"], "expected at least two members besides best"),
        (["exits", "--tiers", "a,b"], "expected at least two tiers"),
        (["exits", "--models", "a,b"], "expected a trace of three models at least"),
        (["parallel"], "expected latencies of a, got none"),
        (["errors", "--models", "a,z"], '--models: no model "z"'),
    ],
)
def test_a_wrong_argument_is_one_line(sim: Program, plain_path: Path, arguments: list[str], words: str):
    study, *rest = arguments
    _, err = sim(study, plain_path, *rest, code=2)
    assert words in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["cost", "--exits", "0.9,0.2", "--gpus", "V100,H100"],
        ["cost", "--exits", "most", "--gpus", "V100"],
        ["pareto", "t.tsv", "--calibration", "1"],
        ["pareto", "t.tsv", "--most", "0"],
        ["pareto", "t.tsv", "--seed", "-1"],
        ["pareto", "t.tsv", "--seed", "one"],
        ["errors", "t.tsv", "--members", "a,a"],
        ["replay", "t.tsv"],
    ],
)
def test_what_cannot_be_read_as_an_argument_ends_in_one_plain_line(sim: Program, arguments: list[str]):
    _, err = sim(*arguments, code=2)
    assert "error: " in err.splitlines()[-1]
    assert "Traceback" not in err


def test_ticks_of_a_time_axis_say_where_they_are():
    pytest.importorskip("matplotlib")
    rows = [parallel.EnsembleTiming(("a",), 1.72e-3, 1.99e-3, 1.71e-3, 1.0)]
    svg = parallel.as_part(parallel.MemberTimings(TRACE, rows)).draw()[0].svg
    assert {">1.25 ms<", ">1.75 ms<", ">1.72<", ">1.99<"} <= set(re.findall(r">[\d.]+(?: ms)?<", svg))


def test_a_long_cell_is_put_in_several_lines_and_a_short_one_is_not():
    from sim.output import table_html

    page = table_html(
        ("method", "exits", "system"), [["cascade", "50% / 50%", "first,second,third,fourth,fifth,sixth | best"]]
    )
    assert "<td class=long>first,<wbr>second" in page
    assert "<td class=text>50% / 50%</td>" in page


def test_names_beside_a_chart_are_moved_apart_in_their_order():
    places = spread_labels([0.5, 0.5, 0.51, 0.9], 0.1)
    assert places == pytest.approx([0.4033333, 0.5033333, 0.6033333, 0.9])
    assert spread_labels([], 0.1) == []
