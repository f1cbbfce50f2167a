"""Tiers, a source and a sink for agent tests: what is asked, when, and what it answers is the test's to say."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

import numpy as np

from coe.cascade import Agreement, Always, Batch, CallCost, DeferralRule, Vote
from coe.models.input_spec import InputSpec
from coe.models.inputs import InputDecoder
from edge.sinks import Event, Outcome
from edge.sources import Example

BOUND_S = 90.0
DECODER = InputDecoder(InputSpec("tensor", (1,), dtype="int64"))


class Numbers:
    """Examples 0 to n - 1, each its own number; odd numbers are those the device's members disagree on."""

    def __init__(self, n: int, bad: Sequence[int] = ()) -> None:
        self.n, self.bad = n, bad
        self.n_taken = 0

    def examples(self, stop: threading.Event) -> Iterator[Example]:
        for number in range(self.n):
            if stop.is_set():
                return
            self.n_taken += 1
            if number in self.bad:
                yield Example(f"x{number}", np.array([number, 0]), number % 3)  # another shape
            else:
                yield Example(f"x{number}", np.array([number]), number % 3)


class ListSink:
    """Remembers outcomes; `write` may be made to fail."""

    def __init__(self, fails: Callable[[Outcome], OSError | None] = lambda outcome: None) -> None:
        self.outcomes: list[Outcome] = []
        self.events: list[Event] = []
        self.fails = fails

    def write(self, outcome: Outcome) -> None:
        error = self.fails(outcome)
        if error is not None:
            raise error
        self.outcomes.append(outcome)

    def write_event(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None:
        pass

    @property
    def ids(self) -> list[str]:
        return [outcome.id for outcome in self.outcomes]


class Seat:
    """A member: number % 3 for even numbers; for odd ones its own seat's label."""

    n_labels = 3

    def __init__(self, seat: int) -> None:
        self.name = f"seat-{seat}"
        self.seat = seat
        self.n_asked = 0

    def prepare(self, x):
        return x

    def predict(self, x):
        self.n_asked += len(x)
        numbers = x[:, 0]
        return np.eye(3, dtype=np.float32)[np.where(numbers % 2, self.seat % 3, numbers % 3)]

    def close(self) -> None:
        pass


class Far:
    """A tier that waits: `answer` is called with each batch, on the agent's waiting threads."""

    n_tiers, waits = 1, True

    def __init__(
        self, answer: Callable[[Batch], object] = lambda batch: None, rule: DeferralRule | None = None
    ) -> None:
        self.name = "cloud"
        self.rule = rule or Always()
        self.answer = answer
        self.most_at_once = self.n_at_once = 0
        self.deadlines: list[float] = []
        self.asked: list[str] = []
        self._lock = threading.Lock()

    def vote(self, batch: Batch, rule: DeferralRule) -> Vote:
        with self._lock:
            self.n_at_once += 1
            self.most_at_once = max(self.most_at_once, self.n_at_once)
            self.deadlines.append(batch.deadline)
            self.asked += batch.ids
        try:
            self.answer(batch)
        finally:
            with self._lock:
                self.n_at_once -= 1
        ones = np.ones(len(batch), dtype=np.int64)
        score = np.ones(len(batch), dtype=np.float32)
        call = CallCost(1, bytes_sent=100, bytes_received=50)
        return Vote(batch.x[:, 0] % 3, ones, ones, 1, score, call=call)

    def complete(self, batch: Batch, vote: Vote) -> Vote:
        return vote

    def close(self) -> None:
        pass


def until(claim: Callable[[], bool]) -> None:
    end = time.monotonic() + BOUND_S
    while not claim():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.002)


UNANIMOUS = Agreement(Fraction(1))
