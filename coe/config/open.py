"""From a configured cascade to a running one: members loaded, remote tiers dialled."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from coe.cascade.cascade import Cascade
from coe.cascade.tier import LocalTier, Tier
from coe.link import DelayedTier, TierBehindLink
from coe.models.input_spec import InputSpec
from coe.models.loading import LoadedMember, load
from coe.models.pool import MemberPool, cheapest_first, plan_threads, seconds_each
from coe.protocol.credentials import dial
from coe.protocol.remote import RemoteTier
from coe.protocol.trace_context import outgoing

from . import format_seconds
from .cascade import CascadeConfig, LocalTierConfig, RemoteTierConfig, TierConfig

Say = Callable[[str], None]


def open_cascade(config: CascadeConfig, say: Say = lambda line: None) -> Cascade:
    """The cascade, ready to decide. `say` is told what each tier runs on.

    Raises:
        ModelError, RuntimeMissing: a member cannot be loaded; those loaded before are closed.
    """
    tiers: list[Tier] = []
    with ExitStack() as opened:
        for tier in config.tiers:
            tiers.append(open_tier(tier, config, say))
            opened.callback(tiers[-1].close)
        opened.pop_all()
    return Cascade(tiers, keep_last_answer=config.keep_last_answer)


def open_tier(tier: TierConfig, config: CascadeConfig, say: Say = lambda line: None) -> Tier:
    """One tier, ready to vote."""
    if isinstance(tier, LocalTierConfig):
        opened = _open_local(tier, config.task.input_spec, say)
    else:
        opened = _open_remote(tier, config, say)
        if tier.link_model is not None:
            say(f"tier {tier.name}: calls wait as behind a model of a link")
            opened = TierBehindLink(opened, tier.link_model)
    if tier.delay is None:
        return opened
    say(f"tier {tier.name}: an injected delay of {tier.delay.round_trip_s * 1000:g} ms a round trip")
    return DelayedTier(opened, tier.delay)


def warm_up(tier: Tier, input_spec: InputSpec, sizes: Iterable[int]) -> None:
    """Ask a tier's members about blank examples, so that no caller is the first with a batch of such a size.

    A remote tier is not asked. `sizes` are numbers of rows; as a rule 1 and the largest batch there will be.
    """
    here = tier.tier if isinstance(tier, DelayedTier) else tier
    if isinstance(here, LocalTier):
        here.warm_up(input_spec.blank(), sizes)


def _open_local(tier: LocalTierConfig, input_spec: InputSpec, say: Say) -> Tier:
    if any(spec.architecture for spec in tier.members if spec.format == "torch"):
        _register_architectures()
    plan = plan_threads(tier.members, tier.threads, side_by_side=tier.parallel)
    members: list[LoadedMember] = []
    how = plan.describe()
    with ExitStack() as opened:
        for spec, threads in zip(tier.members, plan.each, strict=True):
            members.append(load(spec, replace(tier.options, threads=threads)))
            opened.callback(members[-1].close)
        if tier.early and len(members) > 1:
            how += ", stopping early"
            if plan.at_once == 1:
                members, order = _in_order(members, tier.order, input_spec)
                how += f", {order}"
        opened.pop_all()
    for member in members:
        say(f"tier {tier.name}: {member.name} on {member.runs_on}")
    if len(members) > 1:
        say(f"tier {tier.name}: {len(members)} members vote {how}")
    timeout_s = math.inf if tier.member_timeout_s is None else tier.member_timeout_s
    pool = MemberPool.of(tier.name, members, plan.at_once, timeout_s) if tier.parallel else None
    return LocalTier(tier.name, members, tier.rule, early=tier.early, pool=pool)


def _in_order(members: list[LoadedMember], order: str, input_spec: InputSpec) -> tuple[list[LoadedMember], str]:
    """The members as they are asked, and that order for people. No result depends on it, only who is spared."""
    if order == "fixed":
        return members, "as listed"
    seconds = seconds_each(members, input_spec.blank())
    ranked = cheapest_first(seconds)
    costs = ", ".join(f"{members[at].name} {format_seconds(seconds[at], 2)}" for at in ranked)
    return [members[at] for at in ranked], f"cheapest first: {costs}"


def _open_remote(tier: RemoteTierConfig, config: CascadeConfig, say: Say) -> Tier:
    say(f"tier {tier.name}: {tier.model} at {tier.address}, deadline {tier.deadline_s * 1000:g} ms")
    return RemoteTier(
        tier.name,
        tier.addresses,
        tier.model,
        tier.rule,
        n_labels=len(config.task.labels),
        labels=config.task.labels,
        output=tier.output,
        fingerprint=config.task.fingerprint,
        deadline_s=tier.deadline_s,
        encode=tier.send.encoder(config.task.input_spec),
        prepare=config.task.input_spec.prepare,
        n_tiers=tier.n_tiers,
        proxy=tier.proxy,
        stream=tier.stream,
        dial=partial(dial, security=tier.security),
        headers=lambda: tuple(outgoing().items()),
    )


def _register_architectures() -> None:
    """Networks that installed distributions offer for torch weights become known; only where a config names one."""
    from importlib.metadata import entry_points

    from coe.models.torch import ARCHITECTURES, import_torch

    import_torch()  # a missing torch names its pip install before the networks ask for it
    for entry in entry_points(group="coe.architectures"):
        ARCHITECTURES.update(entry.load())
