"""An agent and all that it needs, opened from its config and closed in the reverse order."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

from coe.assembly import open_cascade
from coe.models.inputs import Door

from .agent import Agent
from .config import AgentConfig
from .field.open import open_field
from .field.policy import policy_of
from .greet import Greeting
from .link import LinkState, link_up
from .link.news import LinkNews
from .sinks import Sinks, open_sinks
from .sources import Source
from .spool import SpoolConfig
from .tally import Tally
from .watch.config import WatchConfig

if TYPE_CHECKING:
    from .spool.memory import Memory
    from .spool.spool import Spool

GREET_S = 0.5  # how long a start waits to hear from the cloud before it goes on without


class Running:
    """One agent, from the opening of its cascade to its last word.

    Args:
        say: told what runs on what; tell: told what a user must know.
        tally: of a run before, to be gone on with.
        memory: of watched folders; it is told of the sinks.
    Raises:
        CascadeError: something cannot be opened; what was opened before is closed.
    """

    def __init__(
        self,
        config: AgentConfig,
        tell: Callable[[str], None],
        say: Callable[[str], None] = lambda line: None,
        tally: Tally | None = None,
        memory: Memory | None = None,
    ) -> None:
        self.config = config
        self.spool: Spool | None = None
        self._link_news = LinkNews(tell)
        with ExitStack() as opened:
            sink = open_sinks(config.sinks, config.cascade.task.labels, tell)
            opened.callback(sink.close)
            cascade, self.links = link_up(
                open_cascade(config.cascade, say),
                config.link,
                on_change=self._link_changed,
                reserve_s=lambda: self.agent.local_s.high,  # where more than the config's
            )
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
            self.field = open_field(config.field, self.agent, config.cascade.task.labels, config.state)
            opened.callback(self.field.close)
            if config.spool is not None:
                self._keep(config.spool, opened, sink, tell)
            if memory is not None:
                memory.attach(sink, () if self.spool is None else self.spool.recovered)
                opened.callback(memory.detach)
            if config.watch is not None:
                self._watch(config.watch, opened, sink, say)
            self._greeting = Greeting(cascade, self.agent, tell)
            self._opened = opened.pop_all()

    def _keep(self, config: SpoolConfig, opened: ExitStack, sink: Sinks, tell: Callable[[str], None]) -> None:
        """The spool; imported only where it is asked for."""
        from .spool.spool import Spool

        self.spool = Spool(
            config,
            self.agent,
            sink,
            is_up=lambda: all(link.state.is_up for link in self.links),
            tell=tell,
            policy=policy_of(self.config.field, self.config.cascade),
        )
        opened.callback(self.spool.close)

    def _link_changed(self, state: LinkState) -> None:
        self._link_news.changed(state)
        spool = self.spool
        if spool is not None and state.is_up:
            spool.link_is_back()

    def _watch(self, config: WatchConfig, opened: ExitStack, sinks: Sinks, say: Callable[[str], None]) -> None:
        """Metrics and the page; imported only where they are asked for."""
        from .watch.recent import Recent
        from .watch.server import WatchServer
        from .watch.status import Watched

        task = self.config.cascade.task
        recent = Recent(task.labels, thumbnails=config.thumbnails, clears=self.field.clears)
        self.agent.watchers.append(recent)
        server = WatchServer(
            config,
            Watched(
                self.agent,
                self.field,
                recent,
                task.name,
                [tier.name for tier in self.agent.cascade.tiers],
                links=lambda: [link.state for link in self.links],
                spool=None if self.spool is None else self.spool.facts,
                sinks=sinks.status,
            ),
        )
        opened.callback(server.close)
        say(f"watched at http://{config.host}:{server.port}/")

    def greet(self) -> None:
        """Give the cloud a moment to say who it is, before the first decision.

        Raises:
            ConfigError: a server serves another task.
        """
        self._greeting.wait(GREET_S)

    def run(self, source: Source, limit: int | None = None) -> Tally:
        """Greet the cloud, then decide until the source ends or the agent is stopped."""
        self.greet()
        return self.agent.run(source, limit)

    def close(self) -> None:
        self._opened.close()

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
