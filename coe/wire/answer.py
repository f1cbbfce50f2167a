"""What a server answered, as a vote. Whatever it sends, what comes out is a vote of the task, or an error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from coe.cascade.types import Array, Vote
from coe.cascade.vote import exact_share
from coe.wire import inference_pb2 as pb

from .convert import WireError, get_parameters, read_outputs
from .hops import hops_of

MOST_TIERS = 64  # behind one server
OURS = frozenset({"vote", "score", "members"})  # what goes with a label where a tier gives it


def read_answer(answer: bytes | pb.ModelInferResponse, n_rows: int, n_labels: int, call: dict[str, float]) -> Vote:
    """The vote in an answer to `n_rows` rows.

    Args:
        n_labels: of the task; a label outside it is refused.
        call: what the call cost as measured here, `call_s` among it; becomes the vote's own, and gains the seconds
            that the server tells of.
    Raises:
        ValueError: it cannot be read as such; the text says what was expected.
    """
    try:
        response = pb.ModelInferResponse.FromString(answer) if isinstance(answer, bytes) else answer
        vote = _vote(read_outputs(response), n_rows, n_labels, call)
    except (WireError, DecodeError) as error:
        raise ValueError(str(error)) from None
    told = {
        key: value
        for key, value in get_parameters(response.parameters).items()
        if key.endswith("_s") and isinstance(value, float) and math.isfinite(value)
    }
    if "server_s" in told:
        call["server_s"] = told["server_s"]
    call.update(hops_of(told, call))
    for key, seconds in told.items():
        if not key.startswith("hop_"):
            call.setdefault(key, seconds)  # what was measured here stands
    return vote


def _vote(outputs: Mapping[str, Array], n_rows: int, n_labels: int, call: Mapping[str, float]) -> Vote:
    if "label" not in outputs or not OURS.intersection(outputs):  # others call theirs "label" too
        return _single_model(outputs, n_rows, n_labels, call)
    labels = _column(outputs, "label", n_rows, "iu", 0, n_labels - 1).astype(np.int64)
    share = _column(outputs, "vote", n_rows, "f", 0, 1)
    members = outputs.get("members")
    if members is not None:
        asked, seats = _members(members, n_rows)
        n_members = int(seats.max(initial=1))
        count = np.rint(share * asked).astype(np.int64)
    else:
        exact = [exact_share(float(vote)) for vote in share]
        count = np.array([vote.numerator for vote in exact], dtype=np.int64)
        asked = np.array([vote.denominator for vote in exact], dtype=np.int64)
        n_members = int(asked.max(initial=1))
    tier_votes = outputs.get("tier_votes")
    if tier_votes is not None:
        fits = tier_votes.ndim == 2 and 1 <= tier_votes.shape[1] <= MOST_TIERS
        _check(tier_votes, "tier_votes", fits, n_rows, "f")
    exit_tier = None
    if "exit_tier" in outputs:
        last = MOST_TIERS if tier_votes is None else tier_votes.shape[1]
        exit_tier = _column(outputs, "exit_tier", n_rows, "iu", 1, last).astype(np.int64)
    reasons = outputs.get("degraded")
    if reasons is not None:
        _check(reasons, "degraded", reasons.size == n_rows, n_rows, "O")
    return Vote(
        labels=labels,
        count=count,
        asked=asked,
        n_members=n_members,
        score=_column(outputs, "score", n_rows, "f").astype(np.float32),
        exit_tier=exit_tier,
        tier_votes=tier_votes,
        degraded=None if reasons is None else tuple(_reason(text) for text in reasons.ravel()),
        call=call,
    )


def _single_model(outputs: Mapping[str, Array], n_rows: int, n_labels: int, call: Mapping[str, float]) -> Vote:
    """An ensemble of one: a plain model on another server, which answers with (B, L) probabilities."""
    fitting = [array for array in outputs.values() if array.shape == (n_rows, n_labels) and array.dtype.kind == "f"]
    if fitting:
        array = next(filter(_are_probabilities, fitting), fitting[0])  # where it gives its logits as well
        labels = array.argmax(axis=1)
        ones = np.ones(n_rows, dtype=np.int64)
        score = array[np.arange(n_rows), labels].astype(np.float32)  # argmax points at a NaN if there is one
        if not np.isfinite(score).all():
            raise ValueError("expected probabilities, got NaN or infinity")
        return Vote(labels, ones, ones, 1, score, call=call)
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in outputs.items())[:200] or "none"
    raise ValueError(f'expected an output "label", or probabilities [{n_rows}, {n_labels}], got {shapes}')


def _are_probabilities(array: Array) -> bool:
    """Whether each row of (B, L) adds up to 1, as closely as half floats do."""
    if not (array >= 0).all():
        return False
    with np.errstate(over="ignore"):
        return bool((np.abs(array.sum(axis=1, dtype=np.float64) - 1) < 0.01).all())


def _column(
    outputs: Mapping[str, Array],
    name: str,
    n_rows: int,
    kinds: str,
    low: float | None = None,
    high: float | None = None,
) -> Array:
    """(B,) one number per row, of a dtype in `kinds`, each within `low` to `high`."""
    if name not in outputs:
        raise ValueError(f'expected an output "{name}", got {", ".join(map(repr, outputs))[:200]}')
    column = outputs[name]
    _check(column, name, column.size == n_rows, n_rows, kinds)
    column = column.reshape(n_rows)
    if low is not None and not ((column >= low) & (column <= high)).all():  # false for a NaN
        raise ValueError(f"output {name}: expected {low} to {high}, got {column.min()} to {column.max()}")
    return column


def _members(members: Array, n_rows: int) -> tuple[Array, Array]:
    """Members asked, and members there are, each (B,)."""
    _check(members, "members", members.ndim == 2 and members.shape[1] == 2, n_rows, "iu")
    asked, seats = members[:, 0].astype(np.int64), members[:, 1].astype(np.int64)
    if not ((asked >= 1) & (asked <= seats)).all():
        raise ValueError("output members: expected 1 to all of them asked, got others")
    return asked, seats


def _check(array: Array, name: str, fits: bool, n_rows: int, kinds: str) -> None:
    if not fits or len(array) != n_rows or array.dtype.kind not in kinds:
        got = f"{array.dtype} {list(array.shape)}"
        raise ValueError(f"output {name}: expected an entry of its kind for each of {n_rows} rows, got {got}")


def _reason(text: Any) -> str | None:
    return text.decode("utf-8", "replace") or None if isinstance(text, bytes) else None
