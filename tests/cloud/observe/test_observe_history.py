"""The last hour in slots, on a clock of the test's own; and the status made of it."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from watching import World, best, decided, medium, request, served

from cloud.observe.status import status, status_json
from cloud.observe.tally import N_SLOTS, History, Tally, errors_of, merged_slots
from coe.cascade import Cascade, InputError, TierOverloaded


class Scene:
    """A tally that is filled by hand, and its history."""

    def __init__(self) -> None:
        self.world, self.tally = World(), Tally()
        self.history = History(self.tally, self.world.view, clock=lambda: self.world.now, wall=lambda: self.world.now)
        self.model = served()
        cascade = Cascade([medium(), best()])
        self.rows = [decided(cascade, 1, row) for row in range(4)]

    def answer(self, n: int, row: int = 0, seconds: float = 0.002) -> None:
        for _ in range(n):
            self.tally.answered(request(), self.model, self.rows[row], seconds)

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds)):
            self.world.now += 1
            self.history.sample()

    def status(self) -> dict:
        return status(self.world.view, self.tally, self.history)


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_each_slot_has_what_happened_in_it(scene):
    scene.answer(5)
    scene.wait(10)
    scene.answer(3, row=2)
    scene.wait(10)
    first, second, under_way = scene.history.slots()
    assert (first.requests, second.requests, under_way.requests) == (5, 3, 0)
    assert (first.exits["digits"], second.exits["digits"]) == ([5, 0], [0, 3])
    assert first.seconds == second.seconds == 10


def test_the_slot_under_way_counts_too(scene):
    scene.answer(5)
    scene.world.now += 4
    assert [(slot.requests, slot.seconds) for slot in scene.history.slots()] == [(5, 4)]


def test_the_most_rows_waiting_are_remembered_though_they_are_gone_when_the_slot_ends(scene):
    scene.world.waiting = 40
    scene.wait(3)
    scene.world.waiting = 0
    scene.wait(7)
    assert [slot.queued for slot in scene.history.slots()] == [40, 0]


def test_latency_of_a_slot_is_of_its_own_requests(scene):
    scene.answer(100, seconds=0.5)
    scene.wait(10)
    scene.answer(100, seconds=0.001)
    scene.wait(10)
    slow, fast, _ = scene.history.slots()
    assert slow.p50_s == pytest.approx(0.5, rel=0.13)
    assert fast.p99_s == pytest.approx(0.001, rel=0.13)


def test_slots_in_a_row_are_one_long_slot(scene):
    for seconds in (0.001, 0.1):
        scene.answer(50, seconds=seconds)
        scene.tally.failed(request(), InputError("x"), 0.1)
        scene.wait(10)
    whole = merged_slots(scene.history.slots())
    assert (whole.requests, whole.seconds, whole.errors["INVALID_ARGUMENT"]) == (100, 20, 2)
    assert whole.p50_s == pytest.approx(0.001, rel=0.13)
    assert whole.p99_s == pytest.approx(0.1, rel=0.13)
    assert errors_of(scene.history.slots()) == whole.errors


def test_an_hour_is_kept_and_no_more_and_memory_does_not_grow(scene):
    def an_hour() -> int:
        for _ in range(N_SLOTS):
            scene.answer(2)
            scene.tally.failed(request(), InputError("x"), 0.01)
            scene.world.now += 10
            scene.history.sample()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        first, second = an_hour(), an_hour()
    finally:
        tracemalloc.stop()
    assert len(scene.history.slots()) == N_SLOTS + 1
    assert first < 1_000_000
    assert second < 1.1 * first


def test_a_model_loaded_anew_under_another_name_disturbs_nothing(scene):
    scene.answer(50)
    scene.wait(10)
    scene.world.facts = scene.world.facts[1:]
    scene.wait(10)
    assert all(slot.requests >= 0 and min(slot.times) >= 0 for slot in scene.history.slots())
    assert [model["name"] for model in scene.status()["models"]] == ["digits-best"]


def test_the_status_says_in_words_what_matters_most(scene):
    scene.answer(900, seconds=0.002)
    scene.answer(100, row=2, seconds=0.02)
    scene.wait(10)
    told = scene.status()
    assert told["summary"].startswith("Answering 100 requests a second: half of them within 1.9 ms")
    assert "90% of the rows for digits go no further than its first tier." in told["summary"]
    assert told["notices"] == []
    assert told["now"]["requests_per_s"] == 100


def test_failures_of_the_server_are_a_notice_with_their_meaning(scene):
    scene.answer(80)
    for _ in range(20):
        scene.tally.failed(request(), TierOverloaded("medium", "x"), 0.01)
    scene.wait(10)
    (notice,) = scene.status()["notices"]
    assert notice["level"] == "bad"
    assert "20% of requests fail" in notice["text"]
    assert "RESOURCE_EXHAUSTED: a limit or a quota" in notice["text"]


def test_a_callers_own_mistakes_are_counted_and_are_no_alarm(scene):
    scene.answer(5)
    for _ in range(50):
        scene.tally.failed(request(), InputError("x"), 0.01)
    scene.wait(10)
    told = scene.status()
    assert told["notices"] == []
    assert told["errors"] == [
        {
            "code": "INVALID_ARGUMENT",
            "meaning": "the message contradicts itself, or an example in it cannot be read",
            "now": 50,
            "hour": 50,
            "total": 50,
        }
    ]


def test_a_bug_is_told_for_an_hour(scene):
    scene.answer(5)
    scene.tally.failed(request(), ZeroDivisionError(), 0.01)
    scene.wait(600)
    assert "1 request met a bug in the last hour" in scene.status()["notices"][0]["text"]
    scene.wait(3600)
    assert scene.status()["notices"] == []
    assert scene.status()["errors"][0]["total"] == 1


def test_a_server_that_is_not_ready_says_so_first(scene):
    scene.world.ready = False
    told = scene.status()
    assert told["state"] == "not ready"
    assert told["summary"].startswith("Not taking requests")
    assert told["notices"][0]["level"] == "bad"


def test_models_are_told_with_tiers_members_and_checksums(scene):
    scene.answer(9)
    scene.answer(1, row=3)
    digits = scene.status()["models"][0]
    assert [(tier["name"], tier["rows"], tier["exits"]) for tier in digits["tiers"]] == [
        ("medium", 10, 9),
        ("best", 1, 1),
    ]
    assert digits["tiers"][1]["members"][0]["sha256"] == "d" * 64
    assert digits["tiers"][0]["agreement"] == pytest.approx((9 + 1 / 3) / 10, abs=1e-3)


def test_history_is_lists_of_one_length(scene):
    scene.answer(3)
    scene.wait(35)
    history = scene.status()["history"]
    lengths = {len(values) for key, values in history.items() if key != "exits"}
    assert lengths | {len(values) for values in history["exits"].values()} == {4}


def test_the_status_is_plain_json_even_where_nothing_happened_yet(scene):
    body, headers = status_json(scene.world.view, scene.tally, scene.history)("")
    assert json.loads(body)["now"]["p50_s"] is None
    assert headers["Cache-Control"] == "no-store"


def test_many_who_look_on_cost_one_status_a_second(scene):
    page = status_json(scene.world.view, scene.tally, scene.history)
    first, _ = page()
    scene.answer(5)
    assert page()[0] is first
    scene.world.now += 1
    assert json.loads(page()[0])["now"]["requests_per_s"] > 0
