"""Keeps examples that no server answered in time, and sends them again when the link has room."""

from __future__ import annotations

import contextlib
import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from coe.cascade.errors import CascadeError, InputError, TierRejected
from coe.cascade.types import Decision
from coe.protocol import trace_context
from edge.agent import Agent, RemoteTiers
from edge.sinks import Event, Outcome, Sinks
from edge.sources import Example

from . import recovery
from .config import SpoolConfig
from .store import SpoolStore
from .table import SpoolRow, SpoolStatus, as_facts

BUSY_S = 0.02  # between two looks whether live examples still wait
IDLE_S = 30.0  # between two looks where nothing waits; a put or the link's return comes sooner
FIRST_BACKOFF_S, MOST_BACKOFF_S = 1.0, 60.0
STOP_S = 5.0  # that stopping waits for a call under way


@dataclass(frozen=True)
class SenderHooks:
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
        self,
        store: SpoolStore,
        hooks: SenderHooks,
        *,
        share: float = 0.2,
        rng: random.Random | None = None,
        tidy_s: float = 60.0,
    ) -> None:
        self.store = store
        self.hooks = hooks
        self.share = share
        self.call_s = 0.0  # that calls were under way, in all
        self.n_calls = 0
        self._rng = rng or random.Random()
        self._tidy_s = tidy_s
        self._tidy_at = time.monotonic() + tidy_s
        self._rest_until = self._retry_at = -math.inf  # `time.monotonic()` seconds
        self._taken_at = 0.0  # when the present row was taken up
        self._n_failures = 0  # in a row
        self._refused: dict[int, tuple[SpoolRow, str]] = {}
        self._written: dict[int, SpoolRow] = {}  # in the sinks, and not gone from the store yet
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
            self.hooks.give_up(error)

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
        if self.hooks.is_busy():
            return BUSY_S
        row = self.store.next() if self.hooks.is_up() else None
        if row is None:
            return min(IDLE_S, self._tidy_s)
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
        hop = trace_context.begin()
        try:
            decision = self.hooks.ask(example)
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
            trace_context.end()
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

    def _put_off(self, row: SpoolRow, why: str) -> None:
        self.store.put_off(row, why)
        self._back_off()

    def _back_off(self) -> None:
        wait_s = min(FIRST_BACKOFF_S * 2 ** min(self._n_failures, 20), MOST_BACKOFF_S)
        self._n_failures += 1
        self._retry_at = time.monotonic() + wait_s * self._rng.uniform(0.5, 1.0)

    def _close(self, row: SpoolRow, example: Example, why: str) -> None:
        """No server will answer about it."""
        self._deliver(row, self._correction(row, None, why), example)

    def _correction(self, row: SpoolRow, decision: Decision | None, error: str | None = None) -> Outcome:
        latency_s = row.local.latency_s + row.age_s + time.monotonic() - self._taken_at
        return Outcome(row.local.id, decision, latency_s, row.local.truth, error, deferred=True, corrects=row.key)

    def _deliver(self, row: SpoolRow, outcome: Outcome, example: Example) -> None:
        """First into the store, then into the sinks, then out of the store: a crash in between is seen at the start."""
        if not self.store.answer(row, outcome):
            if self.store.state != "ok":  # it is asked about again; otherwise it was dropped meanwhile
                self._back_off()
            return
        self.hooks.correct(outcome, example)
        self._written[row.seq] = row
        self._clean_up()

    def _clean_up(self) -> None:
        self._written = {seq: row for seq, row in self._written.items() if not self.store.gone(row)}


KEPT = ("unavailable", "timeout", "overloaded", "calls", "quota")  # reasons that may be gone later


class Spool:
    """Keeps the agent's examples from here to `close`, and has the backlog asked about.

    Args:
        sinks: the agent's.
        is_up: the link to the cloud.
        tell: told what a user must know.
        policy: in words, what may not leave the device; "" for nothing. What was kept under another is not sent.
    Raises:
        ConfigError: the file is another agent's, or cannot be opened.
        OSError: the sinks cannot be written.
    """

    def __init__(
        self,
        config: SpoolConfig,
        agent: Agent,
        sinks: Sinks,
        *,
        is_up: Callable[[], bool] = lambda: True,
        tell: Callable[[str], None] = lambda line: None,
        policy: str = "",
    ) -> None:
        self._agent = agent
        self._sinks = sinks
        self._tell = tell
        self._remote_tiers = RemoteTiers(agent.cascade, agent.decoder)
        self.store = SpoolStore(config, self._told)
        hooks = SenderHooks(
            ask=self._ask,
            correct=self._correct,
            is_busy=lambda: agent.n_waiting > 0,
            is_up=is_up,
            give_up=agent.give_up,
        )
        self._facts: dict[str, Any] = {"waiting": 0, "dropped": {}, "bytes": 0, "oldest_s": None, "error": "unreadable"}
        self.sender = Sender(self.store, hooks, share=config.link_share)
        try:
            self.recovered = recovery.write_missing_outcomes(self.store, sinks)
            self.store.apply_policy(policy)
        except BaseException:
            self.store.close()
            raise
        agent.keeper = self
        agent.observers.append(self)
        if self._remote_tiers.is_there:
            self.sender.start()

    def keep(self, example: Example, outcome: Outcome) -> str:
        """Of `Keeper`: examples that no server refused for good."""
        if outcome.reason not in KEPT or example.value is None or not self._remote_tiers.is_there:
            return ""
        return self.store.put(example, outcome, recovery.sinks_mark(self._sinks))

    def on_outcome(self, example: Example, outcome: Outcome) -> None:
        """Of `OutcomeObserver`: what is in the sink may be corrected."""
        if outcome.spooled:
            self.store.confirm(outcome.spooled)
            self.sender.wake()

    def on_link_up(self) -> None:
        self.sender.retry()

    def status(self) -> SpoolStatus | None:
        """None where its file cannot be read now."""
        return self.store.status()

    def facts(self) -> dict[str, Any]:
        """The status as plain data, for those who watch; the last one that could be read, where it cannot be now."""
        status = self.store.status()
        if status is not None:
            self._facts = as_facts(status)
        return self._facts

    def close(self) -> None:
        """The rest of the backlog is for the next start."""
        self.sender.stop()
        self.store.close()

    def _ask(self, example: Example) -> Decision:
        return self._remote_tiers.ask(example)

    def _correct(self, outcome: Outcome, example: Example) -> None:
        self._agent.correct(outcome, example)
        if self.store.config.sync == "full":
            recovery.sync_sinks(self._sinks)

    def _told(self, event: Event) -> None:
        self._tell(_describe_event(event))
        with contextlib.suppress(OSError):  # of the agent's sink: it will say so itself
            self._agent.tell(event)


def _describe_event(event: Event) -> str:
    """An event of the store's, for a user."""
    state = event.facts["state"]
    if state == "ok":
        return "the spool can write again"
    if state == "full":
        place = "each new example takes the oldest's place" if event.facts["drops"] == "oldest" else "no more are kept"
        return f"warning: the spool is full: {place}"
    if state == "damaged":
        return f"warning: the spool was damaged; it is begun anew, and what is left is in {event.facts['set_aside']}"
    return f"warning: the spool cannot write ({state}): examples that no server answers are not kept"
