"""The backlog: fresh examples first, its share of the link, and answers that count exactly once."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import BOUND_S, DECODER, UNANIMOUS, Far, Numbers, Seat, until
from spools import Clock, fill, opened, put

from coe.cascade import (
    Cascade,
    ConfigError,
    Decision,
    InputError,
    LocalTier,
    TierOverloaded,
    TierRejected,
    TierTimeout,
    TierUnavailable,
)
from edge.agent import Agent, HeldBackError
from edge.link_budget import OverBudget
from edge.sinks import Outcome, Sinks
from edge.sinks.jsonlines import JsonLinesFile
from edge.sources import Example
from edge.spool import SpoolConfig
from edge.spool import spool as spool_module
from edge.spool.database import SpoolTable
from edge.spool.spool import Sender, SenderHooks, Spool
from edge.spool.store import SpoolStore

Answer = Callable[[Example], Decision]


def answer(example: Example, degraded: str | None = None) -> Decision:
    return Decision(example.id, 2, 2, 1.0, 0.9, 3, 3, (2 / 3, 1.0), (0.001, 0.1), degraded=degraded)


class Bench:
    """A sender on a store, with an agent and a link that are the test's to say."""

    def __init__(self, store: SpoolStore, ask: Answer = answer, share: float = 1.0) -> None:
        self.store = store
        self.asked: list[str] = []
        self.corrections: list[Outcome] = []
        self.is_busy, self.is_up = False, True
        self.failure: BaseException | None = None
        self._answer = ask
        line = SenderHooks(self._ask, self._correct, lambda: self.is_busy, lambda: self.is_up, self._give_up)
        self.sender = Sender(store, line, share=share)

    def _ask(self, example: Example) -> Decision:
        self.asked.append(example.id)
        return self._answer(example)

    def _correct(self, outcome: Outcome, example: Example) -> None:
        self.corrections.append(outcome)

    def _give_up(self, error: BaseException) -> None:
        self.failure = error

    @property
    def corrected(self) -> list[str]:
        return [outcome.id for outcome in self.corrections]

    def n_left(self) -> int:
        status = self.store.status()
        assert status is not None
        return status.n_waiting + status.n_answered

    def __enter__(self) -> Bench:
        self.sender.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.sender.stop()
        assert self.failure is None, self.failure
        self.store.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(spool_module, "FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr(spool_module, "MOST_BACKOFF_S", 0.05)
    monkeypatch.setattr(spool_module, "BUSY_S", 0.002)


def test_each_is_corrected_once_under_its_key_and_then_gone(tmp_path):
    clock = Clock()
    store = opened(tmp_path, clock=clock)
    keys = put(store, *"abc")
    clock.now += 60
    bench = Bench(store)
    with bench:
        until(lambda: bench.n_left() == 0)
    assert bench.corrected == bench.asked == ["a", "b", "c"]
    assert [outcome.corrects for outcome in bench.corrections] == keys
    for outcome in bench.corrections:
        assert outcome.decision is not None
        assert (outcome.decision.label, outcome.truth, outcome.spooled) == (2, 1, "")
        assert 60 < outcome.latency_s < 60 + BOUND_S  # the wait is in it


def test_nothing_is_sent_while_live_examples_wait_for_a_server_or_the_link_is_down(tmp_path):
    store = opened(tmp_path)
    bench = Bench(store)
    bench.is_busy = True
    with bench:
        put(store, "a")
        bench.sender.wake()
        time.sleep(0.1)
        assert bench.asked == []
        bench.is_busy, bench.is_up = False, False
        time.sleep(0.1)
        assert bench.asked == []
        bench.is_up = True
        bench.sender.retry()
        until(lambda: bench.corrected == ["a"])


def test_the_backlog_has_its_share_of_the_link_and_no_more(tmp_path):
    store = opened(tmp_path)
    put(store, *(f"x{n}" for n in range(200)))

    calls: list[float] = []

    def slow(example: Example) -> Decision:
        began = time.monotonic()
        time.sleep(0.01)
        calls.append(time.monotonic() - began)
        return answer(example)

    started = time.monotonic()
    bench = Bench(store, slow, share=0.2)
    with bench:
        until(lambda: len(calls) >= 12)
        rested = calls[:11]  # the last call's rest is still to come
        assert sum(rested) <= 0.2 * (time.monotonic() - started)


@pytest.mark.parametrize("error", [TierUnavailable, TierTimeout, TierOverloaded])
def test_an_answer_that_may_come_later_is_asked_for_again(tmp_path, error):
    store = opened(tmp_path)
    put(store, "a")
    n_failures = 3

    def fails_first(example: Example) -> Decision:
        if len(bench.asked) <= n_failures:
            raise error("cloud", "not now")
        return answer(example)

    bench = Bench(store, fails_first)
    with bench:
        until(lambda: bench.corrected == ["a"])
    assert len(bench.asked) == n_failures + 1


def test_a_degraded_answer_is_not_the_last_word(tmp_path):
    store = opened(tmp_path)
    put(store, "a")

    def degraded_first(example: Example) -> Decision:
        return answer(example, "unavailable: the next host" if len(bench.asked) == 1 else None)

    bench = Bench(store, degraded_first)
    with bench:
        until(lambda: bench.corrected == ["a"])
    assert len(bench.asked) == 2
    assert bench.corrections[0].decision is not None
    assert bench.corrections[0].decision.degraded is None


def test_the_wait_after_failures_grows_and_ends_when_the_link_is_back(tmp_path, monkeypatch):
    monkeypatch.setattr(spool_module, "FIRST_BACKOFF_S", 1000.0)
    monkeypatch.setattr(spool_module, "MOST_BACKOFF_S", 1000.0)
    store = opened(tmp_path)
    put(store, "a")

    def fails_once(example: Example) -> Decision:
        if len(bench.asked) == 1:
            raise TierUnavailable("cloud", "gone")
        return answer(example)

    bench = Bench(store, fails_once)
    with bench:
        until(lambda: len(bench.asked) == 1)
        put(store, "b")
        bench.sender.wake()  # which is no reason to try again
        time.sleep(0.1)
        assert len(bench.asked) == 1
        bench.sender.retry()
        until(lambda: sorted(bench.corrected) == ["a", "b"])


def test_one_that_cannot_be_read_is_closed_with_the_reason(tmp_path):
    store = opened(tmp_path)
    (key, _) = put(store, "bad", "good")

    def ask(example: Example) -> Decision:
        if example.id == "bad":
            raise InputError("example bad: expected a PNG")
        return answer(example)

    bench = Bench(store, ask)
    with bench:
        until(lambda: bench.n_left() == 0)
        status = store.status()
    assert [outcome.error for outcome in bench.corrections] == ["example bad: expected a PNG", None]
    assert bench.corrections[0].corrects == key
    assert status is not None
    assert (status.n_corrected, status.n_refused) == (1, 1)


def test_one_that_is_refused_is_closed_once_the_server_answered_about_another(tmp_path):
    store = opened(tmp_path)
    put(store, "bad", "good")

    def ask(example: Example) -> Decision:
        if example.id == "bad":
            raise TierRejected("cloud", "INVALID_ARGUMENT: no")
        return answer(example)

    bench = Bench(store, ask)
    with bench:
        until(lambda: bench.n_left() == 0)
    assert bench.asked == ["bad", "good"]
    assert bench.corrections[1].error == "rejected: tier cloud: INVALID_ARGUMENT: no"


def test_a_server_that_refuses_everybody_loses_nothing(tmp_path):
    """An expired token, a model that is not loaded: the examples are not to blame."""
    store = opened(tmp_path)
    put(store, *"abc")
    is_mended = threading.Event()

    def ask(example: Example) -> Decision:
        if not is_mended.is_set():
            raise TierRejected("cloud", "UNAUTHENTICATED: token expired")
        return answer(example)

    bench = Bench(store, ask)
    with bench:
        until(lambda: len(bench.asked) >= 8)
        assert bench.corrections == []
        is_mended.set()
        until(lambda: bench.n_left() == 0)
    assert sorted(bench.corrected) == ["a", "b", "c"]
    assert len(bench.corrected) == 3


def test_a_call_under_way_when_it_is_stopped_is_abandoned_and_asked_again_another_time(tmp_path):
    store = opened(tmp_path)
    put(store, "a")
    go = threading.Event()

    def hangs(example: Example) -> Decision:
        go.wait(BOUND_S)
        return answer(example)

    bench = Bench(store, hangs)
    bench.sender.start()
    until(lambda: len(bench.asked) == 1)
    started = time.monotonic()
    bench.sender.stop(timeout_s=0.05)
    assert time.monotonic() - started < 5
    store.close()
    go.set()
    bench.sender._thread.join(BOUND_S)
    assert bench.corrections == []
    store = opened(tmp_path)
    assert store.next() is not None
    store.close()


def test_an_answer_that_a_full_disk_does_not_take_is_asked_for_again(tmp_path, monkeypatch):
    store = opened(tmp_path)
    put(store, "a")
    takes = iter([False, True])
    write = store.answer
    monkeypatch.setattr(store, "answer", lambda row, outcome: next(takes) and write(row, outcome))
    bench = Bench(store)
    with bench:
        until(lambda: bench.n_left() == 0)
    assert bench.asked == ["a", "a"]
    assert bench.corrected == ["a"]


def test_a_bug_in_the_backlog_stops_the_agent_instead_of_ending_in_silence(tmp_path):
    store = opened(tmp_path)
    put(store, "a")

    def breaks(example: Example) -> Decision:
        raise ZeroDivisionError

    bench = Bench(store, breaks)
    bench.sender.start()
    until(lambda: isinstance(bench.failure, ZeroDivisionError))
    bench.sender.stop()
    store.close()


# With an agent


class Cloud:
    """The answer of `Far`; down as long as `error` is there."""

    def __init__(self) -> None:
        self.error: Exception | None = TierUnavailable("cloud", "gone")

    def __call__(self, batch: object) -> None:
        if self.error is not None:
            raise self.error


def agent_with(cloud: Cloud, path: Path, **options: object) -> tuple[Agent, Sinks]:
    tiers = [LocalTier("device", [Seat(0), Seat(1), Seat(2)], UNANIMOUS), Far(cloud)]
    sinks = Sinks([JsonLinesFile(path / "out.jsonl")], ("a", "b", "c"))
    return Agent(Cascade(tiers), DECODER, sinks, **options), sinks  # type: ignore[arg-type]


def spooling(
    agent: Agent, sinks: Sinks, path: Path, drop: str = "oldest", windows: tuple = (), **options: object
) -> Spool:
    config = SpoolConfig(path / "spool.db", sync="normal", link_share=1.0, drop=drop, send_between=windows)
    return Spool(SpoolStore(config, None), agent, sinks, **options)  # type: ignore[arg-type]


def test_a_dropped_example_is_closed_in_the_sinks(tmp_path):
    cloud = Cloud()
    agent, sinks = agent_with(cloud, tmp_path)
    spool = spooling(agent, sinks, tmp_path)
    agent.run(Numbers(6))
    spooled = {line["spooled"] for line in lines(tmp_path) if "spooled" in line}
    assert spooled
    spool.store.clear()
    spool.sender.retry()
    until(lambda: {line["corrects"] for line in lines(tmp_path) if "corrects" in line} == spooled)
    assert {line.get("error") for line in lines(tmp_path) if "corrects" in line} == {"dropped: cleared"}
    until(lambda: spool.store.outbox("") == [])
    end(spool)
    sinks.close()


def test_draining_waits_for_the_late_answers_or_its_bound(tmp_path):
    cloud = Cloud()
    agent, sinks = agent_with(cloud, tmp_path)
    spool = spooling(agent, sinks, tmp_path)
    agent.run(Numbers(6))
    assert spool.drain(0.05) == 3
    assert spool.drain(1000.0, lambda: True) == 3
    cloud.error = None
    assert spool.drain(BOUND_S) == 0
    assert sum("corrects" in line for line in lines(tmp_path)) == agent.tally.n_corrected == 3
    end(spool)
    sinks.close()


def end(spool: Spool) -> None:
    spool.close()
    spool.store.close()


def lines(path: Path) -> list[dict[str, object]]:
    import json

    return [json.loads(line) for line in (path / "out.jsonl").read_text().splitlines()]


def test_what_no_server_answers_is_answered_by_the_device_now_and_corrected_later(tmp_path):
    cloud = Cloud()
    agent, sinks = agent_with(cloud, tmp_path)
    spool = spooling(agent, sinks, tmp_path)
    agent.run(Numbers(6))
    spooled = {line["spooled"]: line["id"] for line in lines(tmp_path) if "spooled" in line}
    assert sorted(spooled.values()) == ["x1", "x3", "x5"]
    assert all(str(line["degraded"]).startswith("unavailable: ") for line in lines(tmp_path) if "spooled" in line)
    assert agent.tally.n_spooled == 3
    cloud.error = None
    spool.sender.retry()
    until(lambda: agent.tally.n_corrected == 3)
    end(spool)
    sinks.close()
    corrections = [line for line in lines(tmp_path) if "corrects" in line]
    assert {line["corrects"]: line["id"] for line in corrections} == spooled
    assert [line["label"] for line in corrections] == [int(str(line["id"])[1:]) % 3 for line in corrections]
    assert all(line["exit_tier"] == 2 for line in corrections)


@pytest.mark.parametrize(
    ("error", "is_kept"),
    [
        (TierUnavailable("cloud", "gone"), True),
        (TierTimeout("cloud", "late"), True),
        (TierOverloaded("cloud", "later"), True),
        (TierRejected("cloud", "never"), False),
    ],
)
def test_only_what_may_have_an_answer_later_is_kept(tmp_path, error, is_kept):
    cloud = Cloud()
    cloud.error = error
    agent, sinks = agent_with(cloud, tmp_path)
    spool = spooling(agent, sinks, tmp_path)
    agent.run(Numbers(2))
    assert bool(lines(tmp_path)[-1].get("spooled")) is is_kept
    end(spool)
    sinks.close()


def test_what_may_not_leave_is_not_kept_either(tmp_path):
    cloud = Cloud()
    agent, sinks = agent_with(cloud, tmp_path, hold_back=lambda example, run: "private")
    spool = spooling(agent, sinks, tmp_path)
    agent.run(Numbers(2))
    assert {str(line["degraded"]).partition(":")[0] for line in lines(tmp_path)} == {"None", HeldBackError.reason}
    status = spool.store.status()
    assert status is not None
    assert status.n_offered == 0
    end(spool)
    sinks.close()


def test_what_may_no_longer_leave_and_cannot_be_dropped_keeps_the_agent_from_starting(tmp_path, monkeypatch):
    store = opened(tmp_path)
    put(store, "a")

    def full(table, *arguments, **options):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(SpoolTable, "drop_while", full)
    store.apply_policy("")  # lets all go, as before
    with pytest.raises(ConfigError, match=r"may no longer leave, and cannot be dropped \(.*full; make room"):
        store.apply_policy("[3]")
    monkeypatch.undo()
    store.apply_policy("[3]")
    assert store.next() is None
    store.close()


def test_what_was_kept_before_more_was_held_back_is_not_sent(tmp_path):
    cloud = Cloud()
    agent, sinks = agent_with(cloud, tmp_path)
    spool = spooling(agent, sinks, tmp_path)
    agent.run(Numbers(4))
    end(spool)
    cloud.error = None
    spool = spooling(agent_with(cloud, tmp_path)[0], sinks, tmp_path, policy="[3]")
    status = spool.store.status()
    assert status is not None
    assert (status.n_waiting, status.dropped) == (0, {"policy": 2})
    end(spool)
    sinks.close()


def test_on_a_full_disk_the_agent_goes_on_and_logs_once_that_nothing_is_kept(tmp_path, small_disk, logged):
    cloud = Cloud()
    agent, sinks = agent_with(cloud, tmp_path)
    spool = spooling(agent, sinks, small_disk, drop="newest")
    fill(small_disk)
    agent.run(Numbers(200))
    records = lines(tmp_path)
    decided = [line for line in records if "event" not in line]
    assert len(decided) == 200
    assert all("label" in line for line in decided)
    degraded = [line for line in decided if line["degraded"]]
    assert len(degraded) == 100
    assert not all("spooled" in line for line in degraded)
    assert [line["state"] for line in records if line.get("event") == "spool"] == ["disk full"]
    assert logged == ["warning: the spool cannot write (disk full): examples that no server answers are not kept"]
    assert spool.facts()["error"] == "disk full"
    (small_disk / "others").unlink()
    agent, _ = agent_with(cloud, tmp_path)
    agent.keep, agent.observers, agent.sink = spool.keep, [spool], sinks
    agent.run(Numbers(2))
    assert "spooled" in lines(tmp_path)[-1]
    assert spool.facts()["error"] == ""
    end(spool)
    sinks.close()


# After a crash


def killed(spool: Spool) -> None:
    """As the end of its process would leave it."""
    spool.sender.stop()
    spool.store._file_lock.close()


def test_a_correction_written_just_before_a_crash_is_not_written_again(tmp_path):
    for is_written in (True, False):
        folder = tmp_path / str(is_written)
        folder.mkdir()
        cloud = Cloud()
        agent, sinks = agent_with(cloud, folder)
        spool = spooling(agent, sinks, folder)
        agent.run(Numbers(2))
        killed(spool)
        row = spool.store.next()
        assert row is not None
        correction = spool.sender._correction(row, answer(row.example))
        assert spool.store.answer(row, correction)
        if is_written:
            sinks.write(correction)
        sinks.close()
        agent, sinks = agent_with(cloud, folder)
        spool = spooling(agent, sinks, folder)
        assert [line["corrects"] for line in lines(folder) if "corrects" in line] == [row.key]
        status = spool.store.status()
        assert status is not None
        assert (status.n_answered, status.n_waiting, status.n_corrected) == (0, 0, 1)
        end(spool)
        sinks.close()


@pytest.mark.parametrize("is_written", [True, False])
def test_an_outcome_whose_example_was_kept_just_before_a_crash_is_written_once(tmp_path, is_written):
    cloud = Cloud()
    agent, sinks = agent_with(cloud, tmp_path)
    spool = spooling(agent, sinks, tmp_path)
    agent.run(Numbers(2))
    first = lines(tmp_path)[-1]
    killed(spool)
    spool.store._table.db.execute("UPDATE rows SET confirmed = 0")
    sinks.close()
    if not is_written:
        text = (tmp_path / "out.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "out.jsonl").write_text("".join(text[:-1]))
    agent, sinks = agent_with(cloud, tmp_path)
    spool = spooling(agent, sinks, tmp_path)
    again = [line for line in lines(tmp_path) if line.get("spooled") == first["spooled"]]
    assert again == [first]
    assert spool.recovered == {"x1"}
    cloud.error = None
    spool.sender.retry()
    until(lambda: any("corrects" in line for line in lines(tmp_path)))
    end(spool)
    sinks.close()


@pytest.mark.parametrize("is_open", [True, False])
def test_outside_its_windows_the_backlog_waits(tmp_path, is_open):
    earlier, later, much_later = (time.strftime("%H:%M", time.localtime(time.time() + s)) for s in (-3600, 3600, 7200))
    near, far = f"{earlier}-{later}", f"{later}-{much_later}"
    cloud = Cloud()
    agent, sinks = agent_with(cloud, tmp_path)
    spool = spooling(agent, sinks, tmp_path, windows=(near if is_open else far,))
    agent.run(Numbers(6))
    cloud.error = None
    spool.sender.retry()
    assert spool.facts()["is_open"] == is_open
    if is_open:
        until(lambda: agent.tally.n_corrected == 3)
    else:
        assert not spool.sender.hooks.is_up()
        assert spool.facts()["waiting"] == 3
    end(spool)
    sinks.close()


def test_what_the_links_budget_does_not_let_go_is_kept_for_later(tmp_path):
    cloud = Cloud()
    cloud.error = OverBudget("cloud", "3 examples were sent in this hour")
    agent, sinks = agent_with(cloud, tmp_path)
    spool = spooling(agent, sinks, tmp_path, is_up=lambda: False)
    agent.run(Numbers(6))
    assert [line["degraded"][:6] for line in lines(tmp_path) if "spooled" in line] == ["budget"] * 3
    end(spool)
    sinks.close()
