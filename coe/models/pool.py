"""How members run: the threads they get, the order they are asked in, and the pool that runs them side by side.

A *poll* is one batch put to the members of a tier. It is over as soon as the outputs that are back are enough. A member
that is still at work then is a straggler: it keeps its thread until it is through, its output is let go, and what the
poll had queued is taken back, so that nothing piles up behind a straggler.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
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


def _raise(index: int, words: str) -> Array:
    raise TimeoutError(f"member {index}: {words}")


FEWEST = 2  # one vote of several settles nothing, so the caller is not woken for it


class MemberPool:
    """Runs the calls of a tier's members: at most one per member and `n_threads` in all at any time. Thread-safe.

    A member that is at work takes the next poll's call when it is through; a poll waits for it only where the other
    members are not enough. No more calls are queued for a member than there are callers who wait.

    A member that is at one call for over `timeout_s` is late: nobody waits for it, it takes no call until it is back,
    and another thread takes its thread's place. The threads are daemons, so that it keeps no process from ending.

    Args:
        tier: its name, for threads and log lines.
        n_members: they are known by their index.
        n_threads: never more than there are members.
    """

    def __init__(self, tier: str, n_members: int, n_threads: int, timeout_s: float = math.inf) -> None:
        self._tier = tier
        self._n_threads = min(n_threads, n_members)
        self._timeout_s = timeout_s
        self._lock = threading.Lock()  # over everything below
        self._is_closed = False
        self._threads: set[threading.Thread] = set()
        self._n_alive = 0  # of the threads; those of late members do not count
        self._n_idle = 0  # of these, that wait for work
        self._work_came = threading.Condition(self._lock)
        self._queues: tuple[deque[tuple[_Poll, Call]], ...] = tuple(deque() for _ in range(n_members))
        self._ready: deque[int] = deque()  # members with something queued and nobody at work on it
        self._busy = [False] * n_members  # ready, or at work
        self._since: dict[int, float] = {}  # members at work, and since when
        self._late: set[int] = set()

    @classmethod
    def of(
        cls, tier: str, members: Sequence[Member], n_threads: int | None = None, timeout_s: float = math.inf
    ) -> MemberPool | None:
        """A pool of at most `n_threads` threads (None: one a member); None where one would run a member at a time,
        and takes all the time it wants.
        """
        n_threads = min(n_threads or len(members), len(members))
        return cls(tier, len(members), n_threads, timeout_s) if n_threads > 1 or timeout_s < math.inf else None

    def run(
        self, calls: Mapping[int, Call], is_enough: IsEnough | None = None, late: Callable[[int, str], Array] = _raise
    ) -> dict[int, Array]:
        """Outputs by member index: all of them, or those that were back when `is_enough` said yes to them.

        Args:
            calls: by member index.
            is_enough: given outputs by member index, at least one; if True, then also with more outputs.
            late: given the index of a member that is late, and the words for it, what counts as its output.

        Raises:
            what a call raised: that of the first member which did.
        """
        poll = _Poll(self._lock, FEWEST if is_enough else len(calls), len(calls))
        self._queue(poll, calls)
        try:
            while True:
                outputs = self._wait(poll, calls, late)
                if poll.errors:
                    raise poll.errors[min(poll.errors)]
                if len(outputs) == len(calls) or (is_enough is not None and is_enough(outputs)):
                    return outputs
        finally:
            self._end(poll, calls)

    def close(self) -> None:
        """Wait for every call, stragglers too, but for `timeout_s` at most. Twice is fine; `run` is refused from now
        on.
        """
        with self._lock:
            self._is_closed = True
            self._n_idle = 0
            self._work_came.notify_all()  # a thread ends when nothing is queued any more
            threads = list(self._threads)
        end = time.monotonic() + self._timeout_s
        for thread in threads:
            thread.join(None if end == math.inf else max(end - time.monotonic(), 0.0))

    def _queue(self, poll: _Poll, calls: Mapping[int, Call]) -> None:
        with self._lock:
            if self._is_closed:
                raise RuntimeError(f"tier {self._tier} is closed")
            for index, call in calls.items():
                if index in self._late:
                    continue
                self._queues[index].append((poll, call))
                if not self._busy[index]:
                    self._busy[index] = True
                    self._ready.append(index)
                    self._employ()

    def _employ(self) -> None:
        """Have a thread take what is ready, if there may be one."""
        if self._n_idle:
            self._n_idle -= 1
            self._work_came.notify()
        elif self._n_alive < self._n_threads:
            self._n_alive += 1
            thread = threading.Thread(target=self._work, name=f"coe-{self._tier}_{len(self._threads)}", daemon=True)
            self._threads.add(thread)
            thread.start()

    def _wait(self, poll: _Poll, calls: Mapping[int, Call], late: Callable[[int, str], Array]) -> dict[int, Array]:
        """The outputs when enough members are back, the next time one more; or as soon as a call has raised."""
        with self._lock:
            left_s = None
            while True:
                if self._timeout_s < math.inf:
                    left_s = self._find_late()
                    for index in calls.keys() & self._late - poll.outputs.keys():
                        poll.outputs[index] = late(index, f"no answer within {self._timeout_s * 1e3:g} ms")
                if poll.is_enough:
                    break
                poll.news.wait(left_s)
            poll.wanted = min(poll.n_back + 1, poll.n_calls)
            return dict(poll.outputs)

    def _find_late(self) -> float:
        """Mark the members that have been at work for too long. Returns seconds until the next may be."""
        now = time.monotonic()
        for index, since in self._since.items():
            if index not in self._late and now - since >= self._timeout_s:
                self._late.add(index)
                self._n_alive -= 1
                if self._ready:
                    self._employ()
        return (
            min((since - now for i, since in self._since.items() if i not in self._late), default=0) + self._timeout_s
        )

    def _end(self, poll: _Poll, calls: Mapping[int, Call]) -> None:
        """Take back what has not begun; what is at work is nobody's from here on."""
        with self._lock:
            poll.is_open = False
            for index, call in calls.items():
                if index not in poll.outputs or index in self._late:
                    with contextlib.suppress(ValueError):
                        self._queues[index].remove((poll, call))

    def _work(self) -> None:
        """On a thread of the pool: one call of the next ready member after another. Members take turns."""
        while (taken := self._next()) is not None:
            poll, index, call = taken
            output: Array | None = None
            error: BaseException | None = None
            try:
                output = call()
            except BaseException as raised:  # noqa: BLE001 - it belongs to whoever waits for the poll
                error = raised
            with self._lock:
                poll.take(index, output, error)
                del poll, call, output, error, taken
                del self._since[index]
                if self._queues[index]:
                    self._ready.append(index)
                else:
                    self._busy[index] = False
                if index in self._late:
                    self._late.remove(index)
                    self._n_alive += 1
        with self._lock:
            self._n_alive -= 1
            self._threads.discard(threading.current_thread())

    def _next(self) -> tuple[_Poll, int, Call] | None:
        """The next call, once there is one; None: this thread is not needed any more."""
        with self._lock:
            while self._n_alive <= self._n_threads:
                while self._ready:
                    index = self._ready.popleft()
                    if self._queues[index]:
                        self._since[index] = time.monotonic()
                        poll, call = self._queues[index].popleft()
                        return poll, index, call
                    self._busy[index] = False  # taken back meanwhile
                if self._is_closed:
                    break
                self._n_idle += 1
                self._work_came.wait()
            return None


class _Poll:
    """What came back so far. Used with the lock held.

    Args:
        wanted: how many members must be back before whoever waits is woken.
        n_calls: how many there are to come.
    """

    __slots__ = ("errors", "is_open", "n_calls", "news", "outputs", "wanted")

    def __init__(self, lock: threading.Lock, wanted: int, n_calls: int) -> None:
        self.news = threading.Condition(lock)
        self.wanted = min(wanted, n_calls)
        self.n_calls = n_calls
        self.outputs: dict[int, Array] = {}
        self.errors: dict[int, BaseException] = {}
        self.is_open = True

    @property
    def n_back(self) -> int:
        return len(self.outputs)

    @property
    def is_enough(self) -> bool:
        return self.n_back >= self.wanted or bool(self.errors)

    def take(self, index: int, output: Array | None, error: BaseException | None) -> None:
        if not self.is_open or index in self.outputs:  # it came too late
            return
        if error is not None:
            self.errors[index] = error
        else:
            assert output is not None
            self.outputs[index] = output
        if self.is_enough:
            self.news.notify()
