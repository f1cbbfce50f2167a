"""A remote tier behind a circuit breaker, with the thread that probes its link and reconnects it."""

from __future__ import annotations

import errno
import logging
import math
import random
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import Final

from coe.cascade.cascade import Cascade
from coe.cascade.errors import (
    ConfigError,
    TierError,
    TierOverloaded,
    TierRefused,
    TierRejected,
    TierTimeout,
    TierUnavailable,
)
from coe.cascade.rule import DeferralRule
from coe.cascade.tier import Tier
from coe.cascade.types import Batch, Vote
from coe.config import format_seconds
from coe.protocol.remote import remote_of

from .link import QUIET_S, CircuitBreaker, LinkConfig, LinkState
from .link_budget import LinkBudget

RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE = 0x1, 0x10, 0x40  # rtnetlink(7)
RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE = 0x100, 0x400
RTMGRP_ALL = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE
RECEIVE_BYTES = 65536


class NetworkChanges:
    """Changes of this machine's interfaces, addresses and routes; on a system other than Linux, none are seen."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        with suppress(OSError, AttributeError):  # a sandbox that forbids it, another system
            opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
            self._socket = opened
            opened.bind((0, RTMGRP_ALL))

    def has_any(self) -> bool:
        """True if there was one since the last call; does not wait."""
        found = False
        while self._socket is not None:
            try:
                self._socket.recv(RECEIVE_BYTES)
            except OSError as error:
                return found or error.errno == errno.ENOBUFS  # more of them than fit
            found = True
        return found

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


log = logging.getLogger(__name__)

OnChange = Callable[[LinkState], None]

FITS = 0.9  # a call with less than this share of the best round trip left cannot have its answer in time
FAIR_S = 0.05  # a missed deadline shorter than this, if not the tier's own, says nothing about the link
LEAST_PROBE_S = 1.0
LOOK_S = 0.25  # between two checks whether this machine's network changed, while the link is down
CLOSE_S = 5.0  # that closing waits for a probe under way
DRAINING = "the server is draining, or not ready yet"
REBUILD: Final = object()


class LinkedTier:
    """`tier`, asked only while its link works; a link that is down is TierUnavailable at once.

    It wraps an injected delay, which stands for the link: a call that is refused does not wait for the delay, and the
    measured times of calls include it.

    Args:
        tier: remote, or remote behind an injected delay.
        on_change: as `listen` takes it.
        reserve_s: how much of a batch's deadline to keep for the answer of the tier before, should this one give none;
            called for each batch with a deadline; the config's value is used where that is more.
        budget: of all links together.
        rng: varies the waits between probes.
    Raises:
        ValueError: the tier is a local one.
    """

    def __init__(
        self,
        tier: Tier,
        config: LinkConfig | None = None,
        *,
        on_change: OnChange | None = None,
        reserve_s: Callable[[], float] | None = None,
        budget: LinkBudget | None = None,
        rng: random.Random | None = None,
    ) -> None:
        remote = remote_of(tier)
        if remote is None:
            raise ValueError(f"tier {tier.name}: expected a remote tier, got one with no link")
        self.tier = tier
        self.name = tier.name
        self.rule = tier.rule
        self.config = config or LinkConfig()
        self._remote = remote
        self._reserve_s = reserve_s
        self._budget = budget
        self._listeners: list[OnChange] = [] if on_change is None else [on_change]
        self._rejected_at = -math.inf  # `time.monotonic()` of the latest answer that could not be used
        self._inbox: SimpleQueue[LinkState | object | None] = SimpleQueue()
        self._breaker = CircuitBreaker(tier.name, self.config, rng=rng, changed=self._inbox.put)
        self._thread = threading.Thread(target=self._watch, name=f"coe-link-{tier.name}", daemon=True)
        self._thread.start()

    @property
    def n_tiers(self) -> int:
        return self.tier.n_tiers

    @property
    def waits(self) -> bool:
        return self.tier.waits

    @property
    def state(self) -> LinkState:
        """The link's state now; read without a lock."""
        return self._breaker.state

    def listen(self, on_change: OnChange) -> None:
        """Call `on_change` with each new status from here on.

        In order, on the link's own thread, which probes as well: it must not take long. What waits for the link can
        start as soon as `is_up`; when half-open, its first call is the trial.
        """
        self._listeners.append(on_change)

    def vote(self, batch: Batch, rule: DeferralRule) -> Vote:
        """The tier's answers.

        Raises:
            TierError: also without a call: TierUnavailable where the link is down, TierTimeout where no answer can
                come in time, TierOverloaded where the server asked for no calls until later, TierRefused where it
                refused before, OverCap and OverBudget where the links' budget is used up.
        """
        batch, left_s = self._within_budget(batch)
        ticket = self._breaker.admit()
        started = time.perf_counter()
        try:
            vote = self._ask(batch, rule)
        except TierOverloaded as error:
            self._breaker.overloaded(error.retry_after_s)
            raise
        except (TierTimeout, TierUnavailable) as error:
            if isinstance(error, TierTimeout) and left_s < min(self._remote.deadline_s, FAIR_S):
                self._breaker.undecided(ticket)
            elif self._breaker.failed(ticket, error):
                self._inbox.put(REBUILD)
            raise
        except TierRejected as error:
            self._rejected(ticket, error)
            raise
        except BaseException:
            self._breaker.undecided(ticket)
            raise
        self._breaker.answered(time.perf_counter() - started)
        return vote

    def check(self) -> None:
        """Ask for the server's metadata; where it refuses, or serves another task, probes find out when it no longer
        does, and no call is made until then.

        Raises:
            TierError: it cannot be asked; TierRefused: it refuses.
        """
        try:
            self._remote.metadata()
        except (ConfigError, TierRefused) as error:
            refusal = TierRefused(self.name, str(error).removeprefix(f"tier {self.name}: "))
            self._breaker.refused(refusal)
            raise refusal from None

    def _rejected(self, ticket: int, error: TierRejected) -> None:
        """Count it. What says nothing about the next call is logged here, once in a while."""
        self._breaker.count_refusal()
        if isinstance(error, TierRefused):
            self._breaker.failed(ticket, error)
            return
        self._breaker.undecided(ticket)
        now = time.monotonic()
        if now - self._rejected_at >= QUIET_S:
            text = "%s; the device answers by itself (more of these within a minute are only counted)"
            log.warning(text, error)
        self._rejected_at = now

    def _ask(self, batch: Batch, rule: DeferralRule) -> Vote:
        if self._budget is None:
            return self.tier.vote(batch, rule)
        self._budget.take(self.name, len(batch))
        try:
            vote = self.tier.vote(batch, rule)
        except TierError as error:
            self._budget.spend(error.call)
            raise
        self._budget.spend(vote.call)
        return vote

    def complete(self, batch: Batch, vote: Vote) -> Vote:
        return self.tier.complete(batch, vote)

    def close(self) -> None:
        """Close the tier and end its thread; twice is fine."""
        self._inbox.put(None)
        self.tier.close()  # which ends a probe under way
        if self._thread is not threading.current_thread():
            self._thread.join(CLOSE_S)

    def _within_budget(self, batch: Batch) -> tuple[Batch, float]:
        """The batch with the reserve taken off its deadline, and the seconds that are left for a call.

        Raises:
            TierTimeout: the link is up, but no answer can come within them.
        """
        left_s = self._remote.deadline_s
        if batch.deadline != math.inf:
            asked_s = 0.0 if self._reserve_s is None else self._reserve_s()
            batch = replace(batch, deadline=batch.deadline - max(asked_s, self.config.reserve_s))
            left_s = min(left_s, batch.deadline - time.monotonic())
        best_s = self._breaker.best_s
        if self.state.is_up and (left_s <= 0 or left_s < FITS * best_s):
            text = f"{format_seconds(max(left_s, 0.0))} of the example's deadline are left for a call"
            best = "" if math.isnan(best_s) else f", and none was quicker than {format_seconds(best_s)}"
            raise TierTimeout(self.name, text + best)
        return batch, left_s

    def _watch(self) -> None:
        """Until closed: pass on changes, reconnect, and probe when it is time."""
        network: NetworkChanges | None = None  # looked at while the link is down
        while True:
            wait_s = self.state.next_probe_at - time.monotonic()
            try:
                message = self._inbox.get(timeout=None if wait_s == math.inf else min(max(wait_s, 0.0), LOOK_S))
            except Empty:
                if wait_s <= LOOK_S:
                    self._probe()
                elif network is not None and network.has_any():
                    self._breaker.hasten()
                continue
            if isinstance(message, LinkState):
                if network is not None:
                    network.close()
                network = None if message.is_up else NetworkChanges()
                self._notify(message)
            elif message is REBUILD:
                self._rebuild()
            else:
                break
        if network is not None:
            network.close()

    def _rebuild(self) -> str:
        """Reconnect; what is wrong with that, in words."""
        try:
            self._remote.redial()
        except ConfigError as error:
            log.warning("tier %s: cannot reconnect: %s", self.name, error)
            return str(error)
        self._breaker.rebuilt()
        return ""

    def _probe(self) -> None:
        """Ask whether the tier takes calls, on a new connection: names are looked up again, and gRPC's own waits
        between attempts are not added to ours."""
        error = self._rebuild()
        deadline_s = self.config.probe_s or max(LEAST_PROBE_S, self._remote.deadline_s)
        try:
            is_ready = self._remote.is_ready(deadline_s)
            refusal = "" if is_ready else self._refusal(deadline_s)
        except TierRefused as answer:
            self._breaker.probed(False, str(answer), is_refused=True)
        except (TierOverloaded, TierRejected) as answer:  # the link works
            self._breaker.probed(True, str(answer))
        except TierError as failure:
            self._breaker.probed(False, error or str(failure))
        else:
            why = "" if is_ready else refusal or DRAINING
            self._breaker.probed(is_ready, why, is_draining=bool(why) and not refusal, is_refused=bool(refusal))

    def _refusal(self, deadline_s: float) -> str:
        """Why a server that is there takes no calls of this device: another task, no such model; "" where it waits."""
        try:
            self._remote.metadata(deadline_s)
        except (ConfigError, TierRefused) as error:
            return str(error)
        except TierError:
            return ""
        return ""

    def _notify(self, state: LinkState) -> None:
        for listener in tuple(self._listeners):
            try:
                listener(state)
            except Exception:  # its bug must not end the probes
                log.exception("tier %s: a listener to its link failed", self.name)


def watch_links(
    cascade: Cascade,
    config: LinkConfig | None = None,
    *,
    on_change: OnChange | None = None,
    reserve_s: Callable[[], float] | None = None,
    budget: LinkBudget | None = None,
) -> tuple[Cascade, list[LinkedTier]]:
    """The same cascade with each remote tier as a `LinkedTier`, and those tiers. Close the new cascade alone.

    Args:
        on_change, reserve_s, budget: as LinkedTier takes them; on_change is called from a thread for each tier.
    """
    link = partial(LinkedTier, config=config, on_change=on_change, reserve_s=reserve_s, budget=budget)
    tiers = [tier if remote_of(tier) is None else link(tier) for tier in cascade.tiers]
    linked = [tier for tier in tiers if isinstance(tier, LinkedTier)]
    if not linked:
        return cascade, []
    return Cascade(tiers, keep_last_answer=cascade.keep_last_answer, last_rule=cascade.rules[-1]), linked
