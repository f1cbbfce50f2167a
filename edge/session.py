"""One agent and everything it needs, opened from its config: for a run, or for `--dry-run`.

A server that cannot be reached, refuses, or serves another task (other labels) stops nothing: the device answers by
itself until it can be asked.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from coe.cascade.errors import TierError, TierRefused
from coe.config import format_seconds
from coe.config.cascade import rule_in_words
from coe.config.open import open_cascade
from coe.models.inputs import InputDecoder
from coe.protocol.remote import remote_of

from .agent import Agent
from .config import AgentConfig
from .crash_journal import CrashJournal
from .field.drift import DriftResponse
from .field.monitors import open_monitors
from .field.privacy import describe_send_policy
from .link import LinkLog, LinkState
from .link_budget import LinkBudget
from .linked_tier import LinkedTier, watch_links
from .observe.config import ObserveConfig
from .sinks import Sinks, open_sinks, outbox_names
from .sources import Source, open_source
from .spool import SpoolConfig
from .tally import Tally

if TYPE_CHECKING:
    from .spool.history import FileHistory
    from .spool.spool import Spool
    from .spool.store import SpoolStore

log = logging.getLogger(__name__)


class RemoteTierCheck:
    """Asks every remote tier for its metadata, on a thread of its own."""

    def __init__(self, links: Sequence[LinkedTier], agent: Agent) -> None:
        self._agent = agent
        self._links = links
        self._thread = threading.Thread(target=self._ask, daemon=True)
        if links:
            self._thread.start()

    def wait(self, seconds: float) -> None:
        """Wait until all answered, at most `seconds`: a slow link must not delay the first decision."""
        if self._links:
            self._thread.join(seconds)

    def _ask(self) -> None:
        for link in self._links:
            try:
                link.check()
                self._agent.tally.cloud = "ok"
            except TierRefused as error:  # its link's change is logged
                self._agent.tally.cloud = error.reason
            except TierError as error:
                self._agent.tally.cloud = error.reason
                log.warning("%s; the device answers by itself until it can be reached", error)


SINK_AGAIN_S = 1.0
METADATA_WAIT_S = 0.5  # how long a start waits for the servers' metadata


class AgentSession:
    """One agent, with its cascade, sinks, links, monitors, spool and status page; closes them all.

    What runs on what is logged at level DEBUG.

    Args:
        tally: of an agent before, to continue.
        history: of watched folders; it uses this agent's sinks until the session is closed.
    Raises:
        CascadeError: something cannot be opened; what was opened before is closed.
    """

    def __init__(self, config: AgentConfig, tally: Tally | None = None, history: FileHistory | None = None) -> None:
        self.config = config
        self.spool: Spool | None = None
        self.budget: LinkBudget | None
        self._link_log = LinkLog()
        with ExitStack() as opened:
            store = self._open_store(opened)
            sinks = self._sinks = open_sinks(
                config.sinks,
                config.cascade.task.labels,
                commit_s=config.commit_s,
                commit_count=config.commit_count,
                outbox=store,
            )
            opened.callback(sinks.close)
            limits, self.budget = config.link, None
            if limits.max_bytes_per_month or limits.max_examples_per_hour or config.field.same_scene:
                self.budget = LinkBudget(limits, config.state / "link.json")
                opened.callback(self.budget.close)
            own = open_cascade(config.cascade, log.debug)
            response = None if config.field.drift is None else DriftResponse(config.field.drift.on_drift)
            if response is not None:
                response.attach(own.tiers)
            cascade, self.links = watch_links(
                own,
                config.link,
                on_change=self._link_changed,
                reserve_s=lambda: self.agent.local_s.high,
                budget=self.budget,
            )
            opened.callback(cascade.close)
            decoder = InputDecoder(config.cascade.task.input_spec)
            decoder.warm_up()
            self.agent = Agent(
                cascade,
                decoder,
                sinks,
                max_in_flight=config.max_in_flight,
                ordered=config.ordered,
                deadline_s=config.deadline_s,
                interval_s=config.source.interval_s,
            )
            self.agent.tally = tally or self.agent.tally
            if any(part.kind == "folder" for part in config.source.each):  # which gives an example again after a crash
                self.agent.journal = CrashJournal(config.state / "under-way")
                opened.callback(self.agent.journal.close)
            if self.budget is not None:
                self.agent.observers.append(self.budget)
            self.field = open_monitors(config.field, self.agent, config.cascade.task.labels, config.state, response)
            if response is not None:
                self.agent.is_uncertain = lambda: response.is_uncertain
            opened.callback(self.field.close)
            if config.spool is not None and store is not None:
                self._open_spool(store, opened, sinks)
            if history is not None:
                history.attach(sinks, () if self.spool is None else self.spool.recovered)
                opened.callback(history.detach)
            if config.watch is not None:
                self._open_status_page(config.watch, opened, sinks)
            self._publish_state()
            self._remote_check = RemoteTierCheck(self.links, self.agent)
            opened.callback(self.agent.stop.set)  # whoever waits for a sink waits no more
            self._opened = opened.pop_all()

    def _open_store(self, opened: ExitStack) -> SpoolStore | None:
        """The spool's database, where the spool or a sink that acknowledges needs it."""
        config = self.config
        if config.spool is None and not any(sink.acknowledges for sink in config.sinks):
            return None
        from .spool.spool import log_event  # loads sqlite3
        from .spool.store import SpoolStore

        spool = config.spool or SpoolConfig(config.state / "spool.db")
        store = SpoolStore(spool, log_event if config.spool is None else None)
        opened.callback(store.close)
        if n := store.keep_outboxes(outbox_names(config.sinks)):
            log.warning("%d records were dropped: they waited for a sink that is not configured any more", n)
        return store

    def _open_spool(self, store: SpoolStore, opened: ExitStack, sinks: Sinks) -> None:
        from .spool.spool import Spool  # loads sqlite3

        self.spool = Spool(
            store,
            self.agent,
            sinks,
            is_up=self._may_send,
            policy=describe_send_policy(self.config.field, self.config.cascade),
        )
        opened.callback(self.spool.close)

    def _publish_state(self) -> None:
        """To the sinks that show it."""
        for sink in self._sinks.health():
            if (watch := getattr(getattr(sink, "transport", None), "watch", None)) is not None:
                watch(self._state)

    def _state(self) -> dict[str, Any]:
        """What Home Assistant shows of the agent."""
        tally = self.agent.tally
        is_up = all(link.state.is_up for link in self.links)
        return {"kept_share": round(tally.kept_share, 6), "link_up": is_up, "examples": tally.n}

    def _may_send(self) -> bool:
        return all(link.state.is_up for link in self.links) and (self.budget is None or self.budget.allows())

    def _link_changed(self, state: LinkState) -> None:
        self._link_log.changed(state)
        spool = self.spool
        if spool is not None and state.is_up:
            spool.sender.retry()
        self._publish_state()

    def _open_status_page(self, config: ObserveConfig, opened: ExitStack, sinks: Sinks) -> None:
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
                budget=None if self.budget is None else self.budget.report,
                spool=None if self.spool is None else self.spool.facts,
                sinks=sinks.health,
            ),
        )
        opened.callback(server.close)
        log.debug("status page at http://%s:%d/", config.host, server.port)

    def check_remote_tiers(self) -> None:
        """Wait a moment for the servers' metadata, before the first decision."""
        self._remote_check.wait(METADATA_WAIT_S)

    def wait_for_sinks(self) -> None:
        """From now on wait where every sink fails, until one works or the agent is stopped: a full disk is emptied."""
        self._sinks.waits_after = self._wait_for_sink

    def _wait_for_sink(self, error: OSError) -> bool:
        self.agent.sink_awaited_at = time.monotonic()
        return error.errno != errno.EIO and not self.agent.stop.wait(SINK_AGAIN_S)  # EIO: as where its reader ended

    def run(self, source: Source, limit: int | None = None) -> Tally:
        """Check the remote tiers, then decide until the source ends or the agent is stopped."""
        self.check_remote_tiers()
        return self.agent.run(source, limit)

    def close(self) -> None:
        self._opened.close()

    def __enter__(self) -> AgentSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def dry_run(config: AgentConfig) -> int:
    """Print whether the config, its models and its servers work; 0 if all do, 1 if a server cannot be reached.

    Raises:
        ConfigError, ModelError, RuntimeMissing: what has to be fixed first.
    """
    task = config.cascade.task
    print(f"task {task.name}: {len(task.labels)} labels, fingerprint {task.fingerprint}")
    open_source(config.source, once=True)
    cascade = open_cascade(config.cascade, print)
    for own in config.cascade.tiers:
        print(f"tier {own.name}: {rule_in_words(own, is_last=own is config.cascade.tiers[-1])}")
    code = 0
    try:
        for tier in cascade.tiers:
            remote = remote_of(tier)
            if remote is None:
                continue
            started = time.perf_counter()
            try:
                metadata = remote.metadata()
                took = format_seconds(time.perf_counter() - started)
                answer = remote.describe_answer(InputDecoder(task.input_spec).blank())
            except TierError as error:
                print(f"tier {tier.name}: FAILED {error}")
                code = 1
                continue
            platform = metadata.platform or "an unnamed platform"
            print(f"tier {tier.name}: answers in {took}: {metadata.name} on {platform}")
            print(f"tier {tier.name}: {answer}")
    finally:
        cascade.close()
    print("ready" if code == 0 else "not all tiers can be reached; the device would answer by itself")
    return code
