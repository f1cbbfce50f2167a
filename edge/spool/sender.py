"""The backlog's way to the cloud: fresh examples first, and never more than its share of the link."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from coe.cascade.errors import CascadeError, InputError, TierRejected
from coe.cascade.types import Decision
from coe.wire import trace

from ..sinks import Outcome
from ..sources import Example
from .rows import Row
from .store import Store

BUSY_S = 0.02  # between two looks whether live examples still wait
IDLE_S = 30.0  # between two looks where nothing waits; a put or the link's return comes sooner
FIRST_BACKOFF_S, MOST_BACKOFF_S = 1.0, 60.0
STOP_S = 5.0  # that stopping waits for a call under way


@dataclass(frozen=True)
class Line:
    """What the sender needs of the agent.

    Args:
        ask: the tiers beyond the device; raises TierError or InputError.
        correct: writes a late answer into the sinks, for good; raises OSError.
        is_busy: live examples are under way to a server.
        is_up: the link to the cloud.
        give_up: told of an error that stops the agent.
    """

    ask: Callable[[Example], Decision]
    correct: Callable[[Outcome, Example], None]
    is_busy: Callable[[], bool]
    is_up: Callable[[], bool]
    give_up: Callable[[BaseException], None]


class Sender:
    """Asks about one example after another on a thread of its own, from `start` to `stop`.

    A call of t seconds is followed by t * (1 - share) / share seconds in which the link is left alone. A call without
    an answer is followed by a wait of its own, twice as long each time.

    A server may refuse an example because of the example, or because of who asks: a refused one is closed (with a
    correction that has the reason in place of an answer) once the server has answered about another.
    """

    def __init__(
        self, store: Store, line: Line, *, share: float = 0.2, rng: random.Random | None = None, tidy_s: float = 60.0
    ) -> None:
        self.store = store
        self.line = line
        self.share = share
        self.call_s = 0.0  # that calls were under way, in all
        self.n_calls = 0
        self._rng = rng or random.Random()
        self._tidy_s = tidy_s
        self._tidy_at = time.monotonic() + tidy_s
        self._rest_until = self._retry_at = -math.inf  # `time.monotonic()` seconds
        self._taken_at = 0.0  # when the present row was taken up
        self._n_failures = 0  # in a row
        self._refused: dict[int, tuple[Row, str]] = {}
        self._written: dict[int, Row] = {}  # in the sinks, and not gone from the store yet
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="coe-spool", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Something was put, or may be sent now."""
        self._wake.set()

    def retry(self) -> None:
        """The link is back: no need to wait any longer for that."""
        self._n_failures, self._retry_at = 0, -math.inf
        self._wake.set()

    def stop(self, timeout_s: float = STOP_S) -> None:
        """A call under way is waited for that long; what comes of it later is asked again another time."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                wait_s = self._turn()
                if wait_s > 0:
                    self._wake.wait(wait_s)
                    self._wake.clear()
        except Exception as error:  # noqa: BLE001 - a bug, or a sink that cannot be written: `Agent.run` raises it
            self.line.give_up(error)

    def _turn(self) -> float:
        """One step; seconds until there may be another."""
        now = time.monotonic()
        if now >= self._tidy_at:
            self._tidy_at = now + self._tidy_s
            self.store.tidy()
            self._clean_up()
        rest_s = max(self._rest_until, self._retry_at) - now
        if rest_s > 0:
            return min(rest_s, self._tidy_s)
        if self.line.is_busy():
            return BUSY_S
        row = self.store.next() if self.line.is_up() else None
        if row is None:
            return min(IDLE_S, self._tidy_s)
        self._ask(row)
        return 0.0

    def _ask(self, row: Row) -> None:
        self._taken_at = time.monotonic()
        try:
            example = row.example
        except ValueError as error:
            self._close(row, Example(row.local.id, None), f"cannot be read: {error}")
            return
        started = time.monotonic()
        hop = trace.begin()
        try:
            decision = self.line.ask(example)
        except InputError as error:
            self._close(row, example, str(error))
            return
        except TierRejected as error:
            if not self._stop.is_set():
                self._refused[row.seq] = row, f"{error.reason}: {error}"
                self._put_off(row, f"{error.reason}: {error}")
            return
        except CascadeError as error:  # no answer, this time
            if not self._stop.is_set():
                self._put_off(row, str(error))
            return
        finally:
            trace.end()
            self._rest(time.monotonic() - started)
        if self._stop.is_set():
            return  # whoever stopped us may have closed the sinks meanwhile
        if decision.degraded:
            self._put_off(row, decision.degraded)
            return
        self._n_failures = 0
        self._deliver(row, replace(self._correction(row, decision), trace=hop.trace_id), example)
        self._refused.pop(row.seq, None)
        refused, self._refused = self._refused, {}
        for other, why in refused.values():
            self._close(other, other.example, why)

    def _rest(self, call_s: float) -> None:
        self.n_calls += 1
        self.call_s += call_s
        self._rest_until = time.monotonic() + call_s * (1 - self.share) / self.share

    def _put_off(self, row: Row, why: str) -> None:
        self.store.put_off(row, why)
        self._back_off()

    def _back_off(self) -> None:
        wait_s = min(FIRST_BACKOFF_S * 2 ** min(self._n_failures, 20), MOST_BACKOFF_S)
        self._n_failures += 1
        self._retry_at = time.monotonic() + wait_s * self._rng.uniform(0.5, 1.0)

    def _close(self, row: Row, example: Example, why: str) -> None:
        """No server will answer about it."""
        self._deliver(row, self._correction(row, None, why), example)

    def _correction(self, row: Row, decision: Decision | None, error: str | None = None) -> Outcome:
        latency_s = row.local.latency_s + row.age_s + time.monotonic() - self._taken_at
        return Outcome(row.local.id, decision, latency_s, row.local.truth, error, deferred=True, corrects=row.key)

    def _deliver(self, row: Row, outcome: Outcome, example: Example) -> None:
        """First into the store, then into the sinks, then out of the store: a crash in between is seen at the start."""
        if not self.store.answer(row, outcome):
            if self.store.state != "ok":  # it is asked about again; otherwise it was dropped meanwhile
                self._back_off()
            return
        self.line.correct(outcome, example)
        self._written[row.seq] = row
        self._clean_up()

    def _clean_up(self) -> None:
        self._written = {seq: row for seq, row in self._written.items() if not self.store.gone(row)}
