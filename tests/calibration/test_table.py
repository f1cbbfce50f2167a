"""The calibration file: exact there and back, and clear about what does not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.calibration import Bound, Calibration, StageVote, TableMember
from coe.cascade import ConfigError

FLOATS = st.floats(-5, 5)


def stage(n_members: int, threshold: float | None, **numbers: object) -> StageVote:
    nothing = (0.0,) * n_members
    given = {"b": (1.0,) * n_members, "a": nothing, "c": nothing, "g": 0.5, "d": (0.25, -0.25, 0.0)}
    grids = ((0.0, 0.1, 1 / 3),) * n_members
    return StageVote(**{**given, "grids": grids, "n_labels": 3, "threshold": threshold, **numbers})


TABLE = Calibration(
    rule="calibrated",
    task="parts",
    labels=("good", "scratched", "bent"),
    fingerprint="0123456789ab",
    tiers=((TableMember("a.onnx", "a" * 64), TableMember("b.onnx")), (TableMember("c.onnx", "c" * 64),)),
    stages=(stage(2, 0.9), stage(3, None)),
    thresholds=(0.9,),
    n=3000,
    date="2026-11-28",
    reference="c.onnx",
    bound=Bound(0.01, 0.1, True, -0.004, 1500, 2400),
)


@given(st.lists(FLOATS, min_size=3, max_size=3), st.floats(0, 1), st.lists(FLOATS, min_size=2, max_size=20))
def test_a_table_is_the_same_after_json_to_the_last_bit(numbers, threshold, grid):
    b = tuple(numbers)
    own = stage(3, None, b=b, d=b, g=numbers[0], grids=(tuple(sorted(grid)), (), ()))
    table = replace(TABLE, stages=(stage(2, threshold, a=b[:2]), own))
    assert Calibration.from_dict(json.loads(json.dumps(table.to_dict()))) == table


def test_a_table_is_the_same_after_a_file(tmp_path: Path):
    TABLE.write(tmp_path / "calibration.json")
    assert Calibration.read(tmp_path / "calibration.json") == TABLE
    plain = replace(TABLE, rule="agreement", stages=(), thresholds=("2/2",), bound=None)
    plain.write(tmp_path / "plain.json")
    assert Calibration.read(tmp_path / "plain.json") == plain


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version: expected 1, got 2"),
        ({"rule": "best"}, 'rule: expected calibrated or agreement or confidence or single, got "best"'),
        ({"tiers": []}, "tiers: expected a list of tiers, got"),
        ({"tiers": [{"members": [{"name": "a", "sha256": None}]}]}, "stage: expected this field, got none"),
        ({"task": {"name": "t", "labels": ["x", "y"], "fingerprint": None}}, "members and 2 labels, got 2 and 3"),
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_the_fix(tmp_path: Path, change, message):
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(TABLE.to_dict() | change))
    with pytest.raises(ConfigError) as error:
        Calibration.read(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "make it again" in str(error.value)


def test_a_wrong_number_is_named_by_its_tier(tmp_path: Path):
    content = json.loads(json.dumps(TABLE.to_dict()))
    content["tiers"][0]["stage"]["b"] = [1e6, 0]
    with pytest.raises(ConfigError, match=r"tiers\[0\].stage.b: expected numbers from -100 to 100, got 1000000"):
        Calibration.from_dict(content)


def test_a_file_that_is_none_is_an_error(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be read"):
        Calibration.read(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("labels: [a]")
    with pytest.raises(ConfigError, match="expected JSON"):
        Calibration.read(tmp_path / "text.json")


def test_the_cascade_that_was_calibrated_passes():
    TABLE.check(TABLE.labels, TABLE.tiers, "0123456789ab")
    TABLE.check(TABLE.labels, [[TableMember("a.onnx"), TableMember("b.onnx", "b" * 64)], []])


@pytest.mark.parametrize(
    ("labels", "tiers", "message"),
    [
        (("good", "bent", "scratched"), TABLE.tiers, "task.labels: expected the order good, scratched, bent, got good"),
        (("good", "scratched", "lost"), TABLE.tiers, 'task.labels: expected the labels .* got "lost"'),
        (TABLE.labels, TABLE.tiers[:1], "tiers: expected 2 as calibrated, got 1"),
        (TABLE.labels, (TABLE.tiers[0][::-1], TABLE.tiers[1]), r"tiers\[0\].members: expected the order a.onnx"),
        (TABLE.labels, (TABLE.tiers[0], (TableMember("d.onnx"),)), r'tiers\[1\].members: expected .* got "d.onnx"'),
        (TABLE.labels, (TABLE.tiers[0], (TableMember("c.onnx", "0" * 64),)), "expected the file with sha256 ccc"),
    ],
)  # fmt: skip
def test_another_cascade_is_an_error_that_says_what_differs(labels, tiers, message):
    with pytest.raises(ConfigError, match=message):
        TABLE.check(labels, tiers)


def test_another_input_is_an_error():
    with pytest.raises(ConfigError, match=r"task\.fingerprint: expected 0123456789ab, got ffffffffffff"):
        TABLE.check(TABLE.labels, TABLE.tiers, "f" * 12)
