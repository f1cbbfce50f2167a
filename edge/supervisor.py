"""Runs an agent from start to end: signals, reloads that lose no example, and a bounded drain."""

from __future__ import annotations

import itertools
import logging
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from coe.cascade.errors import CascadeError, NotUsableNow
from coe.config.open import open_cascade
from coe.link import Backoff

from .config import AgentConfig
from .session import AgentSession
from .sinks import Outcome
from .sources import Example, Source, SourceConfig, open_source
from .spool.history import FileHistory
from .systemd import SystemdNotifier, Watchdog
from .tally import Tally

log = logging.getLogger(__name__)

FINISH_S = 5.0
OPEN_AGAIN_S = (0.5, 10.0)  # first and longest wait; less than half of the unit's WatchdogSec
HANDOVER_POLL_S = 0.1  # how often an agent checks whether it is retired while another one waits for the source


class SourceHandover:
    """Gives the examples of one source to one agent after another. An agent is identified by its `stop`.

    An agent that is retired while it waits for the source leaves the next example to its successor.
    """

    def __init__(self, source: Source) -> None:
        self.n_given = 0
        self.is_over = False  # the source has ended
        self._stop = threading.Event()
        self._examples = self._source = source.examples(self._stop)
        self._source_lock = threading.Lock()  # held by the agent that waits for the source
        self._lock = threading.Lock()  # over all below
        self._retired: set[threading.Event] = set()
        self._asker: threading.Event | None = None  # the agent that waits for the source

    def examples(self, stop: threading.Event) -> Iterator[Example]:
        """For one agent: until the source ends, or the agent is retired."""
        try:
            while (example := self._next(stop)) is not None:
                yield example
        finally:
            with self._lock:
                self._retired.discard(stop)

    def retire(self, stop: threading.Event) -> None:
        """Give that agent no more examples, and set its `stop`."""
        with self._lock:
            self._retired.add(stop)
        stop.set()

    def is_asked_by(self, stop: threading.Event) -> bool:
        """True while that agent waits for the source; if it is retired, it will take nothing more."""
        with self._lock:
            return self._asker is stop

    def close(self) -> None:
        """Stop the source; an agent that waits for it soon waits no more."""
        self._stop.set()

    def finish(self) -> None:
        """Stop the source, and close its iterator once no agent waits for it."""
        self.close()
        if self._source_lock.acquire(timeout=FINISH_S):
            self.is_over = True
            close = getattr(self._source, "close", None)
            if close is not None:
                close()
            self._source_lock.release()

    def _next(self, stop: threading.Event) -> Example | None:
        """The next example; None where there is none for this agent."""
        while not self._source_lock.acquire(timeout=HANDOVER_POLL_S):
            if self._is_retired(stop):
                return None
        try:
            return None if self._is_retired(stop) else self._ask(stop)
        finally:
            self._source_lock.release()

    def _ask(self, stop: threading.Event) -> Example | None:
        with self._lock:
            self._asker = stop
        example = None
        try:
            example = None if self.is_over else next(self._examples, None)
        finally:
            with self._lock:
                self._asker = None
                if example is None:
                    self.is_over = True
                elif stop in self._retired:
                    self._examples, example = itertools.chain((example,), self._examples), None
                else:
                    self.n_given += 1
        return example

    def _is_retired(self, stop: threading.Event) -> bool:
        with self._lock:
            return stop in self._retired


POLL_S = 0.5  # how soon a failed agent whose source gives nothing ends
SETTLE_S = 0.01
REFUSED = "not reloaded, the settings before stay: %s"
LAST_S = 2.0  # for the device's own answers after the remote tiers are closed


class ShutdownTimeout(Exception):
    """A thread on this device did not end in time, so the process has to be ended."""


class Supervisor:
    """Runs the agent of a config until its source ends or a signal stops it.

    SIGTERM and SIGINT drain: no new example is taken, and those that wait for a server have `grace_s` for its answer,
    then the device answers them itself. Either signal once more ends the process at once. SIGHUP reads the settings
    again.

    Args:
        reread: reads the settings again; raises what `read_config` does.
        once, limit: as on the command line.
    """

    def __init__(
        self,
        config: AgentConfig,
        reread: Callable[[], AgentConfig],
        *,
        once: bool = False,
        limit: int | None = None,
        notifier: SystemdNotifier | None = None,
    ) -> None:
        self.config = config
        self.tally = Tally()
        self.stopped_by = 0  # the signal; 0: none
        self._reread = reread
        self._once, self._limit = once, limit
        self._history = FileHistory(config.state)  # outlives each agent, as the sources do
        self._notifier = notifier or SystemdNotifier.of()
        self._events: queue.SimpleQueue[signal.Signals | _AgentThread] = queue.SimpleQueue()  # a signal handler puts
        self._opening_since: float | None = None
        self._worker: _AgentThread | None = None
        self._handover: SourceHandover | None = None
        self._opened = config.source  # that of the handover

    def run(self) -> Tally:
        """Every example that the source gave has its outcome in the sink when this returns.

        Raises:
            CascadeError, OSError: as `Agent.run`, and what cannot be opened.
            ShutdownTimeout: a member hangs.
        """
        with self._signals():
            try:
                if self._until_open():
                    self._notifier.ready(self.tally.line())
                    with Watchdog(self._notifier, self.tally.line, self._busy_since):
                        self._handle_events()
                        self._wait_for_spool()
            except ShutdownTimeout:
                raise  # the thread that hangs would block closing, too
            except BaseException:
                self._close()
                raise
            self._close()
        return self.tally

    def _open(self) -> None:
        """Open the source, unless it is open, and start an agent on it, both as in the config."""
        if self._handover is None or not _is_same(self._opened, self.config.source):
            handover = SourceHandover(self._open_source(self.config))
            if self._handover is not None:
                self._handover.finish()
            self._handover, self._opened = handover, self.config.source
        self._start(self.config)

    def _until_open(self, waits_for: tuple[type[Exception], ...] = (NotUsableNow, OSError)) -> bool:
        """Call `_open` until it raises none of these, with pauses that grow; False: a signal came before. SIGHUP reads
        the settings again, and what is wrong in those is waited for, too.

        Raises:
            CascadeError: what a person must edit; also what may be usable later, in a run with `once`.
        """
        backoff, logged = Backoff(*OPEN_AGAIN_S), ""
        while True:
            try:
                self._open()
                return True
            except waits_for as error:
                if self._once:
                    raise
                line = " ".join(str(error).splitlines())
                if isinstance(error, OSError) and error.filename:
                    line = f"{error.filename}: {error.strerror}"
            if line != logged:
                log.warning("not started yet, tried again until it works: %s", line)
                self._notifier.ready(f"not started yet: {line}")
            logged = line
            self._notifier.status(f"not started yet: {line}", is_alive=True)
            try:
                event = self._events.get(timeout=backoff.next_s())
            except queue.Empty:
                continue
            if event is signal.SIGHUP:
                waits_for = (CascadeError, OSError)
                try:
                    self.config = self._reread()
                except (CascadeError, OSError) as error:
                    log.error(REFUSED, "; ".join(str(error).splitlines()))
            elif isinstance(event, signal.Signals):
                self.stopped_by = int(event)
                self._notifier.stopping()
                return False

    def _wait_for_spool(self) -> None:
        """A run that ends with its source has its late answers, as far as they come in time; a signal ends it."""
        spool, config = self._current.session.spool, self.config.spool
        if self._once and spool is not None and config is not None and not self.stopped_by:
            left = spool.drain(config.wait_s, lambda: not self._events.empty())
            if left:
                log.warning("%d examples still wait for an answer (`coe-edge spool send` sends them)", left)

    def _close(self) -> None:
        if self._handover is not None:
            self._handover.finish()
        if self._worker is not None:
            self._worker.session.close()
        self._history.close()

    def _open_source(self, config: AgentConfig) -> Source:
        return open_source(config.source, self._once, self._history)

    def _handle_events(self) -> None:
        """Return once the agent has ended."""
        while True:
            try:
                event = self._events.get(timeout=POLL_S)
            except queue.Empty:
                if self._current.agent.stop.is_set():  # it failed, and may still wait for its source
                    self._source.close()
                continue
            if isinstance(event, _AgentThread):
                if event.error is not None and event.handover is self._handover:
                    if isinstance(event.error, CascadeError):  # nobody edited anything: a restart may help
                        raise NotUsableNow(str(event.error).splitlines()) from event.error
                    raise event.error
                if event is self._worker:
                    return
            elif event is signal.SIGHUP:
                if not self._reload():
                    return
            else:
                self.stopped_by = int(event)
                self._notifier.stopping()
                self._current.agent.stop.set()
                self._source.close()
                self._drain(lambda: not self._current.is_alive())

    @property
    def _source(self) -> SourceHandover:
        assert self._handover is not None
        return self._handover

    @property
    def _current(self) -> _AgentThread:
        assert self._worker is not None
        return self._worker

    def _start(self, config: AgentConfig) -> None:
        """Open the agent of a config and start its thread."""
        self._opening_since = time.monotonic()
        try:
            session = AgentSession(config, self.tally, self._history)
            if not self._once:
                session.wait_for_sinks()
            try:
                session.check_remote_tiers()
            except BaseException:
                session.close()
                raise
        finally:
            self._opening_since = None
        left = None if self._limit is None else max(self._limit - self._source.n_given, 0)
        self.config = config
        self._worker = _AgentThread(session, self._source, left, self._events)
        self._worker.start()

    def _reload(self) -> bool:
        """Change to the settings as they are now; where they are wrong, keep those before. False: a signal came while
        what they need could not be opened.
        """
        self._notifier.reloading()
        try:
            config = self._reread()
            open_cascade(config.cascade).close()  # raises where a model is missing or wrong
            handover = None
            if not _is_same(self._opened, config.source):
                handover = SourceHandover(self._open_source(config))
        except (CascadeError, OSError) as error:
            self._refuse(error)
            return True
        self._retire()
        if handover is not None:
            self._source.finish()
            self._handover = handover
        self._opened = config.source
        try:
            self._start(config)
        except (CascadeError, OSError) as error:
            self._refuse(error)
            if not self._until_open((CascadeError, OSError)):
                return False
        else:
            for warning in config.warnings:
                log.warning("%s: %s", config.path, warning)
            log.info("%s: reloaded", config.path)
        self._notifier.ready(self.tally.line())
        return True

    def _refuse(self, error: Exception) -> None:
        log.error(REFUSED, "; ".join(str(error).splitlines()))
        self._notifier.ready(self.tally.line())

    def _retire(self) -> None:
        """Give the agent no more examples, and close it once those it had are in its sink."""
        worker = self._current
        self._source.retire(worker.agent.stop)
        self._drain(lambda: not worker.is_alive() or worker.is_idle())
        if worker.agent.failure is not None:
            raise worker.agent.failure
        worker.session.close()

    def _drain(self, is_done: Callable[[], bool]) -> None:
        """Wait for the servers' answers within `grace_s`; then close the remote tiers, so that the device answers."""
        if _comes_true(is_done, self.config.grace_s):
            return
        worker = self._current
        tiers = [tier for tier in worker.agent.cascade.tiers if tier.waits]
        grace = f"{self.config.grace_s:g} s"
        if n := worker.agent.n_waiting:
            log.info("%d examples still wait for a server after %s; the device answers them itself", n, grace)
        for tier in tiers:
            tier.close()
        if not _comes_true(is_done, LAST_S):
            raise ShutdownTimeout(f"an example was still being decided on this device after {grace}; not waited for")

    def _busy_since(self) -> float | None:
        if self._opening_since is not None:
            return self._opening_since
        since = None if self._worker is None else self._current.agent.busy_since
        return None if since is None else max(since, self._current.agent.sink_awaited_at)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Put signals among the events while the block runs. On a terminal, SIGHUP keeps its meaning: it has closed."""
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
                signal.signal(ending, signal.SIG_DFL)  # a second signal ends the process at once


class _AgentThread(threading.Thread):
    """Runs one agent, and puts itself among the events as it ends."""

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
        self.agent.observers.append(self)  # the last one: every other observer has had the outcomes it counts

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
        """True if it has no example, and waits for the source. If it is retired, it stays so."""
        if self.agent.failure is not None:
            return True
        is_asking = self.handover.is_asked_by(self.agent.stop)
        return is_asking and self._n_seen == self.handover.n_given - self._n_given_before


def _is_same(one: SourceConfig, other: SourceConfig) -> bool:
    """Whether a source that was opened by one can go on by the other."""
    return replace(one, interval_s=0.0) == replace(other, interval_s=0.0)


def _comes_true(claim: Callable[[], bool], within_s: float) -> bool:
    end = time.monotonic() + within_s
    while not claim():
        if time.monotonic() >= end:
            return False
        time.sleep(SETTLE_S)
    return True
