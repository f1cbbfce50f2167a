"""The cost of each payload in bytes, and the labels that it changes, on the device and in the cloud."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from coe.calibration import CalibratedVote
from coe.cascade import Always, Batch, LocalTier, TierError
from coe.cascade.errors import ConfigError
from coe.cascade.types import Labels
from coe.config.cascade import CascadeConfig, LocalTierConfig, RemoteTierConfig
from coe.config.open import open_tier
from coe.models.inputs import InputDecoder, Payload
from coe.protocol.remote import RemoteTier

from .plans import Log, Plan, open_plan

PAYLOADS = (
    Payload("captured"),
    Payload("pixels"),
    Payload("model-size"),
    Payload("png"),
    *(Payload("jpeg", quality) for quality in (95, 85, 75, 50)),
)
ROWS_PER_CALL = 32
NOT_SENT = "nothing was sent there (--ask-cloud sends these examples)"
MIN_DEADLINE_S = 10.0  # of a call, which is larger than the device's own


@dataclass(frozen=True)
class PayloadCost:
    """One payload, over all examples.

    Args:
        bytes: mean size of the call for one example, as the agent's `bytes_sent` counts it.
        labels_changed: share of the device's labels that differ from those of `captured`; None: no local tier.
        decisions_changed: share of its decisions (to answer or to defer) that differ.
        cloud_changed: share of the cloud's labels that differ; None: the cloud was not asked.
    """

    payload: Payload
    bytes: float
    labels_changed: float | None
    decisions_changed: float | None
    cloud_changed: float | None


def compare_payloads(
    remote: RemoteTierConfig,
    local: LocalTierConfig | None,
    config: CascadeConfig,
    batches: Sequence[Batch],
    log: Log,
    *,
    asks_cloud: bool,
) -> tuple[list[PayloadCost], str]:
    """The cost of each payload, and why the cloud was not asked; "" if it was.

    Args:
        local: the device's first tier, whose members vote on the examples as they would be sent.
        batches: one example each.
        asks_cloud: send all examples to the cloud in every payload; otherwise nothing leaves the device.
    """
    why_not = "" if asks_cloud else NOT_SENT
    costs: list[PayloadCost] = []
    first: tuple[tuple[Labels, Labels] | None, Labels | None] = (None, None)
    voter = None if local is None else open_plan(local, config, Plan(False, 1), early=False)
    try:
        for payload in PAYLOADS:
            tier = _open(remote, config, payload)
            try:
                if not costs and asks_cloud:
                    why_not = _why_not(tier)
                n_bytes = float(np.mean([tier.bytes_of(batch) for batch in batches]))
                here = None if voter is None else _answers(voter, payload, config, batches)
                there = None if why_not else _labels(tier, batches)
            except TierError as error:
                there, why_not = None, str(error)
            finally:
                tier.close()
            if not costs:
                first = here, there
            labels, decisions = (None, None) if here is None else map(_differing, here, first[0] or here)
            cloud = None if there is None or first[1] is None else _differing(there, first[1])
            costs.append(PayloadCost(payload, n_bytes, labels, decisions, cloud))
            log(f"{payload}: {n_bytes:.0f} bytes an example")
    finally:
        if voter is not None:
            voter.close()
    return costs, why_not


def _open(remote: RemoteTierConfig, config: CascadeConfig, payload: Payload) -> RemoteTier:
    deadline_s = max(remote.deadline_s, MIN_DEADLINE_S)
    tier = open_tier(replace(remote, send=payload, delay_s=None, deadline_s=deadline_s), config)
    assert isinstance(tier, RemoteTier)
    return tier


def _why_not(tier: RemoteTier) -> str:
    """Why the cloud cannot be asked; "" if it answers."""
    try:
        tier.metadata()
    except (TierError, ConfigError) as error:
        return str(error)
    return ""


def _answers(
    tier: LocalTier, payload: Payload, config: CascadeConfig, batches: Sequence[Batch]
) -> tuple[Labels, Labels]:
    """(N,) labels and (N,) 1 where the tier answers, 0 where it defers, of examples as they would be sent."""
    encode, decoder = payload.encoder(config.task.input_spec), InputDecoder(config.task.input_spec)
    labels, exits = [], []
    for batch in batches:
        sent = decoder.batch(batch.ids, list(encode(batch)))
        vote = tier.vote(sent, Always(tier.rule.pools_scores, asks_all=True))
        if isinstance(tier.rule, CalibratedVote):
            vote = tier.rule.fuse(tier.name, vote, ())
        labels.append(int(vote.labels[0]))
        exits.append(int(tier.rule.exits(sent, vote)[0]))
    return np.array(labels, dtype=np.int64), np.array(exits, dtype=np.int64)


def _labels(tier: RemoteTier, batches: Sequence[Batch]) -> Labels:
    """(N,) the cloud's labels; examples of one size share a call."""
    labels: list[Labels] = []
    for start in range(0, len(batches), ROWS_PER_CALL):
        several = batches[start : start + ROWS_PER_CALL]
        if len({batch.x.shape for batch in several}) == 1:
            several = [_joined(several)]
        labels += [tier.vote(batch, Always()).labels for batch in several]
    return np.concatenate(labels)


def _joined(batches: Sequence[Batch]) -> Batch:
    captured = [batch.captured for batch in batches if batch.captured is not None]
    return Batch(
        tuple(name for batch in batches for name in batch.ids),
        np.concatenate([batch.x for batch in batches]),
        np.concatenate(captured) if len(captured) == len(batches) else None,
    )


def _differing(labels: Labels, others: Labels) -> float:
    return float(np.mean(labels != others))
