"""A tier on other machines, asked over the Open Inference Protocol, and the reading of its metadata and responses.

The server may be `coe-cloud` (a tier, or a whole cascade) or any other that answers with class probabilities.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from coe.cascade.errors import ConfigError, TierError, TierOverloaded, TierRefused, TierRejected, TierTimeout
from coe.cascade.rule import DeferralRule, fuses
from coe.cascade.tier import Prepare, Tier
from coe.cascade.types import NO_CALL, NO_LABEL, Array, Batch, CallCost, Vote
from coe.cascade.vote import exact_share

from . import inference_pb2 as pb
from .channel import ChannelPool, Target, TierChannel, target_of
from .codec import WireError, add_input, get_parameters, read_outputs
from .credentials import proxy_of
from .foreign import OUR_INPUT, RemoteInput, choose_output, read_remote_input, read_single_model
from .service import (
    FRAME_BYTES,
    INPUT,
    MAX_MESSAGE_BYTES,
    MEMBER_VOTES,
    METHODS,
    PLATFORM,
    Options,
    client_options,
    path,
)
from .status import from_rpc_error
from .trace_context import Header, Headers, headers_of, with_server_times

MOST_TIERS = 64  # behind one server
VOTE_OUTPUTS = frozenset({"vote", "score", "members"})  # what goes with a label where a tier gives it


def read_answer(
    answer: bytes | pb.ModelInferResponse,
    n_rows: int,
    n_labels: int,
    call: CallCost = NO_CALL,
    labels: Sequence[str] = (),
    output: str = "",
) -> Vote:
    """The vote in an answer to `n_rows` rows.

    Args:
        n_labels: of the task; a label outside it is refused.
        labels: their names, for a server that answers with names.
        output: of another server, the one that counts; "": the one that fits.
        call: what the call took as measured here; the vote's own has the seconds that the server tells of, too.
    Raises:
        ValueError: it cannot be read as such; the text says what was expected.
    """
    try:
        response = pb.ModelInferResponse.FromString(answer) if isinstance(answer, bytes) else answer
        vote = _vote(read_outputs(response), n_rows, n_labels, labels, output)
    except (WireError, DecodeError) as error:
        raise ValueError(str(error)) from None
    told = {
        key: value
        for key, value in get_parameters(response.parameters).items()
        if key.endswith("_s") and isinstance(value, float) and math.isfinite(value)
    }
    vote.call = with_server_times(call, told)
    return vote


def _vote(outputs: Mapping[str, Array], n_rows: int, n_labels: int, names: Sequence[str], output: str) -> Vote:
    if output or "label" not in outputs or not VOTE_OUTPUTS.intersection(outputs):  # others call theirs "label" too
        return read_single_model(outputs, n_rows, n_labels, names, output)
    labels = _column(outputs, "label", n_rows, "iu", 0, n_labels - 1).astype(np.int64)
    share = _column(outputs, "vote", n_rows, "f", 0, 1)
    members = outputs.get("members")
    if members is not None:
        asked, there = _members(members, n_rows)
        n_members = int(there.max(initial=1))
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
    said, known = _ballots(outputs, n_rows, n_labels)
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
        member_labels=said,
        member_scores=known,
    )


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
    asked, there = members[:, 0].astype(np.int64), members[:, 1].astype(np.int64)
    if not ((asked >= 1) & (asked <= there)).all():
        raise ValueError("output members: expected 1 to all of them asked, got others")
    return asked, there


def _ballots(outputs: Mapping[str, Array], n_rows: int, n_labels: int) -> tuple[Array | None, Array | None]:
    """Labels and scores of the members, each (M, B); None where the server does not show them."""
    labels, scores = outputs.get("member_label"), outputs.get("member_score")
    if labels is None or scores is None:
        return None, None
    _check(labels, "member_label", labels.ndim == 2 and labels.shape[1] > 0, n_rows, "iu")
    _check(scores, "member_score", scores.shape == labels.shape, n_rows, "f")
    if not ((labels >= NO_LABEL) & (labels < n_labels)).all():
        raise ValueError(f"output member_label: expected -1 to {n_labels - 1}, got {labels.min()} to {labels.max()}")
    return labels.T.astype(np.int64), scores.T.astype(np.float32)


def _check(array: Array, name: str, fits: bool, n_rows: int, kinds: str) -> None:
    if not fits or len(array) != n_rows or array.dtype.kind not in kinds:
        got = f"{array.dtype} {list(array.shape)}"
        raise ValueError(f"output {name}: expected an entry of its kind for each of {n_rows} rows, got {got}")


def _reason(text: Any) -> str | None:
    return text.decode("utf-8", "replace") or None if isinstance(text, bytes) else None


Dial = Callable[[str, Options], grpc.Channel]
Encode = Callable[[Batch], Array]

MOST_WAIT = 0.5  # of the time left, and
MOST_WAIT_S = 0.5  # in all, that a call waits where an overloaded server says when to come again


class RemoteTier:
    """Asks `model` at `address`. Needs no server to be there until its first vote.

    Whether the server is a coe-cloud, its metadata says, which is asked for before the first vote if nobody asked
    before (`metadata`): another one is sent the tensor that it asks for there, and no fingerprint.

    Args:
        address: "host:port", or several. Calls go to each host in turn (a name may stand for several, too), to none
            that is gone or, where the server is ours, draining.
        model: the name the server gives the tier or cascade.
        n_labels: of the task; a label outside it is refused.
        labels: their names, for another server that answers with names.
        output: of another server, the one to ask for; "": the one that fits.
        fingerprint: of the task, sent as the model version, so that a server with other labels refuses; ""
            asks for any version.
        deadline_s: of one call; less where the batch's own deadline is nearer.
        send_captured: send examples as captured where they have such a form, else as tensors (ours takes either).
        encode: makes what is sent to a server of ours from a batch, in place of that: (B,) `bytes`, or a tensor.
        prepare: makes another server's floats from a batch's x.
        n_tiers: how many tiers the server holds; learnt from its answers where it says.
        dial: opens a channel to a target, with options; by itself in plaintext.
        headers: asked once for each vote's headers, such as those of a trace; those of `headers.OUTGOING` go along.
        proxy: as `proxy_of` takes it.
        stream: calls go on one persistent stream where the server has it. It keeps to one host.
    """

    waits = True

    def __init__(
        self,
        name: str,
        address: str | Sequence[str],
        model: str,
        rule: DeferralRule,
        *,
        n_labels: int,
        labels: Sequence[str] = (),
        output: str = "",
        fingerprint: str = "",
        deadline_s: float = 2.0,
        send_captured: bool = True,
        encode: Encode | None = None,
        prepare: Prepare | None = None,
        n_tiers: int = 1,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        dial: Dial = grpc.insecure_channel,
        headers: Headers | None = None,
        proxy: str = "auto",
        stream: bool = False,
    ) -> None:
        addresses = (address,) if isinstance(address, str) else tuple(address)
        self.name = name
        self.rule = rule
        self.address = ", ".join(addresses)
        self.model = model
        self.n_labels = n_labels
        self.labels = labels
        self.output = output
        self.n_tiers = n_tiers
        self.deadline_s = deadline_s
        self._fingerprint = fingerprint
        self._encode = encode or (_as_captured if send_captured else _as_tensor)
        self._prepare = prepare
        self._input: RemoteInput | None = None  # what the server takes; None: not asked yet
        self._asks_for = output
        self._headers = headers
        self._addresses = addresses
        self._target: Target | None = None  # where they were found last
        self._max_message_bytes = max_message_bytes
        self._open_channel = dial
        self._streams = stream
        self._proxy = proxy_of(addresses, proxy)
        self._channels = ChannelPool(name, self._dial)

    def vote(self, batch: Batch, rule: DeferralRule) -> Vote:
        """The server's answers to a batch.

        Raises:
            TierError: by what the caller can do: TierUnavailable, TierTimeout, TierOverloaded, TierRejected.
        """
        now = time.monotonic()
        end = min(now + self.deadline_s, batch.deadline)
        if end <= now:
            raise TierTimeout(self.name, "the example's deadline has passed before the call")
        request = self._request(batch, rule)
        if self._input is None:
            self._learn_input(end - now)
            request = self._request(batch, rule)
        headers = headers_of(self._headers)
        started = time.perf_counter()
        try:
            answer, cost = self._ask(request, end, headers)
        except TierError as error:
            error.call = replace(error.call, n_calls=1, call_s=time.perf_counter() - started)
            raise
        cost = replace(cost, n_calls=1, call_s=time.perf_counter() - started)
        try:
            vote = read_answer(answer, len(batch), self.n_labels, cost, self.labels, self.output)
        except ValueError as error:
            raise TierRejected(self.name, f"its answer cannot be read: {error}").with_call(cost) from None
        if vote.tier_votes is not None:
            self.n_tiers = vote.tier_votes.shape[1]
        return vote

    def complete(self, batch: Batch, vote: Vote) -> Vote:
        return vote

    def bytes_of(self, batch: Batch) -> int:
        """What one call for this batch sends, as `bytes_sent` counts it.

        A server that was not asked yet counts as a coe-cloud.

        Raises:
            TierRejected: the batch has no form to be sent in.
        """
        return self._request(batch, self.rule).ByteSize() + FRAME_BYTES

    def metadata(self, timeout_s: float = 2.0) -> pb.ModelMetadataResponse:
        """What the server says of the model.

        Raises:
            TierError: it cannot be asked.
            ConfigError: it has no such model, serves another task (other labels or another input), or takes what
                no example of ours is.
        """
        try:
            request = pb.ModelMetadataRequest(name=self.model)
            told: pb.ModelMetadataResponse = self._told("ModelMetadata", request, timeout_s)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise ConfigError([f"tier {self.name}: {self.address} has no such model: {error.details()}"]) from None
            raise from_rpc_error(self.name, error, self._proxy) from None
        for output in told.outputs:
            if output.name == "tier_votes" and output.shape[-1:] and output.shape[-1] > 0:
                self.n_tiers = output.shape[-1]
        try:
            before, self._input = self._input, read_remote_input(told)
            self._asks_for = self.output or choose_output(told, self.n_labels)
        except WireError as error:
            raise ConfigError([f"tier {self.name}: {self.address}, model {self.model}: {error}"]) from None
        if told.platform == PLATFORM and self._fingerprint and self._fingerprint not in told.versions:
            raise ConfigError(
                [
                    f"tier {self.name}: {self.address} serves {self.model} for another task: expected fingerprint "
                    f"{self._fingerprint}, got {', '.join(told.versions)} (labels and input of both ends must match)"
                ]
            )
        if before is not self._input is OUR_INPUT and self._target is not None and self._target.is_balanced:
            self.redial()  # from here on with the hosts' health watched
        return told

    def describe_answer(self, batch: Batch) -> str:
        """What the server says of one example, asked now, in words.

        Raises:
            TierError: as `vote`.
        """
        started = time.perf_counter()
        vote = self.vote(batch, self.rule)
        took_s, label = time.perf_counter() - started, int(vote.labels[0])
        name = self.labels[label] if self.labels else f"label {label}"
        score = float(vote.score[0])
        shown = "its score not known" if math.isnan(score) else f"score {score:.2f}"
        return f"answers a blank example in {took_s * 1000:.3g} ms: {name}, {shown}"

    def is_ready(self, timeout_s: float = 2.0) -> bool:
        """Whether the server takes calls for the model; False: it answers, but is draining or still loading.

        Raises:
            TierError: it cannot be asked, or will not say.
        """
        request = pb.ModelReadyRequest(name=self.model, version=self._version)
        try:
            told: pb.ModelReadyResponse = self._told("ModelReady", request, timeout_s)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:  # by a server of others that is there
                return True
            raise from_rpc_error(self.name, error, self._proxy) from None
        return told.ready

    def redial(self) -> None:
        """Call on a new channel from here on; calls under way on the old one finish or fail there by themselves.

        The names of a list of addresses are looked up anew; while that fails, where they were found last stands. Where
        they never were, calls are TierUnavailable.

        Raises:
            ConfigError: what proves who we are, or whom to believe, cannot be read; the old channel stays.
        """
        self._channels.redial()

    def close(self) -> None:
        self._channels.close()

    @property
    def _version(self) -> str:
        """The task's fingerprint, but for a server that is known to be another's, which has versions of its own."""
        return self._fingerprint if self._input in (None, OUR_INPUT) else ""

    def _dial(self) -> TierChannel:
        with contextlib.suppress(ConfigError):
            self._target = target_of(self._addresses)
        target = self._target or self._known_target()
        is_ours = self._input is OUR_INPUT  # others may call their service otherwise, or have no health at all
        options = client_options(self._max_message_bytes, is_balanced=target.is_balanced, checks_health=is_ours)
        options.append(("grpc.http_proxy", self._proxy) if self._proxy else ("grpc.enable_http_proxy", 0))
        channel = self._open_channel(target.uri, options)
        return TierChannel(self.name, channel, stream=self._streams, proxy=self._proxy)

    def _known_target(self) -> Target:
        """The hosts whose names are known now; else the first, which gRPC looks up with each call."""
        known = []
        for address in self._addresses:
            with contextlib.suppress(ConfigError):
                known.append(target_of([address, address]).uri.removeprefix("ipv4:"))
        plain = [address for address in known if not address.startswith("ipv6:")]
        return Target("ipv4:" + ",".join(plain), is_balanced=True) if plain else target_of(self._addresses[:1])

    def _told(self, method: str, request: Any, timeout_s: float) -> Any:
        """The answer to a question about the model.

        Raises:
            grpc.RpcError
        """
        request_type, response_type = METHODS[method]
        with self._channels.use() as channel:
            ask = channel.channel.unary_unary(
                path(method),
                request_serializer=request_type.SerializeToString,
                response_deserializer=response_type.FromString,
            )
            return ask(request, timeout=timeout_s)

    def _learn_input(self, timeout_s: float) -> None:
        """Ask what the server takes. One that does not say is taken for a coe-cloud; its refusal then says why.

        Raises:
            TierError: it cannot be asked, or takes no example of ours.
        """
        try:
            self.metadata(timeout_s)
        except TierRejected:
            self._input = OUR_INPUT
        except ConfigError as error:
            if self._input is None:
                text = str(error).removeprefix(f"tier {self.name}: ")
                raise TierRefused(self.name, text) from None

    def _request(self, batch: Batch, rule: DeferralRule | None = None) -> pb.ModelInferRequest:
        try:
            asked_for = self._input or OUR_INPUT
            request = pb.ModelInferRequest(model_name=self.model, model_version=self._version)
            if asked_for is OUR_INPUT:
                sent = self._encode(batch)
                add_input(request, INPUT, _as_tensor(batch) if sent is batch.x else sent)
                if batch.asks_members or fuses(rule):
                    request.parameters[MEMBER_VOTES].bool_param = True
            else:
                add_input(request, asked_for.name, asked_for.tensor(batch, self._prepare))
                if self._asks_for:
                    request.outputs.add(name=self._asks_for)
        except WireError as error:
            raise TierRejected(self.name, str(error)) from None
        return request

    def _ask(
        self, request: pb.ModelInferRequest, end: float, headers: tuple[Header, ...]
    ) -> tuple[bytes | pb.ModelInferResponse, CallCost]:
        """The response and the bytes; asks once more where an overloaded server says when to, and that is soon enough.

        Raises:
            TierError: with the bytes of every attempt as its `call`.
        """
        spent, may_wait = NO_CALL, True
        while True:
            try:
                with self._channels.use() as channel:
                    answer, cost = channel.ask(request, end, headers)
                return answer, spent + cost
            except TierError as error:
                spent = error.call = spent + error.call
                wait_s = error.retry_after_s if may_wait and isinstance(error, TierOverloaded) else None
                if wait_s is None or wait_s > min(MOST_WAIT_S, MOST_WAIT * (end - time.monotonic())):
                    raise
            time.sleep(wait_s)
            may_wait = False


def _as_captured(batch: Batch) -> Array:
    return batch.x if batch.captured is None else batch.captured


def _as_tensor(batch: Batch) -> Array:
    """x as one tensor; images of several sizes have no such form."""
    if batch.x.dtype == object:
        raise WireError("input", "examples of one size", "several sizes", "send them as captured, or one by one")
    return batch.x


def remote_of(tier: Tier) -> RemoteTier | None:
    """The remote tier, as it is or behind what wraps it as its `tier` (an injected delay, a watched link); None for a
    local one."""
    inner: object = tier
    while not isinstance(inner, RemoteTier) and hasattr(inner, "tier"):
        inner = inner.tier
    return inner if isinstance(inner, RemoteTier) else None
