"""The recorded traces: their schema, and that REPORT.md says of the cascade what they say."""

from __future__ import annotations

import re

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("torch")  # the report's module knows the recipes

import pyarrow as pa
import pyarrow.parquet as pq

from coe.cascade import Accounting, average_cost
from recipes.cifar10 import FOLDER, TRACE, TRACE_CALIBRATION, report
from recipes.report import by_agreement, replayed
from sim.studies.replay import with_limits
from sim.traces import Answers, Trace, read_trace, write_parquet

REPORT = (FOLDER / "REPORT.md").read_text(encoding="utf-8")
MOST_BYTES = 3_000_000
N_MEMBERS = 10


@pytest.fixture(scope="module")
def test_trace():
    return read_trace(TRACE)


@pytest.fixture(scope="module")
def calibration_trace():
    return read_trace(TRACE_CALIBRATION)


@pytest.fixture(scope="module")
def flops():
    return report.flops_in(FOLDER)


@pytest.mark.parametrize("path", [TRACE, TRACE_CALIBRATION])
def test_a_trace_has_one_row_for_each_picture_and_member(path):
    table = pq.read_table(path)
    text = pa.dictionary(pa.int32(), pa.string())
    columns = [("example_id", text), ("label", pa.int16()), ("model", text), ("prediction", pa.int16())]
    columns += [("score", pa.float32()), ("probabilities", pa.list_(pa.float16(), 10)), ("latency_s", pa.float32())]
    assert table.schema.remove_metadata().equals(pa.schema([*columns, ("payload_bytes", pa.int32())]))
    assert table.schema.field("probabilities").type == pa.list_(pa.float16(), 10)
    assert table.num_rows == 5000 * N_MEMBERS
    assert len(set(zip(table["example_id"].to_pylist(), table["model"].to_pylist(), strict=True))) == 5000 * N_MEMBERS
    assert sum(column.null_count for column in table.columns) == 0


def test_the_traces_stay_small():
    assert TRACE.stat().st_size + TRACE_CALIBRATION.stat().st_size <= MOST_BYTES


@pytest.mark.parametrize("recorded", ["test_trace", "calibration_trace"])
def test_what_a_trace_says_of_an_answer_fits_together(recorded, request):
    recorded = request.getfixturevalue(recorded)
    assert set(recorded.models) == {name for tier in (1, 2, 3, 4) for name in report.member_files(tier)}
    assert recorded.labels.min() == 0
    assert recorded.labels.max() == 9
    assert (recorded.payload_bytes > 100).all()
    rows = np.arange(5000)
    for said in recorded.models.values():
        probabilities = said.probabilities.astype(np.float32)
        assert np.allclose(probabilities.sum(axis=1), 1, atol=5e-3)
        assert np.allclose(probabilities[rows, said.predictions], probabilities.max(axis=1), atol=1e-3)
        assert np.allclose(probabilities.max(axis=1), said.scores, atol=1e-3)
        assert (said.latency_s > 0).all()
        assert (said.latency_s < 1).all()


def test_the_traces_share_no_example(test_trace, calibration_trace):
    assert set(test_trace.ids).isdisjoint(calibration_trace.ids)


def test_the_report_gives_each_member_the_accuracy_of_its_trace(test_trace, calibration_trace):
    for name in test_trace.models:
        line = next(line for line in REPORT.splitlines() if line.startswith(f"| {name} |"))
        assert f"| {calibration_trace.accuracy(name):.2%} | {test_trace.accuracy(name):.2%} |" in line


def test_the_report_names_the_files_that_are_not_there():
    listed = re.findall(r"^\| (\S+\.(?:onnx|tflite)) \|", REPORT, re.MULTILINE)
    absent = [name for name in listed if not (FOLDER / name).exists()]
    assert absent
    assert f"Not bundled, for their size, and made again by the recipe:\n{', '.join(absent)}." in REPORT


def test_the_report_s_rules_are_those_that_calibration_chooses(calibration_trace, flops):
    found = by_agreement(calibration_trace, report.FOUR_TIERS)
    rules = report.chosen_rules(found, flops)
    assert report.is_fit(found[rules], flops)
    assert f"\n{', '.join(rules)}.\n" in REPORT


def test_the_report_s_cascade_is_that_of_the_trace(test_trace, calibration_trace, flops):
    rules = report.chosen_rules(by_agreement(calibration_trace, report.FOUR_TIERS), flops)
    run = replayed(test_trace, report.FOUR_TIERS, rules)
    on_test = REPORT.partition("## The four tiers on test")[2]
    assert f"cascade: {with_limits(run.right.mean(), run.limits())} of 5,000 examples right" in on_test
    for tier in (1, 2, 3, 4):
        assert re.search(rf"^{tier} .* {(run.exit_tier == tier).mean():.1%} ", on_test, re.MULTILINE)
    costs = [[flops[name] for name in tier] for tier in report.FOUR_TIERS]
    for accounting in Accounting:
        cost = average_cost(run.exits, costs, accounting)
        line = rf"^FLOPs per example +{accounting.value} +{cost / 1e6:.3g} M .* {cost / costs[-1][0]:.2f}x \("
        assert re.search(line, on_test, re.MULTILINE)


def test_the_report_s_wide_plan_is_that_of_the_traces(calibration_trace, flops):
    assert "\n".join(report.wider_section(FOLDER, calibration_trace, flops)) in REPORT


def test_a_wide_plan_keeps_what_all_its_voters_say_and_leaves_the_rest_to_the_best_model(calibration_trace):
    voters = report.VOTERS[:2]
    first, second, best = (calibration_trace.models[name].predictions for name in (*voters, report.BEST))
    right = np.where(first == second, first, best) == calibration_trace.labels
    costs = {voters[0]: 1.0, voters[1]: 3.0, report.BEST: 10.0}
    found = report.plan(calibration_trace, voters, costs)
    share = (first == second).mean()
    assert found.accuracy == right.mean()
    assert found.exits == pytest.approx((share, 1 - share))
    assert found.gain == pytest.approx(right.mean() - calibration_trace.accuracy(report.BEST))
    assert found.flops["reach-serial"] == pytest.approx((4 + (1 - share) * 10) / 10)


def made_plan(cost, gain, *, decided=0.7):
    return report.Plan(
        (f"{cost}",), 0.9 + gain, (decided, 1 - decided), gain, (gain - 0.004, gain + 0.004), {"reach": cost}
    )


def test_the_cheapest_plan_level_with_the_best_model_is_chosen():
    weak, level, better = made_plan(0.2, -0.02), made_plan(0.4, -0.003), made_plan(0.5, 0.001)
    rare, dear = made_plan(0.1, 0.0, decided=0.5), made_plan(1.2, 0.01)
    assert report.choose([rare, weak, level, better, dear], 0.6) is level
    assert report.choose([rare, weak, dear], 0.6) is weak
    assert report.frontier([weak, made_plan(0.3, -0.03), level]) == [weak, level]


def test_the_cascade_costs_no_more_than_the_best_model_in_any_accounting():
    ratios = re.findall(r"^FLOPs per example .* ([\d.]+)x \([\d.]+ to [\d.]+\)$", REPORT, re.MULTILINE)
    assert len(ratios) == 2 * len(Accounting)
    assert max(map(float, ratios)) <= 1


def test_a_trace_that_is_written_is_read_back_the_same(tmp_path):
    rng = np.random.default_rng(0)
    outputs = rng.dirichlet(np.ones(10), 6).astype(np.float32)
    seconds = rng.random(6, dtype=np.float32)
    said = {"a.onnx": Answers.of(outputs, seconds), "b.onnx": Answers.of(outputs[::-1].copy(), seconds)}
    sizes = rng.integers(700, 900, 6).astype(np.int32)
    labels = rng.integers(0, 10, 6).astype(np.int32)
    write_parquet(Trace("t", tuple("uvwxyz"), labels, said, sizes), tmp_path / "t.parquet")
    found = read_trace(tmp_path / "t.parquet")
    assert found.ids == tuple("uvwxyz")
    assert np.array_equal(found.labels, labels)
    assert np.array_equal(found.payload_bytes, sizes)
    assert list(found.models) == ["a.onnx", "b.onnx"]
    for name, answers in said.items():
        for part in ("predictions", "scores", "probabilities", "latency_s"):
            assert np.array_equal(getattr(found.models[name], part), getattr(answers, part)), part
