"""The agent's loop: takes examples in turn, runs the local tiers, and asks remote tiers on threads.

One thread takes examples and runs the local tiers, in order. An example that must wait for a server is handed to
a waiting thread, at the tier where it stands, and comes back as an outcome like any other.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

from coe.cascade.cascade import Cascade, Run
from coe.cascade.errors import ConfigError, InputError, TierError, describe_failure
from coe.cascade.rule import Always, fuses
from coe.cascade.types import Decision
from coe.link import RealClock
from coe.models.inputs import InputDecoder
from coe.protocol import trace_context

from .crash_journal import CrashJournal
from .link import MovingAverage
from .sinks import Event, Outcome, ReorderBuffer, Sinks
from .sources import Example, Source
from .tally import Tally


class RemoteTiers:
    """The cascade's tiers after the local ones, without falling back on a local tier.

    Args:
        cascade: the agent's, which closes it.
    """

    def __init__(self, cascade: Cascade, decoder: InputDecoder) -> None:
        n_local = next((at for at, tier in enumerate(cascade.tiers) if tier.waits), len(cascade.tiers))
        self.tiers = cascade.tiers[n_local:]
        self.first_tier = 1 + sum(tier.n_tiers for tier in cascade.tiers[:n_local])
        self.decoder = decoder
        self._local = cascade.tiers[:n_local]
        self._rest = Cascade(self.tiers, keep_last_answer=False) if self.tiers else None
        self._fuses = any(fuses(tier.rule) for tier in self.tiers)

    @property
    def is_there(self) -> bool:
        """True if the cascade has a tier that is not on this device."""
        return self._rest is not None

    def ask(self, example: Example, deadline: float = math.inf) -> Decision:
        """The remote tiers' decision; `exit_tier` counts from the device's first tier.

        Args:
            deadline: `time.monotonic()` second.
        Raises:
            TierError: no answer.
            InputError: the example cannot be read.
        """
        assert self._rest is not None, "this cascade has no remote tier"
        assert example.value is not None
        batch = self.decoder.batch([example.id], [example.value], deadline)
        here = self._local if self._fuses else ()  # whose votes count in theirs
        known = [tier.vote(batch, Always(asks_all=True)).ballots() for tier in here]
        decision = self._rest.decide(batch, known)[0]
        return replace(decision, exit_tier=decision.exit_tier + self.first_tier - 1)


log = logging.getLogger(__name__)

BUG = "error"  # the reason's first word where an example met an unexpected error
CRASHED = "crashed: the process ended twice while this was being decided (a member crashed it, hung or took its memory)"
PRECISE_S = 0.05  # shorter waits between examples are kept to the microsecond, and cannot be interrupted


class OutcomeObserver(Protocol):
    """Gets every example's outcome once it is in the sink, and corrections; must be quick, and not raise."""

    def on_outcome(self, example: Example, outcome: Outcome) -> None: ...


class HeldBackError(TierError):
    """The example may not leave the device."""

    reason = "held-back"


HoldBackRule = Callable[[Example, Run], str | None]  # why an example may not leave the device; None: it may
KnownAnswer = Callable[[Example, Run], Outcome | None]  # of an earlier example whose answer this one has, too
Keep = Callable[[Example, Outcome], str]  # the key of an example once it is on disk; "" where it is not kept


class Agent:
    """Runs a cascade over a source into a sink.

    Args:
        cascade: its first tiers usually local; a tier that `waits` is asked on a waiting thread.
        max_in_flight: examples waiting for a server at once; at that many, the source waits. 0: one example at a
            time, the next is taken when this one has its answer.
        ordered: outcomes reach the sink in the source's order.
        deadline_s: of one example in all.
        interval_s: least time between two examples.
        hold_back: called for each example that would leave the device.
        known_answer: called then, with each that may; it may also end the run.
        is_uncertain: whether this machine's own answers are marked `uncertain` now.
        keep: called with each example that a server should have answered and did not, before its outcome is written.
    """

    def __init__(
        self,
        cascade: Cascade,
        decoder: InputDecoder,
        sink: Sinks,
        *,
        max_in_flight: int = 16,
        ordered: bool = False,
        deadline_s: float = math.inf,
        interval_s: float = 0.0,
        hold_back: HoldBackRule | None = None,
        known_answer: KnownAnswer | None = None,
        keep: Keep | None = None,
        is_uncertain: Callable[[], bool] = lambda: False,
        observers: Sequence[OutcomeObserver] = (),
    ) -> None:
        self.cascade = cascade
        self.decoder = decoder
        self.sink = sink
        self.deadline_s = deadline_s
        self.interval_s = interval_s
        self.hold_back = hold_back
        self.known_answer = known_answer
        self.keep = keep
        self.is_uncertain = is_uncertain
        self._n_here = sum(tier.n_tiers for tier in itertools.takewhile(lambda tier: not tier.waits, cascade.tiers))
        self.observers = list(observers)
        self.tally = Tally()
        self.failure: BaseException | None = None
        self.stop = threading.Event()
        self.n_waiting = 0  # examples that wait for a server
        self.local_s = MovingAverage()  # the device's own part of an example that waits for a server
        self.busy_since: float | None = None  # `time.monotonic()` second at which it took its example; None: idle
        self.sink_awaited_at = 0.0  # `time.monotonic()` second at which no sink took a record, last
        self.journal: CrashJournal | None = None
        self._logged: set[type[Exception]] = set()  # unexpected errors
        self._reorder: ReorderBuffer[tuple[Example, Outcome]] | None = ReorderBuffer() if ordered else None
        self._slots = threading.Semaphore(max(max_in_flight, 1))
        self._waiters = ThreadPoolExecutor(max_in_flight, "coe-wait") if max_in_flight else None
        self._clock = RealClock()
        self._writing = threading.Lock()
        self._counting = threading.Lock()

    def run(self, source: Source, limit: int | None = None) -> Tally:
        """Every example of the source, or the first `limit`, has its outcome in the sink when this returns.

        Raises:
            OSError: the sink cannot be written.
            ConfigError: a server decides another task.
        """
        next_at = time.perf_counter()
        try:
            # islice: a slow source is not asked for an example beyond the limit
            for number, example in enumerate(itertools.islice(source.examples(self.stop), limit)):
                self._pace(next_at)  # an example the source has given is decided, even if `stop` was set meanwhile
                next_at = max(next_at + self.interval_s, time.perf_counter())
                self._take(number, example)
                self.busy_since = None  # here alone: a waiting thread's outcome says nothing of this loop
        finally:
            if self._waiters is not None:
                self._waiters.shutdown(wait=True)
        if self.failure is not None:
            raise self.failure
        return self.tally

    def correct(self, outcome: Outcome, example: Example | None = None) -> None:
        """Write the late answer to an example that was kept; observers are called where its example is given.

        Raises:
            OSError: the sink cannot be written.
        """
        with self._writing:
            self.tally.correct(outcome)
            self.sink.write(outcome)
        if example is not None:
            for observer in self.observers:
                observer.on_outcome(example, outcome)

    def write_event(self, event: Event) -> None:
        """Write an event to the sink; an error stops the agent."""
        try:
            with self._writing:
                self.sink.write_event(event)
        except OSError as error:
            self.give_up(error)

    def _pace(self, start_at: float) -> None:
        wait = start_at - time.perf_counter()
        if self.interval_s and wait > PRECISE_S:
            self.stop.wait(wait)
        elif self.interval_s and wait > 0:
            self._clock.wait(wait)

    def _take(self, number: int, example: Example) -> None:
        """Decide one example as far as this machine can."""
        started = time.perf_counter()
        self.busy_since = time.monotonic()
        if example.value is None:
            self._done(number, example, Outcome(example.id, None, 0.0, example.truth, example.error))
            return
        if self.journal is not None and self.journal.is_given_up(example.id):
            slot = self.journal.begin(example.id)
            self._done(number, example, self._failed(example, started, CRASHED))
            self.journal.end(slot)  # once it has its record
            return
        run = self._decide_here(example, started, self.busy_since)
        if isinstance(run, Outcome):
            self._done(number, example, run)
            return
        self.busy_since = None
        self.local_s.add(time.perf_counter() - started)
        self._slots.acquire()  # all waiters busy: the source waits too
        with self._counting:
            self.n_waiting += 1
        if self._waiters is None:
            self._wait(number, example, run, started)
        else:
            self._waiters.submit(self._wait, number, example, run, started)

    def _decide_here(self, example: Example, started: float, now: float) -> Outcome | Run:
        """The outcome, whatever happens; or the run, where its next tier `waits`."""
        assert example.value is not None
        slot = -1 if self.journal is None else self.journal.begin(example.id)
        try:
            run = self.cascade.start(
                self.decoder.batch([example.id], [example.value], min(now + self.deadline_s, example.deadline))
            )
            while not run.is_done and not run.next_tier.waits:
                run.step()
            if not run.is_done and self.hold_back is not None:
                self._hold_back(example, run)
            known = None if run.is_done or self.known_answer is None else self.known_answer(example, run)
            if known is not None:
                took, decisions = time.perf_counter() - started, known.decisions
                return Outcome(example.id, known.decision, took, example.truth, deferred=True, decisions=decisions)
            if not run.is_done:
                return run
            outcome = self._decided(example, run, started)
            return replace(outcome, deferred=True) if outcome.decision and outcome.reason else outcome
        except HeldBackError as error:  # and the device has no answer of its own
            return replace(self._failed_by(error, example, started), deferred=True)
        except Exception as error:  # noqa: BLE001 - nothing that one example does ends the agent
            return self._failed_by(error, example, started)
        finally:
            if self.journal is not None:
                self.journal.end(slot)

    def _hold_back(self, example: Example, run: Run) -> None:
        assert self.hold_back is not None
        why = self.hold_back(example, run)
        if why is None:
            return
        error = HeldBackError(run.next_tier.name, why)
        if not run.falls_back:
            raise error
        run.fail(error)

    def _wait(self, number: int, example: Example, run: Run, started: float) -> None:
        """Run an example's remaining tiers on a waiting thread, under a trace of its own that the servers continue."""
        span = trace_context.begin()
        try:
            while not run.is_done:
                self._ask_next(example, run)
            outcome = self._decided(example, run, started)
        except ConfigError as error:  # the server decides another task; the example still gets its outcome
            self.give_up(error)
            outcome = self._failed(example, started, str(error))
        except Exception as error:  # noqa: BLE001 - nothing that one example does ends the agent
            outcome = self._failed_by(error, example, started)
        finally:
            trace_context.end()
            with self._counting:
                self.n_waiting -= 1
            self._slots.release()
        outcome = replace(outcome, trace=span.trace_id, deferred=True)
        try:
            if self.keep is not None and outcome.reason:
                outcome = replace(outcome, spooled=self.keep(example, outcome))
            self._done(number, example, outcome)
        except OSError as error:
            self.give_up(error)

    def _ask_next(self, example: Example, run: Run) -> None:
        """`run.step`, with what this device's own members do, should the tier not answer, in the journal."""
        assert run.question is not None
        tier, rule, batch = run.question
        asked_at = time.perf_counter()
        try:
            vote = tier.vote(batch, rule)
        except TierError as error:
            slot = -1 if self.journal is None else self.journal.begin(example.id)
            try:
                run.fail(error)
            finally:
                if self.journal is not None:
                    self.journal.end(slot)
            return
        run.take(vote, time.perf_counter() - asked_at)

    def _decided(self, example: Example, run: Run, started: float) -> Outcome:
        latency_s = time.perf_counter() - started
        decisions = run.decisions()
        if (error := decisions.failure()) is not None:
            return self._failed_by(error, example, started)
        decision = decisions[0]
        uncertain = self.is_uncertain() and decision.exit_tier <= self._n_here
        outcome = Outcome(example.id, decision, latency_s, example.truth, decisions=decisions)
        return replace(outcome, uncertain=True) if uncertain else outcome

    def _failed(self, example: Example, started: float, reason: str) -> Outcome:
        return Outcome(example.id, None, time.perf_counter() - started, example.truth, reason)

    def _failed_by(self, error: Exception, example: Example, started: float) -> Outcome:
        if isinstance(error, TierError):
            failed = self._failed(example, started, f"{error.reason}: {error}")
            return replace(failed, call=error.call)
        if isinstance(error, InputError):
            return self._failed(example, started, str(error))
        reason = f"{BUG}: {describe_failure(error)}"
        if type(error) not in self._logged:  # a bug, or no memory left for this one
            self._logged.add(type(error))
            log.error("example %s: %s; logged once, its kind is counted", example.id, reason, exc_info=error)
        return self._failed(example, started, reason)

    def _done(self, number: int, example: Example, outcome: Outcome) -> None:
        with self._writing:
            self.tally.add(outcome)
            due = [(example, outcome)] if self._reorder is None else self._reorder.take(number, (example, outcome))
            for _, written in due:
                self.sink.write(written)
        for example, outcome in due:
            for observer in self.observers:
                observer.on_outcome(example, outcome)
            if example.answered is not None:
                example.answered(outcome)

    def give_up(self, error: BaseException) -> None:
        """Stop, and have `run` raise this."""
        self.failure = self.failure or error
        self.stop.set()
