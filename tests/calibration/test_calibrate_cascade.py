"""`cascade.calibrate(x, y)`: the running cascade decides as the table says, and the table fits it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from members_of import recorded

import coe
from coe.calibration import Calibration
from coe.cascade import ConfigError, InputError

NAMES = ("n", "e", "s", "w")


def callables(n: int, accuracies=(0.7, 0.75, 0.8), seed: int = 0):
    """Three members that look up what was recorded by the example's number, the numbers, and the label names."""
    labels, scores, truth = recorded(n, 4, accuracies, seed)

    def member(place: int):
        def outputs(x: np.ndarray) -> np.ndarray:
            rows = x[:, 0].astype(int)
            sure = 0.3 + 0.7 * scores[place, rows]
            table = np.repeat(((1 - sure) / 3)[:, None], 4, axis=1)
            table[np.arange(len(rows)), labels[place, rows]] = sure
            return table.astype(np.float32)

        outputs.__name__ = "abc"[place]
        return outputs

    return [member(place) for place in range(3)], np.arange(n, dtype=np.float32)[:, None], [NAMES[k] for k in truth]


COSTS = [[1.0], [2.0], [20.0]]


def opened(members) -> coe.Cascade:
    tiers = [coe.Ensemble([members[0]], confidence=0.9), coe.Ensemble([members[1]], confidence=0.9), members[2]]
    return coe.Cascade(tiers, labels=NAMES, input=coe.Tensor(1))


def test_a_calibrated_cascade_is_better_for_less_and_says_what_it_can_promise():
    members, x, y = callables(2400)
    with opened(members) as cascade:
        table = cascade.calibrate(x[:1200], y[:1200], costs=COSTS)
        assert table.rule == "calibrated"
        assert (table.n, table.reference) == (1200, "c")
        assert [[member.name for member in tier] for tier in table.tiers] == [["a"], ["b"], ["c"]]
        assert table.labels == NAMES
        assert table.bound is not None
        assert table.bound.n == 600
        decided = cascade.decide(x[1200:])
        right = np.mean([name == label for name, label in zip(decided.names, y[1200:], strict=True)])
        alone = np.argmax(members[2](x[1200:]), axis=1)
        assert right > np.mean([NAMES[k] == label for k, label in zip(alone, y[1200:], strict=True)])
        assert np.dot(decided.exit_shares(), [1, 3, 23]) < 20
    assert Calibration.from_dict(json.loads(json.dumps(table.to_dict()))) == table


def test_another_cascade_of_the_same_members_takes_the_table(tmp_path):
    members, x, y = callables(600)
    with opened(members) as cascade:
        cascade.calibrate(x, y, costs=COSTS).write(tmp_path / "calibration.json")
        decided = cascade.decide(x)
    tiers = [[member] for member in members]
    table = tmp_path / "calibration.json"
    with coe.Cascade(tiers, labels=NAMES, input=coe.Tensor(1), calibration=table) as other:
        again = other.decide(x)
    assert again.names == decided.names
    assert again.exit_tier.tolist() == decided.exit_tier.tolist()


def test_the_cascade_decides_as_the_table_says_of_what_members_said():
    members, x, y = callables(600)
    with opened(members) as cascade:
        table = cascade.calibrate(x, y, costs=COSTS)
        decided = cascade.decide(x)
    outputs = [member(x) for member in members]
    labels = np.array([output.argmax(axis=1) for output in outputs])
    scores = np.array([output.max(axis=1) for output in outputs]).astype(np.float64)
    left = np.zeros(600, dtype=bool)
    for place, stage in enumerate(table.stages):
        found, p = stage.posterior(labels[: place + 1], scores[: place + 1])
        leaves = ~left & stage.exits(p)
        assert decided.labels[leaves].tolist() == found[leaves].tolist()
        assert set(decided.exit_tier[leaves].tolist()) <= {place + 1}
        left |= leaves
    assert left.all()


def test_plain_tiers_of_several_members_are_weighed_together():
    members, x, y = callables(600, (0.6, 0.62, 0.9))
    with coe.Cascade([members[:2], members[2]], labels=NAMES, input=coe.Tensor(1)) as cascade:
        places = [NAMES.index(label) for label in y]
        table = cascade.calibrate(x, places, costs=[[1, 1], [20]], certified=True, epsilon=0.1)
        assert table.bound is not None
        assert table.bound.holds


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"costs": [[1.0]]}, r"costs: expected \[1, 1, 1\] numbers, one a member, got \[1\]"),
        ({"max_cost": 0.001}, r"max_cost: expected .* at least for these tiers, got 0.001"),
        ({"certified": True, "epsilon": 1e-4, "delta": 1e-9}, "certified: no threshold of these tiers is certified"),
    ],
)
def test_what_cannot_be_had_is_an_error(change, message):
    members, x, y = callables(600)
    with opened(members) as cascade, pytest.raises(ConfigError, match=message):
        cascade.calibrate(x, y, **{"costs": COSTS, **change})


def test_labels_that_are_none_or_few_are_an_error_or_a_warning():
    members, x, y = callables(60)
    with opened(members) as cascade:
        with pytest.raises(ConfigError, match="y: expected labels of the cascade, got 'up'"):
            cascade.calibrate(x, ["up"] * 60)
        with pytest.raises(InputError, match="y: expected 60, one an example, got 3"):
            cascade.calibrate(x, y[:3])
        with pytest.raises(ConfigError, match="y: expected 20 labels at least, got 8"):
            cascade.calibrate(x[:8], y[:8])
        with pytest.warns(UserWarning, match="60 labels are few"):
            cascade.calibrate(x, y, costs=COSTS, max_cost=2)
