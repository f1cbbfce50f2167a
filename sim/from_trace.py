"""A recording made of a bundled trace: what each system would do where the models take the times they took.

The vote, the rule and the order of the members are those of the bundled configs, through `coe.cascade`; the times are
the trace's, of one example alone on one thread. Nothing is known of the wire: a call takes the server's time, and
sends the example's bytes in the message that would carry them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from coe.assembly import LocalTierConfig
from coe.cascade import Batch, Cascade, ConfigError, LocalTier, Vote
from coe.cascade.types import Array
from coe.models import TableMember
from coe.wire import inference_pb2 as pb
from coe.wire.convert import add_input
from coe.wire.service import FRAME_BYTES, INPUT

from .records import Record
from .systems import SYSTEMS, Bundle
from .traces import Trace

Seconds = NDArray[np.float64]


def recording_of(bundle: Bundle, trace: Trace) -> dict[str, list[Record]]:
    """Each system's records without a delay.

    Raises:
        ConfigError: the trace lacks a model of the configs, or what a recording needs.
    """
    return {system: _records(bundle, system, trace) for system in SYSTEMS}


def about(trace: Trace) -> str:
    """What is to be known about such a recording."""
    return f"{trace.name}, {len(trace):,} examples: models' times one example at a time, no wire"


def _records(bundle: Bundle, system: str, trace: Trace) -> list[Record]:
    device, cloud = bundle.tiers(system)
    tiers = [*device, *cloud]
    _check(tiers, trace)
    rows = np.arange(len(trace))  # (B,)
    seats = [
        LocalTier(tier.name, [TableMember(_outputs(trace, spec.name), spec.name) for spec in tier.members], tier.rule,
                  early=tier.early)
        for tier in tiers
    ]  # fmt: skip
    run = Cascade(seats).decide(Batch(trace.ids, rows[:, None]))
    here, there = np.zeros(len(trace)), np.zeros(len(trace))  # (B,) seconds
    for number, visit in enumerate(run.visits):
        reached = rows if visit.rows is None else visit.rows
        place = here if number < len(device) else there
        place[reached] += _times(tiers[number], visit.vote, trace, reached)
    model = bundle.best_model if system == "cloud-only" else bundle.edge["tiers"][-1]["model"]
    payload = trace.payload_bytes
    assert payload is not None
    records = []
    for row, exit_tier in enumerate(run.exit_tier.tolist()):
        left = exit_tier > len(device)
        votes = run.tier_votes[row]
        records.append(
            Record(
                id=trace.ids[row],
                label=int(run.labels[row]),
                truth=int(trace.labels[row]),
                exit_tier=exit_tier,
                latency_s=float(here[row] + there[row]),
                call_s=float(there[row]),
                server_s=float(there[row]),
                bytes_sent=message_bytes(model, int(payload[row])) if left else 0,
                asked=int(run.asked[row]),
                votes=tuple(float(share) for share in votes[~np.isnan(votes)]),
            )
        )
    return records


def _check(tiers: Sequence[LocalTierConfig], trace: Trace) -> None:
    names = [spec.name for tier in tiers for spec in tier.members]
    missing = sorted({name for name in names if name not in trace.models})
    findings = [f'{trace.name}: expected the model "{name}" of the bundled configs, got none' for name in missing]
    if not findings:
        answers = [trace.models[name] for name in names]
        if trace.payload_bytes is None or any(one.latency_s is None or one.probabilities is None for one in answers):
            findings.append(f"{trace.name}: expected probabilities, latency_s and payload_bytes (record --latencies)")
    if findings:
        raise ConfigError(findings)


def _outputs(trace: Trace, model: str) -> Array:
    """(B, L) float32, where the largest is the prediction even if 16 bits cannot tell the two largest apart."""
    said = trace.models[model]
    outputs = np.array(said.probabilities, dtype=np.float32)
    outputs[np.arange(len(outputs)), said.predictions] = np.nextafter(outputs.max(axis=1), np.float32(2))
    return outputs


def _times(tier: LocalTierConfig, vote: Vote, trace: Trace, rows: NDArray[np.intp]) -> Seconds:
    """(A,) seconds that a tier takes: its slowest member side by side, else the members asked, in turn."""
    each = np.stack([_latency(trace, spec.name)[rows] for spec in tier.members])  # (M, A)
    if tier.parallel:
        slowest: Seconds = each.max(axis=0)
        return slowest
    in_turn: Seconds = each.cumsum(axis=0)[vote.asked - 1, np.arange(len(rows))]
    return in_turn


def _latency(trace: Trace, model: str) -> Seconds:
    seconds = trace.models[model].latency_s
    assert seconds is not None
    return seconds.astype(np.float64)


@cache
def message_bytes(model: str, payload_bytes: int) -> int:
    """What a call sends for one example, with gRPC's own prefix, as a row of the study counts it."""
    request = pb.ModelInferRequest(model_name=model, model_version="0" * 12)  # a fingerprint is as long
    example = np.empty(1, dtype=object)
    example[0] = bytes(payload_bytes)
    add_input(request, INPUT, example)
    return request.ByteSize() + FRAME_BYTES
