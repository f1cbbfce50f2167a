"""What each way to send examples weighs, and what it changes: bytes on the wire, labels here, labels in the cloud."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from coe.cascade import Always, Batch, LocalTier, TierError
from coe.cascade.errors import ConfigError
from coe.cascade.types import Labels
from coe.config.cascade import CascadeConfig, LocalTierConfig, RemoteTierConfig
from coe.config.open import open_tier
from coe.models.inputs import InputDecoder, Payload
from coe.protocol.remote import RemoteTier

from .plans import Plan, Say, open_plan

PAYLOADS = (
    Payload("captured"),
    Payload("pixels"),
    Payload("model-size"),
    Payload("png"),
    *(Payload("jpeg", quality) for quality in (95, 85, 75, 50)),
)
ROWS_PER_CALL = 32  # rows of a call that only asks for labels
NOT_SENT = "nothing was sent there (--ask-cloud sends these examples)"
MIN_DEADLINE_S = 10.0  # at least, for such a call: it is larger than the device's own


@dataclass(frozen=True)
class PayloadCost:
    """One way to send, over all examples.

    Args:
        bytes: of one example's call, the mean, as the agent's `bytes_sent` counts it.
        labels_changed: share of the device's labels that differ from those as captured; None: no local tier.
        decisions_changed: share of its decisions (answered here or not) that do.
        cloud_changed: share of the cloud's labels that do; None: it was not asked.
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
    say: Say,
    *,
    asks_cloud: bool,
) -> tuple[list[PayloadCost], str]:
    """Each way to send, and why the cloud was not asked ("" where it was).

    Args:
        local: the device's own first tier, whose members are asked about what would be sent.
        batches: one example each.
        asks_cloud: send them there, each in every way; else nothing leaves the device.
    """
    why_not = "" if asks_cloud else NOT_SENT
    weighed: list[PayloadCost] = []
    first: tuple[tuple[Labels, Labels] | None, Labels | None] = (None, None)
    voter = None if local is None else open_plan(local, config, Plan(False, 1), early=False)
    try:
        for payload in PAYLOADS:
            tier = _open(remote, config, payload)
            try:
                if not weighed and asks_cloud:
                    why_not = _why_not(tier)
                n_bytes = float(np.mean([tier.bytes_of(batch) for batch in batches]))
                here = None if voter is None else _answers(voter, payload, config, batches)
                there = None if why_not else _labels(tier, batches)
            except TierError as error:
                there, why_not = None, str(error)
            finally:
                tier.close()
            if not weighed:
                first = here, there
            labels, decisions = (None, None) if here is None or first[0] is None else _differ(here, first[0])
            cloud = None if there is None or first[1] is None else float(np.mean(there != first[1]))
            weighed.append(PayloadCost(payload, n_bytes, labels, decisions, cloud))
            say(f"{payload}: {n_bytes:.0f} bytes an example")
    finally:
        if voter is not None:
            voter.close()
    return weighed, why_not


def _open(remote: RemoteTierConfig, config: CascadeConfig, payload: Payload) -> RemoteTier:
    patient = max(remote.deadline_s, MIN_DEADLINE_S)
    tier = open_tier(replace(remote, send=payload, delay_s=None, deadline_s=patient), config)
    assert isinstance(tier, RemoteTier)
    return tier


def _why_not(tier: RemoteTier) -> str:
    """Why the cloud is not asked; "" where it answers."""
    try:
        tier.metadata()
    except (TierError, ConfigError) as error:
        return str(error)
    return ""


def _answers(
    tier: LocalTier, payload: Payload, config: CascadeConfig, batches: Sequence[Batch]
) -> tuple[Labels, Labels]:
    """(N,) labels and whether the answer stands, of the device's members on what would be sent."""
    encode, decoder = payload.encoder(config.task.input_spec), InputDecoder(config.task.input_spec)
    labels, stands = [], []
    for batch in batches:
        seen = decoder.batch(batch.ids, list(encode(batch)))
        vote = tier.vote(seen, Always(tier.rule.pools_scores, asks_all=True))
        labels.append(int(vote.labels[0]))
        stands.append(int(tier.rule.exits(seen, vote)[0]))
    return np.array(labels, dtype=np.int64), np.array(stands, dtype=np.int64)


def _labels(tier: RemoteTier, batches: Sequence[Batch]) -> Labels:
    """(N,) the cloud's labels; as many examples to a call as have one size."""
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


def _differ(here: tuple[Labels, Labels], first: tuple[Labels, Labels]) -> tuple[float, float]:
    return float(np.mean(here[0] != first[0])), float(np.mean(here[1] != first[1]))
