"""The harvest: what the cloud answered is kept, within its budget, whatever happens, and the zoo reads it."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from coe.cascade import ConfigError, Decision
from edge.field.config import HarvestConfig
from edge.field.harvest import Harvest
from edge.sinks import Outcome
from edge.sources import Example
from recipes.harvest import as_images, read_harvest

LABELS = ("zero", "one", "two")


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), number, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def answered(name: str, label: int = 1, **changes: object) -> Outcome:
    degraded = changes.pop("degraded", None)
    decision = Decision(name, label, 2, 1.0, 0.75, 3, 3, (2 / 3, 1.0), (0.0, 0.0), degraded)
    return Outcome(name, decision, 0.1, **({"deferred": True, "at": 17.0} | changes))


def kept(folder) -> list[str]:
    return [example.id for example in read_harvest(folder)]


def test_what_a_larger_tier_answered_is_kept_and_the_zoo_reads_it(tmp_path):
    harvest = Harvest(HarvestConfig(tmp_path), LABELS)
    array = np.arange(3, dtype=np.float32)
    harvest.on_outcome(Example("a", png(7)), answered("a"))
    harvest.on_outcome(Example("b", array), answered("b", 2))
    first, second = read_harvest(tmp_path)
    assert (first.id, first.value, first.label, first.name, first.score) == ("a", png(7), 1, "one", 0.75)
    assert (second.label, second.value.tolist()) == (2, [0, 1, 2])
    record = json.loads((tmp_path / "labels.jsonl").read_text().splitlines()[0])
    assert (record["tier"], record["device_votes"], record["at"]) == (2, [0.666667], 17.0)


@pytest.mark.parametrize(
    "outcome",
    [
        answered("a", deferred=False),
        answered("a", degraded="timeout: late"),
        Outcome("a", None, 0.1, error="timeout: late", deferred=True),
    ],
)
def test_what_no_larger_tier_answered_is_not_kept(tmp_path, outcome):
    harvest = Harvest(HarvestConfig(tmp_path), LABELS)
    harvest.on_outcome(Example("a", png(7)), outcome)
    assert harvest.report()["examples"] == 0
    assert list((tmp_path / "examples").iterdir()) == []


def test_a_late_answer_is_kept_as_well(tmp_path):
    harvest = Harvest(HarvestConfig(tmp_path), LABELS)
    harvest.on_outcome(Example("a", png(7)), answered("a", deferred=False, corrects="key"))
    assert kept(tmp_path) == ["a"]


@pytest.mark.parametrize(("drop_oldest", "ids"), [(False, ["x0", "x1", "x2"]), (True, ["x7", "x8", "x9"])])
def test_a_full_harvest_stops_or_makes_room_and_counts_what_it_dropped(tmp_path, drop_oldest, ids):
    harvest = Harvest(HarvestConfig(tmp_path, max_count=3, when_full="drop-oldest" if drop_oldest else "stop"), LABELS)
    for number in range(10):
        harvest.on_outcome(Example(f"x{number}", png(number)), answered(f"x{number}"))
    assert kept(tmp_path) == ids
    assert harvest.report()["dropped"] == 7


def test_the_index_of_a_harvest_whose_oldest_make_room_does_not_grow_for_good(tmp_path, monkeypatch):
    monkeypatch.setattr("edge.field.harvest.MAX_STALE_LINES", 5)
    harvest = Harvest(HarvestConfig(tmp_path, max_count=3, when_full="drop-oldest"), LABELS)
    for number in (*range(20), *range(40)):  # some come again after they made room
        harvest.on_outcome(Example(f"x{number}", png(number)), answered(f"x{number}"))
        assert (tmp_path / "labels.jsonl").read_bytes().count(b"\n") <= 2 * 3 + 5
    assert kept(tmp_path) == ["x37", "x38", "x39"]
    again = Harvest(HarvestConfig(tmp_path, max_count=3, when_full="drop-oldest"), LABELS)
    for number in range(40, 60):
        again.on_outcome(Example(f"x{number}", png(number)), answered(f"x{number}"))
        assert (tmp_path / "labels.jsonl").read_bytes().count(b"\n") <= 2 * 3 + 5
    assert kept(tmp_path) == ["x57", "x58", "x59"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["examples", "labels.jsonl"]


def test_its_bytes_stay_within_the_budget_over_restarts(tmp_path):
    config = HarvestConfig(tmp_path, max_bytes=3.5 * len(png(0)), when_full="drop-oldest")
    for number in range(10):
        harvest = Harvest(config, LABELS)
        harvest.on_outcome(Example(f"x{number}", png(number)), answered(f"x{number}"))
        assert harvest.report()["bytes"] <= config.max_bytes
    assert kept(tmp_path) == ["x7", "x8", "x9"]


def test_the_same_example_is_kept_once(tmp_path):
    for _ in range(2):
        harvest = Harvest(HarvestConfig(tmp_path), LABELS)
        harvest.on_outcome(Example("a", png(7)), answered("a"))
        harvest.on_outcome(Example("a", png(7)), answered("a"))
    assert kept(tmp_path) == ["a"]


def test_a_torn_line_and_a_file_without_one_are_mended_at_the_next_start(tmp_path):
    harvest = Harvest(HarvestConfig(tmp_path), LABELS)
    harvest.on_outcome(Example("a", png(1)), answered("a"))
    harvest.on_outcome(Example("b", png(2)), answered("b"))
    index = tmp_path / "labels.jsonl"
    index.write_bytes(index.read_bytes()[:-9])
    assert kept(tmp_path) == ["a"]
    again = Harvest(HarvestConfig(tmp_path), LABELS)
    assert again.report()["examples"] == 1
    again.on_outcome(Example("b", png(2)), answered("b"))
    assert kept(tmp_path) == ["a", "b"]


def test_a_disk_that_cannot_be_written_is_told_once_and_stops_nothing(tmp_path):
    events = []
    harvest = Harvest(HarvestConfig(tmp_path / "harvest"), LABELS, events.append)
    (tmp_path / "harvest" / "examples").rename(tmp_path / "elsewhere")
    for number in range(3):
        harvest.on_outcome(Example(f"x{number}", png(number)), answered(f"x{number}"))
    (event,) = events
    assert event.kind == "harvest"
    assert harvest.report()["dropped"] == 3


def test_images_come_at_one_size(tmp_path):
    harvest = Harvest(HarvestConfig(tmp_path), LABELS)
    for number in (10, 20):
        harvest.on_outcome(Example(f"x{number}", png(number)), answered(f"x{number}", 2))
    images, labels = as_images(read_harvest(tmp_path), (8, 8), 1)
    assert images.shape == (2, 8, 8, 1)
    assert (images[:, 0, 0, 0].tolist(), labels.tolist()) == ([10, 20], [2, 2])


def test_the_digits_recipe_trains_on_a_harvest_too(tmp_path):
    from recipes.digits.training import Split, with_harvest

    harvest = Harvest(HarvestConfig(tmp_path), LABELS)
    harvest.on_outcome(Example("a", png(9)), answered("a", 2))
    split = with_harvest(Split(np.zeros((3, 28, 28), np.uint8), np.zeros(3, np.int64)), tmp_path)
    assert split.pixels.shape == (4, 28, 28)
    assert (split.labels.tolist(), split.pixels[3].max()) == ([0, 0, 0, 2], 9)


def test_a_folder_without_a_harvest_is_a_clear_error(tmp_path):
    with pytest.raises(ConfigError, match=r"expected a harvest \(a folder with labels\.jsonl\)"):
        list(read_harvest(tmp_path))
