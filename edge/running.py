"""An agent and all that it needs, opened from its config and closed in the reverse order."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType

from coe.assembly import open_cascade
from coe.models.inputs import Door

from .agent import Agent
from .config import AgentConfig
from .greet import Greeting
from .sinks import open_sinks
from .sources import Source
from .tally import Tally

GREET_S = 0.5  # how long a start waits to hear from the cloud before it goes on without


class Running:
    """One agent, from the opening of its cascade to its last word.

    Args:
        say: told what runs on what; tell: told what a user must know.
        tally: of a run before, to be gone on with.
    Raises:
        CascadeError: something cannot be opened; what was opened before is closed.
    """

    def __init__(
        self,
        config: AgentConfig,
        tell: Callable[[str], None],
        say: Callable[[str], None] = lambda line: None,
        tally: Tally | None = None,
    ) -> None:
        self.config = config
        with ExitStack() as opened:
            sink = open_sinks(config.sinks, config.cascade.task.labels)
            opened.callback(sink.close)
            cascade = open_cascade(config.cascade, say)
            opened.callback(cascade.close)
            door = Door(config.cascade.task.contract)
            door.warm_up()
            self.agent = Agent(
                cascade,
                door,
                sink,
                max_in_flight=config.max_in_flight,
                ordered=config.ordered,
                deadline_s=config.deadline_s,
                interval_s=config.source.interval_s,
            )
            self.agent.tally = tally or self.agent.tally
            self._greeting = Greeting(cascade, self.agent, tell)
            self._opened = opened.pop_all()

    def run(self, source: Source, limit: int | None = None) -> Tally:
        """Greet the cloud, then decide until the source ends or the agent is stopped."""
        self._greeting.wait(GREET_S)
        return self.agent.run(source, limit)

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()
