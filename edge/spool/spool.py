"""The agent's keeper: examples that no server answered in time, and the answers they get later."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from coe.cascade.types import Decision

from ..agent import Agent
from ..onward import Onward
from ..sinks import Event, Outcome, Sinks
from ..sources import Example
from . import recovery
from .config import SpoolConfig
from .sender import Line, Sender
from .status import SpoolStatus, as_facts
from .store import Store

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
        self._onward = Onward(agent.cascade, agent.door)
        self.store = Store(config, self._told)
        line = Line(
            ask=self._ask,
            correct=self._correct,
            is_busy=lambda: agent.n_waiting > 0,
            is_up=is_up,
            give_up=agent.give_up,
        )
        self._facts: dict[str, Any] = {"waiting": 0, "dropped": {}, "bytes": 0, "oldest_s": None, "error": "unreadable"}
        self.sender = Sender(self.store, line, share=config.link_share)
        try:
            self.recovered = recovery.write_what_is_missing(self.store, sinks)
            self.store.hold_to(policy)
        except BaseException:
            self.store.close()
            raise
        agent.keeper = self
        agent.watchers.append(self)
        if self._onward.is_there:
            self.sender.start()

    def keep(self, example: Example, outcome: Outcome) -> str:
        """Of `Keeper`: examples that no server refused for good."""
        if outcome.reason not in KEPT or example.value is None or not self._onward.is_there:
            return ""
        return self.store.put(example, outcome, recovery.mark(self._sinks))

    def saw(self, example: Example, outcome: Outcome) -> None:
        """Of `Watcher`: what is in the sink may be corrected."""
        if outcome.spooled:
            self.store.confirm(outcome.spooled)
            self.sender.wake()

    def link_is_back(self) -> None:
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
        return self._onward.ask(example)

    def _correct(self, outcome: Outcome, example: Example) -> None:
        self._agent.correct(outcome, example)
        if self.store.config.sync == "full":
            recovery.sync(self._sinks)

    def _told(self, event: Event) -> None:
        self._tell(_in_words(event))
        with contextlib.suppress(OSError):  # of the agent's sink: it will say so itself
            self._agent.tell(event)


def _in_words(event: Event) -> str:
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
