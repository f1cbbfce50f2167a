"""One source for one agent after another: a reload of the settings costs no example, and repeats none."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from ..sources import Example, Source

FINISH_S = 5.0
POLL_S = 0.1  # how often an agent looks whether it is retired while the one before it still waits for the source


class Feed:
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
        while not self._turn.acquire(timeout=POLL_S):
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
