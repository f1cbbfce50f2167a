"""The Pareto study: what is swept, that nothing is chosen on what is reported, and every baseline by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulator import Program
from traces_of import trace_of, traces

from coe.calibration.bound import difference_interval
from coe.cascade import Accounting, Agreement, Ideal
from sim.output import Progress
from sim.studies import baselines, pareto
from sim.studies.candidates import Candidate, Choices, cascade, cost_interval, drop_in, measure, pareto_set, shapes
from sim.studies.plan import table_of
from sim.studies.replay import replay_trace
from sim.sweep import EnsembleVotes, right_rows
from sim.traces import Costs, TierSpec, Trace, calibrated_tiers, exact, parse_tiers, to_cascade

COST = {"a": 1.0, "b": 2.0, "c": 3.0, "best": 50.0}
COSTS = Costs("flops", COST)
METHODS = {
    "single models", "ensembles alone", "cascade of ensembles", "confidence, ensembles", "random deferral",
    "ideal rule", "confidence cascade", "IDK, max probability", "IDK, entropy", "committee cascade",
    "calibrated vote",
}  # fmt: skip


def study_of(trace: Trace, **changes: object) -> pareto.Study:
    with open("/dev/null", "w") as nowhere:
        return pareto.run(trace, replace(Choices([COSTS]), **changes), Progress(1, stream=nowhere))


@pytest.fixture(scope="module")
def study(synthetic: Trace) -> pareto.Study:
    return study_of(synthetic)


def test_every_cascade_has_different_models_in_tiers_no_cheaper_than_before():
    found, is_complete = shapes(COST, 10_000, np.random.default_rng(0))
    assert is_complete
    assert len(found) == len(set(found))
    for shape in found:
        members = [name for own, _ in shape for name in own]
        assert len(members) == len(set(members))
        dearest = [max(COST[name] for name in own) for own, _ in shape]
        assert dearest == sorted(dearest)
        assert all(2 <= needed <= len(own) for own, needed in shape[:-1])
        assert shape[-1][1] == 0
    assert ((("a", "b"), 2), (("c", "best"), 0)) in found
    assert ((("a", "b", "c"), 2), (("best",), 0)) in found
    assert len(found) == 3 + 2 + 2 + 2  # after a,b; a,c; b,c; and a,b,c at two and at three votes


def test_of_too_many_cascades_some_are_drawn_the_same_for_the_same_seed():
    cost = {f"m{place}": float(place) for place in range(9)}
    found, is_complete = shapes(cost, 300, np.random.default_rng(1))
    assert not is_complete
    assert len(found) == len(set(found)) == 300
    assert found == shapes(cost, 300, np.random.default_rng(1))[0]
    assert any(len(shape) == 3 for shape in found)
    assert all(len(own) > 1 for shape in found for own, _ in shape[:-1])


def test_the_front_is_what_no_other_beats_in_both():
    costs, accuracy = np.array([1.0, 2, 2, 3, 4]), np.array([0.5, 0.4, 0.7, 0.7, 0.9])
    assert pareto_set(costs, accuracy) == [0, 2, 4]


def test_the_drop_in_is_the_cheapest_that_is_good_enough_or_else_the_best():
    costs, accuracy = np.array([1.0, 2, 3]), np.array([0.5, 0.8, 0.9])
    assert drop_in(costs, accuracy, accuracy >= 0.8) == 1
    assert drop_in(costs, accuracy, accuracy >= 0.95) == 2


def test_a_trace_with_probabilities_gets_every_method(study: pareto.Study):
    assert {method.name for method in study.methods} == METHODS
    assert study.left_out == []


def test_what_the_report_split_says_changes_no_choice(synthetic: Trace, study: pareto.Study):
    known = set(study.calibration.ids)
    labels = synthetic.labels.copy()
    scores_lie = np.array([example not in known for example in synthetic.ids])
    models = {}
    rng = np.random.default_rng(1)
    for name, said in synthetic.models.items():
        predictions = np.where(scores_lie, rng.permutation(said.predictions), said.predictions).astype(np.int32)
        models[name] = replace(said, predictions=predictions)
    other = study_of(replace(synthetic, models=models, labels=labels))
    assert other.calibration.ids == study.calibration.ids
    assert other.best_single == study.best_single
    for mine, theirs in zip(study.methods, other.methods, strict=True):
        assert [one.as_text() for one in mine.chosen.candidates] == [one.as_text() for one in theirs.chosen.candidates]
        assert mine.pick == theirs.pick
    assert other.method("cascade of ensembles").chosen.accuracy.max() < 0.6  # it did read the other half


def test_the_splits_share_no_example(study: pareto.Study, synthetic: Trace):
    assert not set(study.calibration.ids) & set(study.report.ids)
    assert len(study.calibration) + len(study.report) == len(synthetic)


def test_the_chosen_cascade_is_what_the_cascade_itself_says(study: pareto.Study):
    ours = study.method("cascade of ensembles")
    for row, candidate in enumerate(ours.chosen.candidates):
        specs = [TierSpec(own, Agreement(max(needed, 1) * one_of(own))) for own, needed in candidate.shape]
        right = to_cascade(specs, study.report).decide(study.report.batch()).labels == study.report.labels
        assert ours.chosen.accuracy[row] == pytest.approx(right.mean())


def specs_of(candidate: Candidate, study: pareto.Study) -> Sequence[TierSpec]:
    """As it is printed; a calibrated vote's numbers are in its table."""
    if candidate.system is None:
        return parse_tiers(candidate.as_text().split(" | "), study.report)[0]
    n_labels = candidate.system.stages[0].n_labels
    return calibrated_tiers(table_of(candidate.system, study.trace, n_labels, 1, study.best_single), study.report)


@settings(max_examples=12)
@given(st.data())
def test_every_system_printed_replays_to_the_same_exits_and_errors(data: st.DataObject):
    trace = data.draw(traces().filter(lambda one: len(one) > 3))
    study = study_of(trace, costs=[Costs("flops", {name: 1.0 + at for at, name in enumerate(trace.models)})], most=60)
    for method in study.methods:
        for row, candidate in enumerate(method.chosen.candidates):
            replayed = replay_trace(study.report, specs_of(candidate, study))
            n_tiers = len(candidate.charged)
            assert replayed.wrong_exits == method.chosen.outcomes.wrong[row, :n_tiers].tolist(), candidate.as_text()
            exits = [round(share * len(study.report)) for share in replayed.exits]
            assert exits == method.chosen.outcomes.exits[row, :n_tiers].tolist(), candidate.as_text()


@given(st.floats(-1e6, 1e6, width=32))
def test_a_threshold_is_printed_so_that_it_is_read_as_the_same_score(value: float):
    assert np.float32(float(exact(value))) == np.float32(value)
    assert "e" not in exact(value)


@given(st.lists(st.integers(0, 300), min_size=1, max_size=4).filter(sum), st.just(0.0) | st.floats(0.001, 9))
def test_the_limits_of_a_cost_hold_it_and_are_never_none(exits: list[int], step: float):
    charges = np.cumsum([1.0, *[step] * (len(exits) - 1)])
    low, high = cost_interval(charges, exits)
    mean = float(np.dot(charges, exits)) / sum(exits)
    assert charges[0] - 1e-9 <= low <= mean + 1e-9
    assert mean - 1e-9 <= high <= charges[-1] + 1e-9
    assert (high > low) == (charges[-1] > charges[0])


def test_a_drop_in_is_shown_on_calibration_to_be_as_accurate(study: pareto.Study):
    best = study.calibration.right(study.best_single)
    for method in study.methods:
        right = right_rows(method.chosen.candidates[method.pick].make(EnsembleVotes(study.calibration)), len(best))
        gains, losses = int((right & ~best).sum()), int((best & ~right).sum())
        shown = difference_interval(gains, losses, len(best), 0.9)[0] >= 0
        assert method.is_drop_in == shown
        if shown:
            assert gains > losses


def one_of(members: tuple[str, ...]):
    from fractions import Fraction

    return Fraction(1, len(members))


def test_the_ideal_line_is_the_cascade_with_the_ideal_rule(study: pareto.Study):
    truth = dict(zip(study.report.ids, study.report.labels.tolist(), strict=True))
    line = study.method("ideal rule").chosen
    for row, candidate in enumerate(line.candidates):
        specs = [TierSpec(own, Ideal(truth)) for own in candidate.charged]
        right = to_cascade(specs, study.report).decide(study.report.batch()).labels == study.report.labels
        assert line.accuracy[row] == pytest.approx(right.mean())


def test_random_deferral_keeps_the_rate_and_loses_accuracy(study: pareto.Study):
    ours, random = study.method("cascade of ensembles").chosen, study.method("random deferral").chosen
    assert len(random.candidates) == len(ours.candidates)
    assert random.accuracy.max() < ours.accuracy.max()


THREE = Costs("flops", {"a": 1.0, "b": 1.0, "best": 50.0})


def by_hand(disagree: bool) -> Trace:
    """Two cheap models, right on every example of label 0; of label 1 both are, or neither and each says another."""
    labels = [0, 1] * 40
    said = {"a": [3 if label and disagree else label for label in labels], "best": labels}
    said["b"] = [2 if label and disagree else label for label in labels]
    return trace_of(labels, said, {})


def drop_in_lines(study: pareto.Study) -> dict[str, dict[str, str]]:
    part = pareto.as_part(study)
    table = part.tables[0]
    return {line[0].removesuffix(" *"): dict(zip(table.header, line, strict=True)) for line in table.lines}


def test_as_accurate_as_the_best_model_and_dearer_is_lost():
    dear = Costs("flops", {"a": 40.0, "b": 40.0, "best": 50.0})
    study = study_of(by_hand(disagree=True), costs=[dear])
    said = pareto.as_part(study).verdict[0]
    assert "loses against best: 100.00% against 100.00%" in said
    assert "at 2.10x its cost (reach-serial" in said
    assert "; 0.90x by exit, 1.30x by reach)" in said
    cheap = study_of(by_hand(disagree=True), costs=[THREE])
    assert "saves against best" in pareto.as_part(cheap).verdict[0]


def test_what_is_sent_is_what_the_first_tier_does_not_answer():
    study = study_of(by_hand(disagree=True), costs=[THREE])
    line = drop_in_lines(study)["cascade of ensembles"]
    assert (line["exits"], line["sent"]) == ("50% / 50%", "50% (34% to 66%)")
    told = pareto.as_part(study).content["methods"]["cascade of ensembles"]
    assert told["points"][told["drop_in"]]["sent"] == pytest.approx(0.5)
    assert drop_in_lines(study)["ensembles alone"]["sent"] == "-"
    assert drop_in_lines(study)["best single: best"]["sent"] == "100%"


def test_a_tier_that_nothing_reaches_has_its_place_among_the_exits():
    line = drop_in_lines(study_of(by_hand(disagree=False), costs=[THREE]))["cascade of ensembles"]
    assert (line["exits"], line["sent"]) == ("100% / 0%", "0% (0% to 9%)")


def test_costs_are_the_accountings_of_the_exits():
    trace = trace_of([0, 0, 0, 0], {"a": [0, 0, 1, 0], "b": [0, 1, 1, 1], "c": [0, 0, 0, 0]}, {})
    own = cascade(((("a", "b"), 2), (("c",), 0)))
    found = measure([own], EnsembleVotes(trace), [Costs("flops", {"a": 1.0, "b": 2.0, "c": 10.0})])
    assert found.outcomes.exits.tolist() == [[2, 2]]
    assert found.outcomes.wrong.tolist() == [[1, 0]]
    assert found.costs["flops", Accounting.EXIT][0] == pytest.approx(6.0)
    assert found.costs["flops", Accounting.REACH][0] == pytest.approx(7.0)
    assert found.costs["flops", Accounting.REACH_SERIAL][0] == pytest.approx(8.0)


def test_a_committee_pays_for_its_new_member_alone_and_pools_all_before_it(synthetic: Trace):
    found = [one for one in baselines.committees(COST) if one.charged == (("a",), ("b",), ("best",))]
    tiers = found[0].make(EnsembleVotes(synthetic))
    assert [tier.members for tier in tiers] == [("a",), ("a", "b"), ("a", "b", "best")]
    mean = np.mean([synthetic.models[name].probabilities.astype(float) for name in ("a", "b", "best")], axis=0)
    measured = measure(found[:1], EnsembleVotes(synthetic), [COSTS])
    assert measured.outcomes.exits.sum() == len(synthetic)
    pooled = EnsembleVotes(synthetic).scored(("a", "b", "best"), pools=True)[0]
    assert pooled.mean() == pytest.approx((mean.argmax(axis=1) == synthetic.labels).mean(), abs=0.01)


def test_ladders_rise_in_cost():
    assert set(baselines.model_sequences({"b": 2.0, "a": 1.0, "c": 3.0})) == {
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
        ("a", "b", "c"),
    }


def test_time_is_charged_side_by_side_and_money_for_everybody():
    assert Choices([Costs("latency_s", COST)]).charged_by is Accounting.REACH
    assert Choices([Costs("usd_per_million", COST)]).charged_by is Accounting.REACH_SERIAL
    assert Choices([COSTS], Accounting.EXIT).charged_by is Accounting.EXIT


def test_what_a_trace_lacks_is_said(synthetic: Trace):
    models = {name: replace(said, probabilities=None, scores=None) for name, said in synthetic.models.items()}
    study = study_of(replace(synthetic, models=models))
    assert {method.name for method in study.methods} == METHODS - {
        "confidence, ensembles", "confidence cascade", "IDK, max probability", "IDK, entropy", "committee cascade"
    }  # fmt: skip
    assert "no scores" in study.left_out[0]


def test_the_command_prints_writes_and_gives_json(sim: Program, trace_path: Path, tmp_path: Path):
    out, _ = sim("pareto", trace_path, "--json", "--out", tmp_path / "out", "--seed", 3)
    told = json.loads(out)
    assert told["methods"].keys() == METHODS
    for method in told["methods"].values():
        for point in method["points"]:
            assert sum(point["exit"]) == pytest.approx(1)
            assert len(point["exit"]) == len(point["wrong_exit"]) == len(point["system"].split(" | "))
            assert point["costs"]["latency_s"].keys() == {"exit", "reach", "reach-serial"}
    assert told["n_calibration"] + told["n_report"] == 600
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {f"synthetic-pareto-{name}.png" for name in ("methods", "ensembles", "set")} <= names
    assert {"synthetic-pareto-points.csv", "synthetic-pareto-drop-in-latency_s.csv", "report.html"} <= names
    assert json.loads((tmp_path / "out" / "synthetic-pareto.json").read_text()) == told


def test_without_costs_the_error_says_how_to_give_them(sim: Program, plain_path: Path):
    _, err = sim("pareto", plain_path, code=2)
    assert "--costs: expected costs of the models" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--by", "flops"], '--by: expected one of latency_s, got "flops"'),
        (["--calibration", "0.0001"], "leaves one split empty"),
        (["--costs", "imagenet"], "flops.a: expected a number, got nothing"),
    ],
)
def test_choices_that_cannot_be_are_told(sim: Program, trace_path: Path, arguments: list[str], words: str):
    _, err = sim("pareto", trace_path, *arguments, code=2)
    assert words in err


def test_the_entropy_of_a_model_is_that_of_its_output(synthetic: Trace):
    p = synthetic.models["a"].probabilities.astype(np.float64)
    assert EnsembleVotes(synthetic).entropies("a") == pytest.approx(-(p * np.log(p)).sum(axis=1))


def test_names_of_points_that_lie_close_share_a_label():
    pytest.importorskip("matplotlib")
    from sim.charts import _gathered, canvas

    with canvas(5.0) as (_, axes):
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 1)
        points = [("b", 51.0, 0.5), ("a", 50.0, 0.5), ("far", 90.0, 0.5), ("above", 50.0, 0.9)]
        assert _gathered(axes, points) == [("a, b", 51.0, 0.5), ("above", 50.0, 0.9), ("far", 90.0, 0.5)]


def test_a_label_that_calibration_never_shows_is_reported_on():
    """With labels and scores alone, how many labels there are is known from the examples."""
    truth = [0, 1] * 20 + [5, 0] * 20
    said = {name: [(label + shift * (row % 7 == shift)) % 6 for row, label in enumerate(truth)]
            for shift, name in enumerate(("a", "b", "best"))}  # fmt: skip
    scores = {name: [0.5 + row % 5 / 10 for row in range(80)] for name in said}
    whole = trace_of(truth, said, scores)
    calibration, report = (whole.take(np.arange(*ends)) for ends in ((0, 40), (40, 80)))
    costs = [Costs("flops", {"a": 1.0, "b": 2.0, "best": 50.0})]
    study = study_of(report, costs=costs, calibration=replace(calibration, ids=tuple(f"c{n}" for n in range(40))))
    assert study.method("calibrated vote").chosen.outcomes.n == 40
