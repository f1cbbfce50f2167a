"""Asking the cloud who it is, as the agent starts.

A server of another task (other labels) stops the agent with a clear error. One that cannot be reached does not:
the device answers by itself until it can be.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from coe.cascade.cascade import Cascade
from coe.cascade.errors import ConfigError, TierError
from coe.wire.remote import remote_of

from .agent import Agent


class Greeting:
    """Asks every remote tier for its metadata, on a thread of its own."""

    def __init__(self, cascade: Cascade, agent: Agent, tell: Callable[[str], None]) -> None:
        self._agent = agent
        self._tell = tell
        self._remotes = [remote for tier in cascade.tiers if (remote := remote_of(tier)) is not None]
        self._thread = threading.Thread(target=self._ask, daemon=True)
        if self._remotes:
            self._thread.start()

    def wait(self, seconds: float) -> None:
        """Until all answered, at most `seconds`: a slow link must not hold up the first decision.

        Raises:
            ConfigError: a server serves another task.
        """
        if self._remotes:
            self._thread.join(seconds)
        if self._agent.failure is not None:
            raise self._agent.failure

    def _ask(self) -> None:
        for remote in self._remotes:
            try:
                remote.metadata()
                self._agent.tally.cloud = "ok"
            except ConfigError as error:
                self._agent.give_up(error)
            except TierError as error:
                self._agent.tally.cloud = error.reason
                self._tell(f"warning: {error}; the device answers by itself until it can be reached")
