"""The sign of life: sent to the service manager again and again, as long as the agent gets on with its examples."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from coe.settings import format_seconds

from .notify import Notifier

STATUS_EVERY_S = 5.0


class Pulse:
    """Tells a status line, and that the agent is alive, from a thread of its own while the `with` block runs.

    An example that has been worked on for half of the manager's patience is a member that hangs: then no more signs of
    life are sent, and the manager restarts the service in time.

    Args:
        line: how it goes, in a line.
        busy_since: `time.monotonic()` second at which what is under way on this device began; None: nothing is.
    """

    def __init__(self, notifier: Notifier, line: Callable[[], str], busy_since: Callable[[], float | None]) -> None:
        self._notifier = notifier
        self._line = line
        self._busy_since = busy_since
        patience_s = notifier.watchdog_s
        self._limit_s = None if patience_s is None else patience_s / 2
        self._every_s = STATUS_EVERY_S if patience_s is None else min(STATUS_EVERY_S, patience_s / 5)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="coe-pulse", daemon=True)

    def __enter__(self) -> Pulse:
        if self._notifier.is_heard:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._notifier.is_heard:
            self._thread.join()

    def _beat(self) -> None:
        while True:
            since = self._busy_since()  # read once: the agent goes on meanwhile
            took_s = 0.0 if since is None else time.monotonic() - since
            if self._limit_s is not None and took_s > self._limit_s:
                self._notifier.status(f"hangs: busy with one example for {format_seconds(took_s)}; {self._line()}")
            else:
                self._notifier.status(self._line(), is_alive=self._limit_s is not None)
            if self._ended.wait(self._every_s):
                return
