"""An agent from its start to its end: signals, new settings without a lost example, and a drain that is bounded."""

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

from coe.assembly import open_cascade
from coe.cascade.errors import CascadeError

from ..config import AgentConfig
from ..running import Running
from ..sinks import Outcome
from ..sources import Example, Source, open_source
from ..spool.memory import Memory
from ..tally import Tally
from .feed import Feed
from .notify import Notifier
from .pulse import Pulse

POLL_S = 0.5  # how soon a failed agent whose source is quiet ends
SETTLE_S = 0.01
LAST_S = 2.0  # for the answers of examples that were not waited for any longer


class GaveUp(Exception):
    """Something on this device did not end in time; its thread is still at work, so the process has to be ended."""


class Life:
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
        notifier: Notifier | None = None,
    ) -> None:
        self.config = config
        self.tally = Tally()
        self.stopped_by = 0  # the signal; 0: none
        self._reread = reread
        self._tell, self._say = tell, say
        self._once, self._limit = once, limit
        self._memory = Memory(config.state, tell)  # for as long as this process runs: so long do its sources
        self._notifier = notifier or Notifier.of()
        self._events: queue.SimpleQueue[signal.Signals | _Worker] = queue.SimpleQueue()  # a signal's handler may put
        self._opening_since: float | None = None
        self._worker: _Worker | None = None

    def run(self) -> Tally:
        """Every example that the source gave has its outcome in the sink when this returns.

        Raises:
            CascadeError, OSError: as `Agent.run`, and what cannot be opened.
            GaveUp: a member hangs.
        """
        with self._signals():
            try:
                self._feed = Feed(self._open_source(self.config))
            except BaseException:
                self._memory.close()
                raise
            try:
                self._begin(self.config)
                self._notifier.ready(self.tally.line())
                with Pulse(self._notifier, self.tally.line, self._busy_since):
                    self._attend()
            except GaveUp:
                raise  # what hangs would hold up the closing, too
            except BaseException:
                self._close()
                raise
            self._close()
        return self.tally

    def _close(self) -> None:
        self._feed.finish()
        if self._worker is not None:
            self._worker.running.close()
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
                    self._feed.close()
                continue
            if isinstance(event, _Worker):
                if event.error is not None and event.feed is self._feed:
                    raise event.error
                if event is self._worker:
                    return
            elif event is signal.SIGHUP:
                self._reload()
            else:
                self.stopped_by = int(event)
                self._notifier.stopping()
                self._current.agent.stop.set()
                self._feed.close()
                self._drain(lambda: not self._current.is_alive())

    @property
    def _current(self) -> _Worker:
        assert self._worker is not None
        return self._worker

    def _begin(self, config: AgentConfig) -> None:
        """Open the agent of a config and set it to work."""
        self._opening_since = time.monotonic()
        try:
            running = Running(config, self._tell, self._say, self.tally, self._memory)
            try:
                running.greet()
            except BaseException:
                running.close()
                raise
        finally:
            self._opening_since = None
        left = None if self._limit is None else max(self._limit - self._feed.n_given, 0)
        self.config = config
        self._worker = _Worker(running, self._feed, left, self._events)
        self._worker.start()

    def _reload(self) -> None:
        """Go on with the settings as they are now; where they are wrong, with those before."""
        before = self.config
        self._notifier.reloading()
        try:
            config = self._reread()
            open_cascade(config.cascade).close()  # its models are there, and are what they should be
            same = replace(config.source, interval_s=0.0) == replace(before.source, interval_s=0.0)
            feed = self._feed if same else Feed(self._open_source(config))
        except (CascadeError, OSError) as error:
            self._refuse(error)
            return
        self._retire()
        if not same:
            self._feed.finish()
            self._feed = feed
        try:
            self._begin(config)
        except (CascadeError, OSError) as error:
            if not same:
                self._feed.finish()
                self._feed = Feed(self._open_source(before))
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
        self._feed.retire(worker.agent.stop)
        self._drain(lambda: not worker.is_alive() or worker.is_idle())
        if worker.agent.failure is not None:
            raise worker.agent.failure
        worker.running.close()

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
            raise GaveUp(f"an example was still at work on this device after {grace}; ended in its midst")

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


class _Worker(threading.Thread):
    """One agent at work. It puts itself among the events as it ends."""

    def __init__(
        self, running: Running, feed: Feed, limit: int | None, events: queue.SimpleQueue[signal.Signals | _Worker]
    ) -> None:
        super().__init__(name="coe-agent", daemon=True)
        self.running, self.agent, self.feed = running, running.agent, feed
        self.error: BaseException | None = None
        self._limit = limit
        self._events = events
        self._n_given_before = feed.n_given
        self._n_seen = 0
        self._counting = threading.Lock()
        self.agent.watchers.append(self)  # the last: an outcome it saw is through with everybody

    def run(self) -> None:
        try:
            self.agent.run(self.feed, self._limit)
        except BaseException as error:  # noqa: BLE001 - raised where the events are read
            self.error = error
        self._events.put(self)

    def saw(self, example: Example, outcome: Outcome) -> None:
        if not outcome.corrects:
            with self._counting:
                self._n_seen += 1

    def is_idle(self) -> bool:
        """Whether it has no example, and waits for the source. If it is retired, it stays so."""
        if self.agent.failure is not None:
            return True
        is_asking = self.feed.is_asked_by(self.agent.stop)
        return is_asking and self._n_seen == self.feed.n_given - self._n_given_before


def _comes_true(claim: Callable[[], bool], within_s: float) -> bool:
    end = time.monotonic() + within_s
    while not claim():
        if time.monotonic() >= end:
            return False
        time.sleep(SETTLE_S)
    return True
