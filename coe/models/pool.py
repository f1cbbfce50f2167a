"""How members run: the threads they get, the order they are asked in, and the pool that runs them side by side.

A *poll* is one batch put to the members of a tier. It is over as soon as the outputs that are back are enough. A member
that is still at work then is a straggler: it keeps its thread until it is through, its output is let go, and what the
poll had queued is taken back, so that nothing piles up behind a straggler.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from coe.cascade.tier import Member
from coe.cascade.types import Array

from .loading import ModelSpec

SHARED_SETTING = ("torch", "torch-export", "torchscript")


@dataclass(frozen=True)
class ThreadPlan:
    """Who runs when, on how many threads.

    Args:
        budget: threads at work at any time, at most, runtimes' own included.
        at_once: members at work at the same time, at most; 1: in turn.
        each: threads of each member's runtime.
    """

    budget: int
    at_once: int
    each: tuple[int, ...]

    def describe(self) -> str:
        """How the members vote, for the start-up line."""
        if self.at_once == 1:
            return "in turn" if self.budget == 1 else f"in turn, each on {self.budget} threads"
        if self.at_once < len(self.each):
            return f"side by side on {self.budget} threads: {self.at_once} at a time"
        return f"side by side on {sum(self.each)} threads: {'+'.join(map(str, self.each))}"


def plan_threads(specs: Sequence[ModelSpec], budget: int, *, side_by_side: bool) -> ThreadPlan:
    """How members share `budget` threads.

    In turn, each has all of them. Side by side, each has one; what is left goes, thread by thread, to the member with
    the most work per thread by its FLOPs (all alike where one's are not known), because a vote may have to wait for
    the slowest. Fewer threads than members: that many members at a time. Where torch runs one of them, all have the
    same number: its setting belongs to the thread that calls it.
    """
    if not side_by_side or budget == 1 or len(specs) == 1:
        return ThreadPlan(budget, 1, (budget,) * len(specs))
    at_once = min(budget, len(specs))
    if any(spec.format in SHARED_SETTING for spec in specs):
        return ThreadPlan(budget, at_once, (max(budget // len(specs), 1),) * len(specs))
    known = [spec.flops for spec in specs if spec.flops]
    work = known if len(known) == len(specs) else [1.0] * len(specs)
    each = [1] * len(specs)
    for _ in range(budget - len(specs)):
        each[max(range(len(specs)), key=lambda index: work[index] / each[index])] += 1
    return ThreadPlan(budget, at_once, tuple(each))


BUDGET_S = 0.05  # of a start, for all members of a tier together
MOST_ROUNDS = 200  # enough for a steady median


def seconds_each(members: Sequence[Member], x: Array, budget_s: float = BUDGET_S) -> list[float]:
    """Median seconds each member takes for one example, asked in turn, so that a machine that drifts takes all along.

    A preparation counts where no other member shares it. Each is asked once at least, whatever the budget.

    Args:
        x: (1, *S), as it is decoded.
    """
    shared = [sum(other.prepare == member.prepare for other in members) > 1 for member in members]
    ready = [member.prepare(x) for member in members]
    times: list[list[float]] = [[] for _ in members]
    end = time.perf_counter() + budget_s
    for _ in range(MOST_ROUNDS):
        for index, member in enumerate(members):
            started = time.perf_counter()
            member.predict(ready[index] if shared[index] else member.prepare(x))
            times[index].append(time.perf_counter() - started)
        if time.perf_counter() >= end:
            break
    return [statistics.median(taken) for taken in times]


def cheapest_first(seconds: Sequence[float]) -> list[int]:
    """Seats by cost, the listed order where it is the same.

    How often a vote needs its n-th member falls with n. As long as nothing is known of who agrees with whom, it does
    not depend on who the n-th is, so the expected time is least with the costs in rising order.
    """
    return sorted(range(len(seconds)), key=lambda index: seconds[index])


Call = Callable[[], Array]
IsEnough = Callable[[Mapping[int, Array]], bool]

FEWEST = 2  # one vote of several settles nothing, so the caller is not woken for it


class MemberPool:
    """Runs the calls of a tier's members: at most one per member and `n_threads` in all at any time. Thread-safe.

    A member that is at work takes the next poll's call when it is through; a poll waits for it only where the other
    members are not enough. No more calls are queued for a member than there are callers who wait.

    Args:
        tier: its name, for threads and log lines.
        names: of the members, by index.
        n_threads: never more than there are members.
    """

    def __init__(self, tier: str, names: Sequence[str], n_threads: int) -> None:
        self._tier = tier
        self._n_threads = min(n_threads, len(names))
        self._pool = ThreadPoolExecutor(self._n_threads, f"coe-{tier}")
        self._lock = threading.Lock()  # over everything below
        self._is_closed = False
        self._n_at_work = 0  # threads of the pool that look for work
        self._queues: tuple[deque[tuple[_Poll, Call]], ...] = tuple(deque() for _ in names)
        self._ready: deque[int] = deque()  # members with something queued and nobody at work on it
        self._busy = [False] * len(names)  # ready, or at work

    @classmethod
    def of(cls, tier: str, members: Sequence[Member], n_threads: int | None = None) -> MemberPool | None:
        """A pool of at most `n_threads` threads (None: one a member); None where one would run a member at a time."""
        n_threads = min(n_threads or len(members), len(members))
        return cls(tier, [member.name for member in members], n_threads) if n_threads > 1 else None

    def run(self, calls: Mapping[int, Call], is_enough: IsEnough | None = None) -> dict[int, Array]:
        """Outputs by member index: all of them, or those that were back when `is_enough` said yes to them.

        Args:
            calls: by member index.
            is_enough: given outputs by member index, at least one; if True, then also with more outputs.

        Raises:
            what a call raised: that of the first member which did.
        """
        poll = _Poll(self._lock, FEWEST if is_enough else len(calls), len(calls))
        self._queue(poll, calls)
        try:
            while True:
                outputs = poll.wait()
                if poll.errors:
                    raise poll.errors[min(poll.errors)]
                if len(outputs) == len(calls) or (is_enough is not None and is_enough(outputs)):
                    return outputs
        finally:
            self._end(poll, calls)

    def close(self) -> None:
        """Wait for every call, stragglers too. Twice is fine; `run` is refused from now on."""
        with self._lock:
            self._is_closed = True
        self._pool.shutdown()  # a thread goes home when nothing is queued any more

    def _queue(self, poll: _Poll, calls: Mapping[int, Call]) -> None:
        with self._lock:
            if self._is_closed:
                raise RuntimeError(f"tier {self._tier} is closed")
            for index, call in calls.items():
                self._queues[index].append((poll, call))
                if not self._busy[index]:
                    self._busy[index] = True
                    self._ready.append(index)
                    if self._n_at_work < self._n_threads:
                        self._pool.submit(self._work)
                        self._n_at_work += 1

    def _end(self, poll: _Poll, calls: Mapping[int, Call]) -> None:
        """Take back what has not begun; what is at work is nobody's from here on."""
        with self._lock:
            poll.is_open = False
            for index in calls.keys() - poll.outputs.keys() - poll.errors.keys():
                with contextlib.suppress(ValueError):
                    self._queues[index].remove((poll, calls[index]))

    def _work(self) -> None:
        """On a thread of the pool: one call of the next ready member, until there is none. Members take turns."""
        while True:
            with self._lock:
                if not self._ready:
                    self._n_at_work -= 1
                    return
                index = self._ready.popleft()
                if not self._queues[index]:  # taken back meanwhile
                    self._busy[index] = False
                    continue
                poll, call = self._queues[index].popleft()
            self._make(poll, index, call)
            with self._lock:
                if self._queues[index]:
                    self._ready.append(index)
                else:
                    self._busy[index] = False

    def _make(self, poll: _Poll, index: int, call: Call) -> None:
        try:
            output = call()
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits for the poll
            with self._lock:
                poll.take_error(index, error)
        else:
            with self._lock:
                poll.take(index, output)


class _Poll:
    """What came back so far. Everything but `wait` is called with the lock held.

    Args:
        wanted: how many members must be back before whoever waits is woken.
        n_calls: how many there are to come.
    """

    __slots__ = ("errors", "is_open", "lock", "n_calls", "news", "outputs", "wanted")

    def __init__(self, lock: threading.Lock, wanted: int, n_calls: int) -> None:
        self.lock = lock
        self.news = threading.Condition(lock)
        self.wanted = min(wanted, n_calls)
        self.n_calls = n_calls
        self.outputs: dict[int, Array] = {}
        self.errors: dict[int, BaseException] = {}
        self.is_open = True

    @property
    def n_back(self) -> int:
        return len(self.outputs) + len(self.errors)

    def take(self, index: int, output: Array) -> None:
        if self.is_open:
            self.outputs[index] = output
            self._wake()

    def take_error(self, index: int, error: BaseException) -> None:
        if self.is_open:
            self.errors[index] = error
            self._wake()

    def wait(self) -> dict[int, Array]:
        """The outputs when enough members are back, the next time one more; or as soon as a call has raised."""
        with self.lock:
            while self.n_back < self.wanted and not self.errors:
                self.news.wait()
            self.wanted = min(self.n_back + 1, self.n_calls)
            return dict(self.outputs)

    def _wake(self) -> None:
        if self.n_back >= self.wanted or self.errors:
            self.news.notify()
