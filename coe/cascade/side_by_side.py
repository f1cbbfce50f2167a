"""Members at work at the same time: a bounded number of threads, and an answer that does not wait for the slowest.

A *poll* is one batch put to the seats of a tier. It is over as soon as the outputs that are back are enough. A seat
that is still at work then is a straggler: it keeps its thread until it is through, its output is let go, and what the
poll had queued is taken back, so that nothing piles up behind a straggler.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from .types import Array

log = logging.getLogger(__name__)

Call = Callable[[], Array]
IsEnough = Callable[[Mapping[int, Array]], bool]

FEWEST = 2  # one vote of several settles nothing, so the caller is not woken for it


class SideBySide:
    """Runs the calls of a tier's seats: at most one per seat and `n_threads` in all at any time. Thread-safe.

    A seat that is at work takes the next poll's call when it is through; a poll waits for it only where the other
    seats are not enough. No more calls are queued at a seat than there are callers who wait.

    Args:
        tier: its name, for threads and log lines.
        names: of the members, by seat.
        n_threads: never more than there are seats.
    """

    def __init__(self, tier: str, names: Sequence[str], n_threads: int) -> None:
        self._tier = tier
        self._names = tuple(names)
        self._n_threads = min(n_threads, len(names))
        self._pool = ThreadPoolExecutor(self._n_threads, f"coe-{tier}")
        self._lock = threading.Lock()  # over everything below
        self._is_closed = False
        self._n_at_work = 0  # threads of the pool that look for work
        self._queues: tuple[deque[tuple[_Poll, Call]], ...] = tuple(deque() for _ in names)
        self._ready: deque[int] = deque()  # seats with something queued and nobody at work on it
        self._busy = [False] * len(names)  # ready, or at work
        self._told: dict[int, str] = {}  # what was last logged of a seat that fails

    def run(self, calls: Mapping[int, Call], is_enough: IsEnough | None = None) -> dict[int, Array]:
        """Outputs by seat: all of them, or those that were back when `is_enough` said yes to them.

        A seat whose call raises counts as one that does not come back: where the others are enough without it, that
        is logged and no more. So whether the outputs are enough in the end does not depend on who came first.

        Args:
            calls: by seat.
            is_enough: given outputs by seat, at least one; where it says yes it must do so with more outputs too.

        Raises:
            the error of the first seat that failed, where the others are not enough.
        """
        poll = _Poll(self._lock, FEWEST if is_enough else len(calls), len(calls))
        self._queue(poll, calls)
        try:
            while True:
                outputs, n_back = poll.wait()
                if len(outputs) == len(calls):
                    return outputs
                if is_enough is not None and outputs and is_enough(outputs):
                    poll.is_settled = True
                    return outputs
                if n_back == len(calls):
                    raise poll.errors[min(poll.errors)]
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
            for seat, call in calls.items():
                self._queues[seat].append((poll, call))
                if not self._busy[seat]:
                    self._busy[seat] = True
                    self._ready.append(seat)
                    if self._n_at_work < self._n_threads:
                        self._pool.submit(self._work)
                        self._n_at_work += 1

    def _end(self, poll: _Poll, calls: Mapping[int, Call]) -> None:
        """Take back what has not begun; what is at work is nobody's from here on. Errors nobody is given are told."""
        with self._lock:
            poll.is_open = False
            if poll.is_settled:
                for seat, error in poll.errors.items():
                    self._tell(seat, error)
            for seat in calls.keys() - poll.outputs.keys() - poll.errors.keys():
                with contextlib.suppress(ValueError):
                    self._queues[seat].remove((poll, calls[seat]))

    def _work(self) -> None:
        """On a thread of the pool: one call of the next ready seat, until there is none. Seats take turns."""
        while True:
            with self._lock:
                if not self._ready:
                    self._n_at_work -= 1
                    return
                seat = self._ready.popleft()
                if not self._queues[seat]:  # taken back meanwhile
                    self._busy[seat] = False
                    continue
                poll, call = self._queues[seat].popleft()
            self._make(poll, seat, call)
            with self._lock:
                if self._queues[seat]:
                    self._ready.append(seat)
                else:
                    self._busy[seat] = False

    def _make(self, poll: _Poll, seat: int, call: Call) -> None:
        try:
            output = call()
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits for the poll
            with self._lock:
                if poll.is_open:
                    poll.take_error(seat, error)
                else:
                    self._tell(seat, error)
        else:
            with self._lock:
                self._told.pop(seat, None)
                if poll.is_open:
                    poll.take(seat, output)

    def _tell(self, seat: int, error: BaseException) -> None:
        """Log a failure nobody was given; the same words again only after the member worked in between."""
        words = f"{type(error).__name__}: {error}"
        if self._told.get(seat) != words:
            self._told[seat] = words
            log.warning(
                "tier %s: the vote was settled without member %s, which failed: %s",
                self._tier,
                self._names[seat],
                words,
            )


class _Poll:
    """What came back so far. Everything but `wait` is called with the lock held.

    Args:
        wanted: how many seats must be back before whoever waits is woken.
        n_calls: how many there are to come.
    """

    __slots__ = ("errors", "is_open", "is_settled", "lock", "n_calls", "news", "outputs", "wanted")

    def __init__(self, lock: threading.Lock, wanted: int, n_calls: int) -> None:
        self.lock = lock
        self.news = threading.Condition(lock)
        self.wanted = min(wanted, n_calls)
        self.n_calls = n_calls
        self.outputs: dict[int, Array] = {}
        self.errors: dict[int, BaseException] = {}
        self.is_open = True
        self.is_settled = False

    @property
    def n_back(self) -> int:
        return len(self.outputs) + len(self.errors)

    def take(self, seat: int, output: Array) -> None:
        self.outputs[seat] = output
        self._wake()

    def take_error(self, seat: int, error: BaseException) -> None:
        self.errors[seat] = error
        self._wake()

    def wait(self) -> tuple[dict[int, Array], int]:
        """The outputs when enough seats are back, and how many are; the next time one more."""
        with self.lock:
            while self.n_back < self.wanted:
                self.news.wait()
            self.wanted = min(self.n_back + 1, self.n_calls)
            return dict(self.outputs), self.n_back

    def _wake(self) -> None:
        if self.n_back >= self.wanted:
            self.news.notify()
