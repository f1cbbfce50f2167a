"""`same_scene:`: a picture like one that was sent is not sent, and its answer is marked."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from fakes import BOUND_S, UNANIMOUS, ListSink

from coe.cascade import Always, CallCost, Cascade, LocalTier, TierUnavailable, Vote
from coe.models.input_spec import InputSpec
from coe.models.inputs import InputDecoder
from edge.agent import Agent
from edge.field.config import SceneConfig
from edge.field.scenes import SceneFilter, cells_of
from edge.sinks import Outcome, as_record
from edge.sources import Example

DECODER = InputDecoder(InputSpec("image", (32, 32, 1)))
RNG = np.random.default_rng(1)
DOOR, YARD = RNG.integers(0, 200, (2, 32, 32, 1), dtype=np.uint8)
LABELS = ("zero", "one", "two")


def noisy(picture: np.ndarray) -> np.ndarray:
    return (picture + RNG.integers(0, 3, picture.shape)).astype(np.uint8)


def with_a_spot(picture: np.ndarray) -> np.ndarray:
    changed = picture.copy()
    changed[4:8, 4:8] = 255
    return changed


class Member:
    n_labels = 3

    def __init__(self, label: int) -> None:
        self.name, self.label = f"says-{label}", label

    def prepare(self, x):
        return x

    def predict(self, x):
        return np.eye(3, dtype=np.float32)[[self.label] * len(x)]

    def close(self) -> None:
        pass


class Cloud:
    n_tiers, waits, name, rule = 1, True, "cloud", Always()

    def __init__(self, answer=lambda: None) -> None:
        self.asked: list[str] = []
        self.answer = answer

    def vote(self, batch, rule) -> Vote:
        self.asked += batch.ids
        self.answer()
        ones, score = np.ones(len(batch), dtype=np.int64), np.ones(len(batch), dtype=np.float32)
        return Vote(ones * 2, ones, ones, 1, score, call=CallCost(1, bytes_sent=100, bytes_received=50))

    def complete(self, batch, vote: Vote) -> Vote:
        return vote

    def close(self) -> None:
        pass


class Pictures:
    def __init__(self, pictures: Sequence[np.ndarray]) -> None:
        self.pictures = pictures

    def examples(self, stop: threading.Event) -> Iterator[Example]:
        for number, picture in enumerate(self.pictures):
            yield Example(f"frame-{number}", picture)


class Now:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def decided(
    pictures: Sequence[np.ndarray], cloud: Cloud, *, keep=None, scenes=None, at_once: int = 0, observers=()
) -> list[Outcome]:
    """Outcomes in order, of members that always disagree."""
    scenes, sink = scenes or SceneFilter(SceneConfig()), ListSink()
    cascade = Cascade([LocalTier("device", [Member(0), Member(1)], UNANIMOUS), cloud])
    agent = Agent(
        cascade, DECODER, sink, max_in_flight=at_once, known_answer=scenes.answer, keep=keep, observers=[scenes]
    )
    agent.observers += observers
    agent.run(Pictures(pictures))
    return sorted(sink.outcomes, key=lambda outcome: outcome.id)


def test_the_same_scene_has_the_cloud_s_answer_without_being_sent_and_says_of_which():
    cloud = Cloud()
    first, again, other, back = decided([DOOR, noisy(DOOR), YARD, noisy(DOOR)], cloud)
    assert cloud.asked == ["frame-0", "frame-2"]
    record = as_record(again, LABELS)
    assert (record["label"], record["exit_tier"], record["same_as"]) == (2, 2, "frame-0")
    assert record["degraded"] is None
    assert "call" not in record
    assert as_record(back, LABELS)["same_as"] == "frame-0"
    assert all("same_as" not in as_record(outcome, LABELS) for outcome in (first, other))


def test_a_small_change_is_another_scene():
    """As a mean over the picture it would be lost."""
    cloud = Cloud()
    decided([DOOR, with_a_spot(DOOR)], cloud)
    assert len(cloud.asked) == 2
    assert np.abs(cells_of(DOOR) - cells_of(with_a_spot(DOOR))).mean() < 8


def test_while_the_first_has_no_answer_the_device_s_own_stands_and_says_so():
    class Second(threading.Event):
        def on_outcome(self, example: Example, outcome: Outcome) -> None:
            self.set()

    second = Second()
    cloud = Cloud(lambda: second.wait(BOUND_S))
    first, again = decided([DOOR, noisy(DOOR)], cloud, at_once=4, observers=[second])
    assert cloud.asked == ["frame-0"]
    assert first.decision.exit_tier == 2
    assert again.decision.exit_tier == 1
    assert again.decision.degraded == "duplicate: tier cloud: the same scene as frame-0, which has no answer yet"
    assert again.deferred


def gone() -> None:
    raise TierUnavailable("cloud", "gone")


@pytest.mark.parametrize(("keep", "n_asked"), [(None, 2), (lambda example, outcome: "key-1", 1)])
def test_a_scene_without_an_answer_is_sent_again_unless_it_is_in_the_spool(keep, n_asked):
    cloud = Cloud(gone)
    outcomes = decided([DOOR, noisy(DOOR)], cloud, keep=keep)
    assert len(cloud.asked) == n_asked
    assert [outcome.reason for outcome in outcomes] == ["unavailable", "unavailable" if n_asked == 2 else "duplicate"]


def test_an_old_scene_is_sent_again_and_only_the_latest_are_remembered():
    now, cloud = Now(), Cloud()
    scenes = SceneFilter(SceneConfig(remember=1, max_age_s=60), now)
    decided([DOOR, DOOR, YARD, DOOR], cloud, scenes=scenes)
    assert cloud.asked == ["frame-0", "frame-2", "frame-3"]
    now.now = 61.0
    decided([DOOR], cloud, scenes=scenes)
    assert len(cloud.asked) == 4


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 300, 3), (480, 640, 3), (16, 16, 1), (2000, 17, 3)])
def test_a_thumbnail_of_any_size_has_means_within_the_picture_s(shape):
    picture = RNG.integers(0, 256, shape, dtype=np.uint8)
    cells = cells_of(picture)
    assert cells.shape == (min(shape[0], 16), min(shape[1], 16))
    assert picture.min() <= cells.min()
    assert cells.max() <= picture.max()
    assert np.allclose(cells_of(np.full(shape, 77, dtype=np.uint8)), 77)
