"""Keeps examples that no server answered in time, and sends them again when the link has room.

After a crash, the outcomes that the sinks lack are written again.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from coe.cascade.errors import CascadeError, InputError, TierRefused, TierRejected
from coe.cascade.types import Decision
from coe.link import Backoff
from coe.protocol import trace_context
from edge.agent import Agent, RemoteTiers
from edge.sinks import Event, Outcome, Sinks, as_record
from edge.sources import Example

from .database import SpoolRow
from .history import has_outcome, mark_at
from .store import SpoolStore

log = logging.getLogger(__name__)


def write_missing_outcomes(store: SpoolStore, sinks: Sinks) -> set[str]:
    """Write the outcomes and the corrections that a killed agent had stored, and that some writer lacks.

    A writer that cannot be read back gets them again, under the same key.

    Returns:
        Ids of the examples whose outcome was in doubt, and is in the sinks now.
    Raises:
        OSError: no writer can be written. Where only some can, the next start tries again.
    """
    unsure, answered = store.unsure(), store.answered()
    failed: list[OSError] = []
    for place, writer in enumerate(sinks.writers):
        try:
            for row in unsure:
                if not has_outcome(writer, mark_at(row.mark, place), row.key):
                    writer.write(as_record(row.local, sinks.labels))
            missing = set(writer.missing([row.key for row in answered])) if answered else set()
            for row in answered:
                if row.key in missing and row.answer is not None:
                    writer.write(as_record(row.answer, sinks.labels))
        except OSError as error:
            failed.append(error)
    if failed and len(failed) == len(sinks.writers):
        raise failed[0]
    if failed:
        return set()
    sinks.flush()
    sinks.sync()
    for row in unsure:
        store.confirm(row.key)
    for row in answered:
        store.gone(row)
    return {row.local.id for row in unsure}


BUSY_S = 0.02  # between two checks whether live examples still wait
IDLE_S = 30.0  # between two checks where nothing waits; a new example or the link's return ends the wait
FIRST_BACKOFF_S, MOST_BACKOFF_S = 1.0, 60.0
TIDY_S = 60.0  # between two calls of `SpoolStore.tidy`
DRAIN_POLL_S = 0.05
STOP_S = 5.0  # that stopping waits for a call under way


@dataclass(frozen=True)
class SenderHooks:
    """What the sender calls.

    Args:
        ask: the remote tiers; raises TierError or InputError.
        correct: writes a late answer to the sinks, and flushes it; raises OSError.
        is_busy: True while live examples wait for a server.
        is_up: True while the link to the cloud works.
        give_up: stops the agent with this error.
        close_dropped: writes closing records of examples that were dropped, if there are any.
    """

    ask: Callable[[Example], Decision]
    correct: Callable[[Outcome, Example], None]
    is_busy: Callable[[], bool]
    is_up: Callable[[], bool]
    give_up: Callable[[BaseException], None]
    close_dropped: Callable[[], None] = lambda: None


class Sender:
    """Sends one example after another on a thread of its own, from `start` to `stop`.

    A call of t seconds is followed by t * (1 - share) / share seconds without calls. A call without an answer is
    followed by a `Backoff` wait.

    A server may refuse an example because of the example, or because of the caller: a refused one is closed (with a
    correction that has the reason in place of an answer) once the server has answered for another.
    """

    def __init__(self, store: SpoolStore, hooks: SenderHooks, *, share: float = 0.2) -> None:
        self.store = store
        self.hooks = hooks
        self.share = share
        self.call_s = 0.0  # total time of the calls
        self.n_calls = 0
        self._backoff = Backoff(FIRST_BACKOFF_S, MOST_BACKOFF_S)
        self._tidy_at = time.monotonic() + TIDY_S
        self._rest_until = self._retry_at = -math.inf  # `time.monotonic()` seconds
        self._taken_at = 0.0  # when the present row was taken
        self._refused: dict[int, tuple[SpoolRow, str]] = {}
        self._written: dict[int, SpoolRow] = {}  # in the sinks, and not removed from the store yet
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="coe-spool", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """There is an example to send."""
        self._wake.set()

    def retry(self) -> None:
        """The link is back: end the wait for it."""
        self._backoff.reset()
        self._retry_at = -math.inf
        self._wake.set()

    def hurry(self) -> None:
        """Take no heed of the link's other use from now on."""
        self.share = 1.0
        self._rest_until = -math.inf
        self.retry()

    def stop(self, timeout_s: float = STOP_S) -> None:
        """Wait that long for a call under way; if it takes longer, its example is sent again at another time."""
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
        except Exception as error:  # noqa: BLE001 - `Agent.run` raises it
            self.hooks.give_up(error)

    def _turn(self) -> float:
        """One step; seconds until there may be another."""
        now = time.monotonic()
        if now >= self._tidy_at:
            self._tidy_at = now + TIDY_S
            self.store.tidy()
            self._clean_up()
        self.hooks.close_dropped()
        rest_s = max(self._rest_until, self._retry_at) - now
        if rest_s > 0:
            return min(rest_s, TIDY_S)
        if self.hooks.is_busy():
            return BUSY_S
        row = self.store.next() if self.hooks.is_up() else None
        if row is None:
            return min(IDLE_S, TIDY_S)
        self._ask(row)
        return 0.0

    def _ask(self, row: SpoolRow) -> None:
        self._taken_at = time.monotonic()
        try:
            example = row.example
        except ValueError as error:
            self._close(row, Example(row.local.id, None), f"cannot be read: {error}")
            return
        started = time.monotonic()
        span = trace_context.begin()
        try:
            decision = self.hooks.ask(example)
        except InputError as error:
            self._close(row, example, str(error))
            return
        except TierRejected as error:
            if not self._stop.is_set():
                if not isinstance(error, TierRefused):
                    self._refused[row.seq] = row, f"{error.reason}: {error}"
                self._put_off(row, f"{error.reason}: {error}")
            return
        except CascadeError as error:
            if not self._stop.is_set():
                self._put_off(row, str(error))
            return
        finally:
            trace_context.end()
            self._rest(time.monotonic() - started)
        if self._stop.is_set():
            return  # the sinks may be closed
        if decision.degraded:
            self._put_off(row, decision.degraded)
            return
        self._backoff.reset()
        self._deliver(row, replace(self._correction(row, decision), trace=span.trace_id), example)
        self._refused.pop(row.seq, None)
        refused, self._refused = self._refused, {}
        for other, why in refused.values():
            self._close(other, other.example, why)

    def _rest(self, call_s: float) -> None:
        self.n_calls += 1
        self.call_s += call_s
        self._rest_until = time.monotonic() + call_s * (1 - self.share) / self.share

    def _put_off(self, row: SpoolRow, why: str) -> None:
        self.store.put_off(row, why)
        self._back_off()

    def _back_off(self) -> None:
        self._retry_at = time.monotonic() + self._backoff.next_s()

    def _close(self, row: SpoolRow, example: Example, why: str) -> None:
        """Write that no server will answer it."""
        self._deliver(row, self._correction(row, None, why), example)

    def _correction(self, row: SpoolRow, decision: Decision | None, error: str | None = None) -> Outcome:
        latency_s = row.local.latency_s + row.age_s + time.monotonic() - self._taken_at
        return Outcome(row.local.id, decision, latency_s, row.local.truth, error, deferred=True, corrects=row.key)

    def _deliver(self, row: SpoolRow, outcome: Outcome, example: Example) -> None:
        """Into the store, then into the sinks, then out of the store: the next start repairs a crash in between."""
        if not self.store.answer(row, outcome):
            if self.store.state != "ok":  # it is sent again; otherwise it was dropped meanwhile
                self._back_off()
            return
        self.hooks.correct(outcome, example)
        self._written[row.seq] = row
        self._clean_up()

    def _clean_up(self) -> None:
        self._written = {seq: row for seq, row in self._written.items() if not self.store.gone(row)}


def log_event(event: Event) -> None:
    """Log an event of the store's."""
    state = event.facts["state"]
    if state == "ok":
        log.info("the spool can write again")
    elif state == "full":
        drops_oldest = event.facts["drops"] == "oldest"
        effect = "each new example replaces the oldest" if drops_oldest else "no more are kept"
        log.warning("the spool is full: %s", effect)
    elif state == "damaged":
        log.warning("the spool was damaged: a new one is used, the old one is now %s", event.facts["set_aside"])
    elif state == "newer":
        log.warning(
            "the spool is a newer coe-edge's: a new one is used, that one is kept as %s", event.facts["set_aside"]
        )
    else:
        log.warning("the spool cannot write (%s): examples that no server answers are not kept", state)


# Reasons that may not hold later.
KEPT = ("unavailable", "timeout", "overloaded", "calls", "quota", "refused", "cap", "budget")


class Spool:
    """Keeps the agent's examples from here to `close`, and sends the backlog.

    Args:
        store: open; it is not closed here.
        sinks: the agent's.
        is_up: True while the link to the cloud works.
        policy: in words, what may not leave the device; "" for nothing. Examples kept under another are not sent.
    Raises:
        ConfigError: what may no longer leave cannot be dropped.
        OSError: the sinks cannot be written.
    """

    def __init__(
        self,
        store: SpoolStore,
        agent: Agent,
        sinks: Sinks,
        *,
        is_up: Callable[[], bool] = lambda: True,
        policy: str = "",
    ) -> None:
        self._agent = agent
        self._sinks = sinks
        self._remote_tiers = RemoteTiers(agent.cascade, agent.decoder)
        self.store = store
        store.on_event, store.on_corrected = self._on_event, self._count_corrected
        self._unconfirmed: list[str] = []  # keys of outcomes in the sinks that may not be on the disk yet
        hooks = SenderHooks(
            ask=self._remote_tiers.ask,
            correct=self._correct,
            is_busy=lambda: agent.n_waiting > 0,
            is_up=lambda: store.config.sends_at(time.strftime("%H:%M")) and is_up(),
            give_up=agent.give_up,
            close_dropped=self._close_dropped,
        )
        self._facts: dict[str, Any] = {"waiting": 0, "dropped": {}, "bytes": 0, "oldest_s": None, "error": "unreadable"}
        self.sender = Sender(self.store, hooks, share=store.config.link_share)
        self.recovered = write_missing_outcomes(self.store, sinks)
        self.store.apply_policy(policy)
        sinks.on_commit(self._confirm)
        agent.keep = self.keep
        agent.observers.append(self)
        if self._remote_tiers.is_there:
            self.sender.start()

    def keep(self, example: Example, outcome: Outcome) -> str:
        """The key under which the example is stored; "" where it is not, such as when a server refused it for good."""
        if outcome.reason not in KEPT or example.value is None or not self._remote_tiers.is_there:
            return ""
        return self.store.put(example, outcome, self._sinks.mark())

    def on_outcome(self, example: Example, outcome: Outcome) -> None:
        """An outcome in the sink may be corrected from now on."""
        if outcome.spooled:
            self._unconfirmed.append(outcome.spooled)
            self._sinks.touch()

    def facts(self) -> dict[str, Any]:
        """The status as plain data; the last one that could be read, where it cannot be now."""
        status = self.store.status()
        if status is not None:
            self._facts = status.facts()
        return self._facts | {"is_open": self.store.config.sends_at(time.strftime("%H:%M"))}

    def close(self) -> None:
        """Stop; the next start sends the rest of the backlog."""
        self.sender.stop()
        self._confirm()

    def drain(self, seconds: float, is_stopped: Callable[[], bool] = lambda: False) -> int:
        """How many examples still wait once all were sent, or so many seconds are over, or the agent is stopped."""
        end = time.monotonic() + seconds
        self._confirm()
        self.sender.hurry()
        while (left := self._n_left()) and time.monotonic() < end and not is_stopped():
            time.sleep(DRAIN_POLL_S)
        return left

    def _n_left(self) -> int:
        status = self.store.status()
        return 0 if status is None else status.n_waiting + status.n_answered

    def _confirm(self) -> None:
        """The outcomes that are in the sinks may be corrected from now on."""
        keys, self._unconfirmed = self._unconfirmed, []
        if keys:
            self._sinks.flush()
            for key in keys:
                self.store.confirm(key)
            self.sender.wake()

    def _count_corrected(self, n: int) -> None:
        self._agent.tally.n_corrected += n

    def _correct(self, outcome: Outcome, example: Example) -> None:
        self._agent.correct(outcome, example)
        self._sinks.flush()
        if self.store.config.sync == "full":
            self._sinks.sync()

    def _close_dropped(self) -> None:
        """Write that examples were dropped, so that nobody waits for their corrections."""
        while found := self.store.outbox(""):
            for _, record in found:
                self._sinks.write_record(record)
            self._sinks.flush()
            if self.store.update_outbox("", [seq for seq, _ in found], []) is None:
                return

    def _on_event(self, event: Event) -> None:
        """Log an event of the store's, and write it to the sinks."""
        log_event(event)
        self._agent.write_event(event)
