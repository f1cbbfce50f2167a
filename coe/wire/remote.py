"""A tier on another machine, asked over the Open Inference Protocol.

The server may be `coe-cloud` (a tier, or a whole cascade) or any other that answers with class probabilities.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from coe.cascade.delay import DelayedTier
from coe.cascade.errors import ConfigError, TierError, TierRejected, TierTimeout, TierUnavailable
from coe.cascade.rule import DeferralRule
from coe.cascade.tier import Prepare, Tier
from coe.cascade.types import Array, Batch, Vote
from coe.cascade.vote import exact_share
from coe.wire import inference_pb2 as pb

from .convert import WireError, add_input, get_parameters, read_outputs
from .offer import OURS, Offer, read_offer
from .service import FRAME_BYTES, INPUT, MAX_MESSAGE_BYTES, PLATFORM, client_options, path
from .status import from_rpc_error

MOST_TIERS = 64  # behind one server


class RemoteTier:
    """Asks `model` at `address`. Needs no server to be there until its first vote.

    Args:
        address: "host:port".
        model: the name the server gives the tier or cascade.
        n_labels: of the task; a label outside it is refused.
        fingerprint: of the task, sent as the model version, so that a server with other labels refuses; ""
            asks for any version.
        is_foreign: the server is not ours: it is sent what its metadata asks for.
        deadline_s: of one call; less where the batch's own deadline is nearer.
        send_captured: send examples as captured where they have such a form, else as tensors (ours takes either).
        prepare: makes a foreign server's floats from a batch's x.
        n_tiers: how many tiers the server holds; learnt from its answers where it says.
        credentials: for TLS; None: plaintext.
    """

    waits = True

    def __init__(
        self,
        name: str,
        address: str,
        model: str,
        rule: DeferralRule,
        *,
        n_labels: int,
        fingerprint: str = "",
        deadline_s: float = 2.0,
        send_captured: bool = True,
        is_foreign: bool = False,
        prepare: Prepare | None = None,
        n_tiers: int = 1,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self.name = name
        self.rule = rule
        self.address = address
        self.model = model
        self.n_labels = n_labels
        self.n_tiers = n_tiers
        self.deadline_s = deadline_s
        self._fingerprint = fingerprint
        self._send_captured = send_captured
        self._prepare = prepare
        self._is_foreign = is_foreign
        self._offer: Offer | None = None if is_foreign else OURS  # None: not asked yet
        options = client_options(max_message_bytes)
        if credentials is None:
            self._channel = grpc.insecure_channel(address, options)
        else:
            self._channel = grpc.secure_channel(address, credentials, options)
        self._infer = self._channel.unary_unary(path("ModelInfer"), None, None)  # bytes to bytes: sizes are counted

    def vote(self, batch: Batch, rule: DeferralRule) -> Vote:
        """The server's answers to a batch.

        Raises:
            TierError: by what the caller can do: TierUnavailable, TierTimeout, TierOverloaded, TierRejected.
        """
        timeout = min(self.deadline_s, batch.deadline - time.monotonic())
        if timeout <= 0:
            raise TierTimeout(self.name, "the example's deadline has passed before the call")
        request = self._request(batch, timeout)
        started = time.perf_counter()
        call = {"call_s": 0.0, "bytes_sent": float(len(request) + FRAME_BYTES), "bytes_received": 0.0}
        try:
            answer: bytes = self._infer(request, timeout=timeout)
            call["bytes_received"] = float(len(answer) + FRAME_BYTES)
            call["call_s"] = time.perf_counter() - started
            return self._read(answer, len(batch), call)
        except grpc.RpcError as error:
            call["call_s"] = time.perf_counter() - started
            failure = from_rpc_error(self.name, error)
            if isinstance(failure, TierUnavailable):
                call["bytes_sent"] = 0.0  # the connection was not there, or went away: how much arrived is not known
            failure.call = call
            raise failure from None
        except TierError as error:
            error.call = call
            raise

    def complete(self, batch: Batch, vote: Vote) -> Vote:
        return vote

    def metadata(self, timeout_s: float = 2.0) -> pb.ModelMetadataResponse:
        """What the server says of the model.

        Raises:
            TierError: it cannot be asked.
            ConfigError: it has no such model, serves another task (other labels or another input), or takes what
                no example of ours is.
        """
        ask = self._channel.unary_unary(
            path("ModelMetadata"),
            request_serializer=pb.ModelMetadataRequest.SerializeToString,
            response_deserializer=pb.ModelMetadataResponse.FromString,
        )
        try:
            told: pb.ModelMetadataResponse = ask(pb.ModelMetadataRequest(name=self.model), timeout=timeout_s)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise ConfigError([f"tier {self.name}: {self.address} has no such model: {error.details()}"]) from None
            raise from_rpc_error(self.name, error) from None
        for output in told.outputs:
            if output.name == "tier_votes" and output.shape[-1:] and output.shape[-1] > 0:
                self.n_tiers = output.shape[-1]
        if told.platform == PLATFORM and self._fingerprint and self._fingerprint not in told.versions:
            raise ConfigError(
                [
                    f"tier {self.name}: {self.address} serves {self.model} for another task: expected fingerprint "
                    f"{self._fingerprint}, got {', '.join(told.versions)} (labels and input of both ends must match)"
                ]
            )
        if self._is_foreign:
            try:
                self._offer = read_offer(told)
            except WireError as error:
                raise ConfigError([f"tier {self.name}: {self.address}, model {self.model}: {error}"]) from None
        elif told.platform != PLATFORM:
            raise ConfigError(
                [f"tier {self.name}: {self.address} is no coe-cloud but {told.platform!r} (set `foreign: true`)"]
            )
        return told

    def close(self) -> None:
        self._channel.close()

    def _request(self, batch: Batch, timeout: float) -> bytes:
        request = pb.ModelInferRequest(model_name=self.model, model_version=self._fingerprint)
        try:
            if self._offer is None:
                self.metadata(timeout)
            offer = self._offer or OURS
            if offer is OURS:
                captured = batch.captured if self._send_captured else None
                add_input(request, INPUT, _tensor(batch.x) if captured is None else captured)
            else:
                add_input(request, offer.name, offer.tensor(batch, self._prepare))
        except (WireError, ConfigError) as error:
            raise TierRejected(self.name, str(error)) from None
        return request.SerializeToString()

    def _read(self, answer: bytes, n_rows: int, call: dict[str, float]) -> Vote:
        try:
            response = pb.ModelInferResponse.FromString(answer)
            outputs = read_outputs(response)
            vote = self._vote(outputs, n_rows, call)
        except (WireError, DecodeError, ValueError) as error:
            raise TierRejected(self.name, f"its answer cannot be read: {error}") from None
        for key, value in get_parameters(response.parameters).items():
            if key.endswith("_s") and isinstance(value, float) and math.isfinite(value):
                call.setdefault(key, value)  # what was measured here stands
        return vote

    def _vote(self, outputs: Mapping[str, Array], n_rows: int, call: Mapping[str, float]) -> Vote:
        if "label" not in outputs:
            return self._single_model(outputs, n_rows, call)
        labels = _column(outputs, "label", n_rows, "iu", 0, self.n_labels - 1).astype(np.int64)
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
            self.n_tiers = tier_votes.shape[1]
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

    def _single_model(self, outputs: Mapping[str, Array], n_rows: int, call: Mapping[str, float]) -> Vote:
        """An ensemble of one: a plain model on another server, which answers with (B, L) probabilities."""
        for array in outputs.values():
            if array.shape == (n_rows, self.n_labels) and array.dtype.kind == "f":
                labels = array.argmax(axis=1)
                ones = np.ones(n_rows, dtype=np.int64)
                score = array[np.arange(n_rows), labels].astype(np.float32)  # argmax points at a NaN if there is one
                if not np.isfinite(score).all():
                    raise ValueError("expected probabilities, got NaN or infinity")
                return Vote(labels, ones, ones, 1, score, call=call)
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in outputs.items())[:200] or "none"
        raise ValueError(f'expected an output "label", or probabilities [{n_rows}, {self.n_labels}], got {shapes}')


def _tensor(x: Array) -> Array:
    """x as one tensor; images of several sizes have no such form."""
    if x.dtype == object:
        raise WireError("input", "examples of one size", "several sizes", "send them as captured, or one by one")
    return x


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


def remote_of(tier: Tier) -> RemoteTier | None:
    """The remote tier behind an injected delay, or as it is; None for a local one."""
    inner = tier.tier if isinstance(tier, DelayedTier) else tier
    return inner if isinstance(inner, RemoteTier) else None
