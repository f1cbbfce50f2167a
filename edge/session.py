"""One agent and everything it needs, opened from its config: for a run, or for `--dry-run`.

A server of another task (other labels) stops the agent with a clear error. One that cannot be reached does not:
the device answers by itself until it can be.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

from coe.cascade.cascade import Cascade
from coe.cascade.errors import ConfigError, TierError
from coe.config import format_seconds
from coe.config.open import open_cascade
from coe.models.inputs import InputDecoder
from coe.protocol.remote import remote_of

from .agent import Agent
from .config import AgentConfig
from .field.monitors import open_monitors
from .field.privacy import describe_send_policy
from .link import LinkLog, LinkState
from .linked_tier import watch_links
from .observe.config import ObserveConfig
from .sinks import Sinks, open_sinks
from .sources import Source, open_source
from .spool import SpoolConfig
from .tally import Tally

if TYPE_CHECKING:
    from .spool.recovery import FileHistory
    from .spool.spool import Spool


class RemoteTierCheck:
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


METADATA_WAIT_S = 0.5  # how long a start waits to hear from the cloud before it goes on without


class AgentSession:
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
        memory: FileHistory | None = None,
    ) -> None:
        self.config = config
        self.spool: Spool | None = None
        self._link_log = LinkLog(tell)
        with ExitStack() as opened:
            sink = open_sinks(config.sinks, config.cascade.task.labels, tell)
            opened.callback(sink.close)
            cascade, self.links = watch_links(
                open_cascade(config.cascade, say),
                config.link,
                on_change=self._link_changed,
                reserve_s=lambda: self.agent.local_s.high,  # where more than the config's
            )
            opened.callback(cascade.close)
            decoder = InputDecoder(config.cascade.task.input_spec)
            decoder.warm_up()
            self.agent = Agent(
                cascade,
                decoder,
                sink,
                max_in_flight=config.max_in_flight,
                ordered=config.ordered,
                deadline_s=config.deadline_s,
                interval_s=config.source.interval_s,
            )
            self.agent.tally = tally or self.agent.tally
            self.field = open_monitors(config.field, self.agent, config.cascade.task.labels, config.state)
            opened.callback(self.field.close)
            if config.spool is not None:
                self._keep(config.spool, opened, sink, tell)
            if memory is not None:
                memory.attach(sink, () if self.spool is None else self.spool.recovered)
                opened.callback(memory.detach)
            if config.watch is not None:
                self._watch(config.watch, opened, sink, say)
            self._remote_check = RemoteTierCheck(cascade, self.agent, tell)
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
            policy=describe_send_policy(self.config.field, self.config.cascade),
        )
        opened.callback(self.spool.close)

    def _link_changed(self, state: LinkState) -> None:
        self._link_log.changed(state)
        spool = self.spool
        if spool is not None and state.is_up:
            spool.on_link_up()

    def _watch(self, config: ObserveConfig, opened: ExitStack, sinks: Sinks, say: Callable[[str], None]) -> None:
        """Metrics and the page; imported only where they are asked for."""
        from .observe.server import ObserveServer
        from .observe.status import AgentView, RecentDecisions

        task = self.config.cascade.task
        recent = RecentDecisions(task.labels, thumbnails=config.thumbnails, may_be_shared=self.field.may_be_shared)
        self.agent.observers.append(recent)
        server = ObserveServer(
            config,
            AgentView(
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

    def check_remote_tiers(self) -> None:
        """Give the cloud a moment to say who it is, before the first decision.

        Raises:
            ConfigError: a server serves another task.
        """
        self._remote_check.wait(METADATA_WAIT_S)

    def run(self, source: Source, limit: int | None = None) -> Tally:
        """Greet the cloud, then decide until the source ends or the agent is stopped."""
        self.check_remote_tiers()
        return self.agent.run(source, limit)

    def close(self) -> None:
        self._opened.close()

    def __enter__(self) -> AgentSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def dry_run(config: AgentConfig) -> int:
    """0 if all is well, 1 if a server cannot be reached.

    Raises:
        ConfigError, ModelError, RuntimeMissing: what has to be mended first.
    """
    task = config.cascade.task
    print(f"task {task.name}: {len(task.labels)} labels, fingerprint {task.fingerprint}")
    open_source(config.source, once=True)
    cascade = open_cascade(config.cascade, print)
    code = 0
    try:
        for tier in cascade.tiers:
            remote = remote_of(tier)
            if remote is None:
                continue
            started = time.perf_counter()
            try:
                told = remote.metadata()
            except TierError as error:
                print(f"tier {tier.name}: FAILED {error}")
                code = 1
                continue
            took = format_seconds(time.perf_counter() - started)
            print(f"tier {tier.name}: answers in {took}: {told.name} on {told.platform or 'an unnamed platform'}")
    finally:
        cascade.close()
    print("ready" if code == 0 else "not all tiers can be reached; the device would answer by itself")
    return code
