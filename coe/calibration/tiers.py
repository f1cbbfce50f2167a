"""A running cascade, calibrated on labelled examples: its tiers stay, rule and thresholds follow from the labels."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from datetime import date

import numpy as np

from coe.cascade import Accounting, Always, Batch, Cascade, ConfigError, LocalTier, tier_charges
from coe.cascade.types import Labels

from .choose import (
    FEW,
    Budget,
    Certifier,
    Panel,
    Tiers,
    best_single,
    candidates,
    cheapest_certified,
    front,
    most_accurate,
)
from .rule import rules_of
from .table import Calibration, TableMember

CHUNK = 256  # examples that a tier is asked about together
LEAST = 20  # labelled examples


def calibrate(
    cascade: Cascade,
    batch: Batch,
    truth: Labels,
    table: Calibration,
    *,
    costs: Sequence[Sequence[float]] | None,
    max_cost: float,
    epsilon: float,
    delta: float,
    certified: bool,
    seed: int,
) -> tuple[Cascade, Calibration]:
    """The cascade by the rule chosen, and its table.

    Args:
        truth: (B,) int64.
        table: whose task is kept.
        costs: of each member of each tier on one example; None: seconds, as they were needed here.

    Raises:
        ConfigError: too few examples, no threshold is within `max_cost`, or none is certified.
    """
    if len(truth) < LEAST:
        raise ConfigError([f"y: expected {LEAST} labels at least, got {len(truth)} (3,000 show one point as a rule)"])
    if len(truth) < FEW:
        warnings.warn(f"{len(truth)} labels are few: they show large differences alone", stacklevel=4)
    panel, tiers, members, seconds = _recorded(cascade, batch, truth, len(table.labels))
    charged = seconds if costs is None else costs
    if [len(own) for own in charged] != [len(own) for own in tiers]:
        expected = [len(own) for own in tiers]
        raise ConfigError([f"costs: expected {expected} numbers, one a member, got {[len(own) for own in charged]}"])
    cost = dict(zip(panel.names, [float(one) for own in charged for one in own], strict=True))
    order = np.random.default_rng(seed).permutation(len(truth))
    ranked, unseen = (panel.take(half) for half in np.array_split(order, 2))
    reference = best_single(ranked, cost)

    def charges(tiers: Tiers) -> list[float]:
        own = [[cost[name] for name in tier] for tier in tiers]
        return [float(one) / cost[reference] for one in tier_charges(own, Accounting.REACH_SERIAL)]

    certifier = Certifier(ranked, unseen, reference, panel.names, epsilon, delta)
    found = front(candidates(ranked, [tiers], [Budget(charges, max_cost)]))
    if not found:
        least = front(candidates(ranked, [tiers], [Budget(charges, np.inf)]))[0].cost
        raise ConfigError([f"max_cost: expected {least:.2f} at least for these tiers, got {max_cost:g} (raise it)"])
    choice = (cheapest_certified if certified else most_accurate)(found, certifier)
    if choice is None:
        best = most_accurate(found, certifier)
        needed = None if best is None else best.bound.labels_needed
        more = "no number of labels would do" if needed is None else f"about {needed:,} labels would do"
        raise ConfigError([f"certified: no threshold of these tiers is certified by {len(truth):,} labels ({more})"])
    system = choice.system
    table = replace(
        table, rule=system.rule, tiers=members, stages=system.stages, thresholds=system.written_thresholds,
        n=len(truth), date=date.today().isoformat(), bound=choice.bound,
        reference=dict(zip(panel.names, sum(members, ()), strict=True))[reference].name,
    )  # fmt: skip
    rules = rules_of(table, [tier.n_tiers for tier in cascade.tiers])
    for tier, rule in zip(cascade.tiers, rules, strict=True):
        tier.rule = rule
    return Cascade(cascade.tiers, keep_last_answer=cascade.keep_last_answer, last_rule=rules[-1]), table


def _recorded(
    cascade: Cascade, batch: Batch, truth: Labels, n_labels: int
) -> tuple[Panel, Tiers, tuple[tuple[TableMember, ...], ...], list[list[float]]]:
    """What every member says of every example; members by tier, as the panel and as the table names them; seconds."""
    ballots, tiers, members, seconds = [], [], [], []
    whole = replace(batch, asks_members=True)
    for number, tier in enumerate(cascade.tiers):
        started = time.perf_counter()
        rows = np.array_split(np.arange(len(batch)), range(CHUNK, len(batch), CHUNK))
        parts = [tier.vote(whole.take(own), Always(asks_all=True)).ballots() for own in rows]
        took = (time.perf_counter() - started) / len(batch)
        labels, scores = (np.concatenate(own, axis=1) for own in zip(*parts, strict=True))
        own = tier.members if isinstance(tier, LocalTier) else ()
        names = [member.name for member in own] or [f"{tier.name}[{place}]" for place in range(len(labels))]
        ballots.append((labels, scores.astype(np.float64)))
        tiers.append(tuple(f"{number}:{place}:{name}" for place, name in enumerate(names)))
        members.append(tuple(map(TableMember, names)))
        seconds.append([took / len(names)] * len(names))
    labels, scores = (np.concatenate(own) for own in zip(*ballots, strict=True))
    return (
        Panel(tuple(name for tier in tiers for name in tier), labels, scores, truth, n_labels),
        tuple(tiers),
        tuple(members),
        seconds,
    )
