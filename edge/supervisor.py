"""Runs an agent from start to end: signals, reloads that lose no example, and a bounded drain."""

from __future__ import annotations

import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from coe.cascade.errors import CascadeError
from coe.config.open import open_cascade

from .config import AgentConfig
from .session import AgentSession
from .sinks import Outcome
from .sources import Example, Source, open_source
from .spool.recovery import FileHistory
from .systemd import SystemdNotifier, Watchdog
from .tally import Tally

__all__ = ["ShutdownTimeout", "SourceHandover", "Supervisor", "SystemdNotifier", "Watchdog"]


FINISH_S = 5.0
HANDOVER_POLL_S = (
    0.1  # how often an agent looks whether it is retired while the one before it still waits for the source
)


class SourceHandover:
    """Examples of one source, whose iterator lives as long as this, whichever agent asks. An agent is known by its
    `stop`.

    One that is retired while it waits for the source leaves what comes then to the next.
    """

    def __init__(self, source: Source) -> None:
        self.n_given = 0
        self.is_over = False  # the source has ended
        self._stop = threading.Event()
        self._examples = source.examples(self._stop)
        self._turn = threading.Lock()  # held by whoever asks the source
        self._telling = threading.Lock()  # over all below
        self._retired: set[threading.Event] = set()
        self._asker: threading.Event | None = None  # who waits for the source
        self._left: Example | None = None

    def examples(self, stop: threading.Event) -> Iterator[Example]:
        """For one agent: until the source ends, or the agent is retired."""
        try:
            while (example := self._next(stop)) is not None:
                yield example
        finally:
            with self._telling:
                self._retired.discard(stop)

    def retire(self, stop: threading.Event) -> None:
        """That agent is given no more; its `stop` is set."""
        with self._telling:
            self._retired.add(stop)
        stop.set()

    def is_asked_by(self, stop: threading.Event) -> bool:
        """Whether that agent waits for the source; if it is retired, it will take nothing more."""
        with self._telling:
            return self._asker is stop

    def close(self) -> None:
        """Tell the source to end; who waits for it soon waits no more."""
        self._stop.set()

    def finish(self) -> None:
        """Let the source go, once nobody is in it; a source ends soon after it is told to."""
        self.close()
        if self._turn.acquire(timeout=FINISH_S):
            self.is_over = True
            close = getattr(self._examples, "close", None)
            if close is not None:
                close()
            self._turn.release()

    def _next(self, stop: threading.Event) -> Example | None:
        """The next example; None where there is none for this agent."""
        while not self._turn.acquire(timeout=HANDOVER_POLL_S):
            if self._is_retired(stop):
                return None
        try:
            return None if self._is_retired(stop) else self._ask(stop)
        finally:
            self._turn.release()

    def _ask(self, stop: threading.Event) -> Example | None:
        with self._telling:
            example, self._left = self._left, None
            if example is not None:
                self.n_given += 1
                return example
            self._asker = stop
        try:
            example = None if self.is_over else next(self._examples, None)
        finally:
            with self._telling:
                self._asker = None
                if example is None:
                    self.is_over = True
                elif stop in self._retired:
                    self._left, example = example, None
                else:
                    self.n_given += 1
        return example

    def _is_retired(self, stop: threading.Event) -> bool:
        with self._telling:
            return stop in self._retired


POLL_S = 0.5  # how soon a failed agent whose source is quiet ends
SETTLE_S = 0.01
LAST_S = 2.0  # for the answers of examples that were not waited for any longer


class ShutdownTimeout(Exception):
    """Something on this device did not end in time; its thread is still at work, so the process has to be ended."""


class Supervisor:
    """Runs the agent of a config until its source ends or a signal says so.

    SIGTERM and SIGINT drain: no new example, and those that wait for a server have `grace_s` for its answer, then the
    device answers them itself. Either signal once more ends the process at once. SIGHUP reads the settings again.

    Args:
        reread: the settings, read again; raises what `read_config` does.
        once, limit: as the command line has them.
        tell: told what a user must know; say: what runs on what.
    """

    def __init__(
        self,
        config: AgentConfig,
        reread: Callable[[], AgentConfig],
        *,
        tell: Callable[[str], None],
        say: Callable[[str], None] = lambda line: None,
        once: bool = False,
        limit: int | None = None,
        notifier: SystemdNotifier | None = None,
    ) -> None:
        self.config = config
        self.tally = Tally()
        self.stopped_by = 0  # the signal; 0: none
        self._reread = reread
        self._tell, self._say = tell, say
        self._once, self._limit = once, limit
        self._memory = FileHistory(config.state, tell)  # for as long as this process runs: so long do its sources
        self._notifier = notifier or SystemdNotifier.of()
        self._events: queue.SimpleQueue[signal.Signals | _AgentThread] = (
            queue.SimpleQueue()
        )  # a signal's handler may put
        self._opening_since: float | None = None
        self._worker: _AgentThread | None = None

    def run(self) -> Tally:
        """Every example that the source gave has its outcome in the sink when this returns.

        Raises:
            CascadeError, OSError: as `Agent.run`, and what cannot be opened.
            ShutdownTimeout: a member hangs.
        """
        with self._signals():
            try:
                self._handover = SourceHandover(self._open_source(self.config))
            except BaseException:
                self._memory.close()
                raise
            try:
                self._begin(self.config)
                self._notifier.ready(self.tally.line())
                with Watchdog(self._notifier, self.tally.line, self._busy_since):
                    self._attend()
            except ShutdownTimeout:
                raise  # what hangs would hold up the closing, too
            except BaseException:
                self._close()
                raise
            self._close()
        return self.tally

    def _close(self) -> None:
        self._handover.finish()
        if self._worker is not None:
            self._worker.session.close()
        self._memory.close()

    def _open_source(self, config: AgentConfig) -> Source:
        return open_source(config.source, self._once, self._tell, self._memory)

    def _attend(self) -> None:
        """Until the agent has ended."""
        while True:
            try:
                event = self._events.get(timeout=POLL_S)
            except queue.Empty:
                if self._current.agent.stop.is_set():  # it failed, and may not know: its source is quiet
                    self._handover.close()
                continue
            if isinstance(event, _AgentThread):
                if event.error is not None and event.handover is self._handover:
                    raise event.error
                if event is self._worker:
                    return
            elif event is signal.SIGHUP:
                self._reload()
            else:
                self.stopped_by = int(event)
                self._notifier.stopping()
                self._current.agent.stop.set()
                self._handover.close()
                self._drain(lambda: not self._current.is_alive())

    @property
    def _current(self) -> _AgentThread:
        assert self._worker is not None
        return self._worker

    def _begin(self, config: AgentConfig) -> None:
        """Open the agent of a config and set it to work."""
        self._opening_since = time.monotonic()
        try:
            session = AgentSession(config, self._tell, self._say, self.tally, self._memory)
            try:
                session.check_remote_tiers()
            except BaseException:
                session.close()
                raise
        finally:
            self._opening_since = None
        left = None if self._limit is None else max(self._limit - self._handover.n_given, 0)
        self.config = config
        self._worker = _AgentThread(session, self._handover, left, self._events)
        self._worker.start()

    def _reload(self) -> None:
        """Go on with the settings as they are now; where they are wrong, with those before."""
        before = self.config
        self._notifier.reloading()
        try:
            config = self._reread()
            open_cascade(config.cascade).close()  # its models are there, and are what they should be
            same = replace(config.source, interval_s=0.0) == replace(before.source, interval_s=0.0)
            handover = self._handover if same else SourceHandover(self._open_source(config))
        except (CascadeError, OSError) as error:
            self._refuse(error)
            return
        self._retire()
        if not same:
            self._handover.finish()
            self._handover = handover
        try:
            self._begin(config)
        except (CascadeError, OSError) as error:
            if not same:
                self._handover.finish()
                self._handover = SourceHandover(self._open_source(before))
            self._begin(before)
            self._refuse(error)
            return
        for warning in config.warnings:
            self._tell(f"{config.path}: warning: {warning}")
        self._tell(f"{config.path}: reloaded")
        self._notifier.ready(self.tally.line())

    def _refuse(self, error: Exception) -> None:
        self._tell(f"not reloaded, the settings before stay: {'; '.join(str(error).splitlines())}")
        self._notifier.ready(self.tally.line())

    def _retire(self) -> None:
        """No more examples for this agent; when this returns, those it had are in its sink, and it is closed."""
        worker = self._current
        self._handover.retire(worker.agent.stop)
        self._drain(lambda: not worker.is_alive() or worker.is_idle())
        if worker.agent.failure is not None:
            raise worker.agent.failure
        worker.session.close()

    def _drain(self, is_done: Callable[[], bool]) -> None:
        """Wait for servers' answers within `grace_s`; then hang up, so that the device answers by itself."""
        if _comes_true(is_done, self.config.grace_s):
            return
        worker = self._current
        tiers = [tier for tier in worker.agent.cascade.tiers if tier.waits]
        grace = f"{self.config.grace_s:g} s"
        if n := worker.agent.n_waiting:
            self._tell(f"{n} examples still wait for a server after {grace}; it is waited for no more")
        for tier in tiers:
            tier.close()
        if not _comes_true(is_done, LAST_S):
            raise ShutdownTimeout(f"an example was still at work on this device after {grace}; ended in its midst")

    def _busy_since(self) -> float | None:
        if self._opening_since is not None:
            return self._opening_since
        return None if self._worker is None else self._worker.agent.busy_since

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Signals as events while the block runs. On a terminal, SIGHUP means that it is gone, and is left alone."""
        numbers = [signal.SIGTERM, signal.SIGINT]
        if not sys.stderr.isatty():
            numbers.append(signal.SIGHUP)
        before: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in numbers}
        for number in numbers:
            signal.signal(number, self._take)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _take(self, number: int, frame: object) -> None:
        self._events.put(signal.Signals(number))
        if number != signal.SIGHUP:
            for ending in (signal.SIGTERM, signal.SIGINT):
                signal.signal(ending, signal.SIG_DFL)  # once more: at once


class _AgentThread(threading.Thread):
    """One agent at work. It puts itself among the events as it ends."""

    def __init__(
        self,
        session: AgentSession,
        handover: SourceHandover,
        limit: int | None,
        events: queue.SimpleQueue[signal.Signals | _AgentThread],
    ) -> None:
        super().__init__(name="coe-agent", daemon=True)
        self.session, self.agent, self.handover = session, session.agent, handover
        self.error: BaseException | None = None
        self._limit = limit
        self._events = events
        self._n_given_before = handover.n_given
        self._n_seen = 0
        self._counting = threading.Lock()
        self.agent.observers.append(self)  # the last: an outcome it saw is through with everybody

    def run(self) -> None:
        try:
            self.agent.run(self.handover, self._limit)
        except BaseException as error:  # noqa: BLE001 - raised where the events are read
            self.error = error
        self._events.put(self)

    def on_outcome(self, example: Example, outcome: Outcome) -> None:
        if not outcome.corrects:
            with self._counting:
                self._n_seen += 1

    def is_idle(self) -> bool:
        """Whether it has no example, and waits for the source. If it is retired, it stays so."""
        if self.agent.failure is not None:
            return True
        is_asking = self.handover.is_asked_by(self.agent.stop)
        return is_asking and self._n_seen == self.handover.n_given - self._n_given_before


def _comes_true(claim: Callable[[], bool], within_s: float) -> bool:
    end = time.monotonic() + within_s
    while not claim():
        if time.monotonic() >= end:
            return False
        time.sleep(SETTLE_S)
    return True
