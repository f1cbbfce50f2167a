"""What moves through a cascade: a batch goes in, a vote comes out of each tier.

Arrays inside, leading dimension B (examples); M is members, L labels, T tiers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Array = NDArray[Any]
Ballots = tuple[Labels, Array]  # (M, B) labels and scores of members

NO_LABEL = -1


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples on their way through the cascade.

    Args:
        ids: B names, the caller's own.
        x: (B, *S) the examples as local members take them in (uint8 pixels (B, H, W, C), or a tensor);
            (B,) objects: texts, or images that differ in size.
        captured: (B,) `bytes` objects as the device captured them (JPEG, PNG, UTF-8), sent on to remote tiers
            in place of `x`; None where an example never had such a form.
        deadline: `time.monotonic()` second by which the answer is wanted.
        asks_members: every member is asked, and a server for what each of its members said.
    """

    ids: tuple[str, ...]
    x: Array
    captured: Array | None = None
    deadline: float = math.inf
    asks_members: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: NDArray[np.intp]) -> Batch:
        """The examples at `rows` (A,), in that order."""
        return Batch(
            ids=tuple(self.ids[row] for row in rows),
            x=self.x[rows],
            captured=None if self.captured is None else self.captured[rows],
            deadline=self.deadline,
            asks_members=self.asks_members,
        )


@dataclass(frozen=True, slots=True)
class CallCost:
    """What calls to other machines took, in seconds and bytes. Costs add up with `+`.

    Args:
        n_calls: calls made; 0 where all the time below was spent in this program.
        call_s: until the answers came; server_s: of that, in the servers asked.
        queue_s: in queues, here and at the servers; delay_s: injected on purpose.
        hops_s: of server_s, between the servers asked and those behind them.
        bytes_sent, bytes_received: of the messages, as gRPC frames them.
        times: other seconds by their key, such as `hop_2_s` (`coe.protocol.trace_context`) and `tier_1_s`.
    """

    n_calls: int = 0
    call_s: float = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0
    server_s: float = 0.0
    queue_s: float = 0.0
    hops_s: float = 0.0
    delay_s: float = 0.0
    times: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, other: CallCost) -> CallCost:
        if self is NO_CALL or other is NO_CALL:
            return other if self is NO_CALL else self
        times = {key: self.times.get(key, 0.0) + other.times.get(key, 0.0) for key in {**self.times, **other.times}}
        own = {name: getattr(self, name) + getattr(other, name) for name in ("n_calls", *COST_KEYS)}
        return CallCost(**own, times=times)

    @property
    def network_s(self) -> float:
        """Seconds between here and the servers asked."""
        return self.call_s - self.server_s

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> CallCost:
        """The cost that `to_dict` gave; how many calls it was of is not kept."""
        if not content:
            return NO_CALL
        times = {key: value for key, value in content.items() if key not in COST_KEYS}
        return cls(n_calls=int("call_s" in content), times=times, **{k: content[k] for k in COST_KEYS if k in content})

    def to_dict(self) -> dict[str, float]:
        """Seconds and bytes by key, as records have them: all that are not 0, and the wait and the bytes of a call."""
        always = ("call_s", "bytes_sent", "bytes_received") if self.n_calls else ()
        known = {key: getattr(self, key) for key in COST_KEYS}
        return {key: value for key, value in known.items() if value or key in always} | dict(self.times)


NO_CALL = CallCost()
COST_KEYS = ("call_s", "bytes_sent", "bytes_received", "server_s", "queue_s", "hops_s", "delay_s")


@dataclass(slots=True)  # read-only by custom; not frozen, because one is made for each decision of a device
class Vote:
    """What one tier says of a batch.

    Args:
        labels: (B,) int64, the tier's label; NO_LABEL where no member voted, with a `count` of 0 and a `score` of NaN.
        count: (B,) int64, votes for that label.
        asked: (B,) int64, members asked: the first `asked[b]` of `member_indices` voted on row b.
        n_members: members the tier has.
        score: (B,) float32, mean probability that the members asked that voted give the label; NaN where unknown.
        probabilities: (B, L) of each member asked, in the order of `member_indices`; rows at or after `asked` are
            undefined, those on which the member did not vote are NaN. Empty where a tier does not show its members (a
            remote one).
        member_indices: of the members asked; None: from the first on, in order. A tier whose members vote side by
            side is content with those that came first.
        exit_tier: (B,) int64, for a tier that is a cascade itself: which of its tiers answered, from 1.
        tier_votes: (B, T) float32, then: the vote of each of its tiers, NaN where not visited.
        degraded: B reasons (None: not degraded), where the tier itself had to fall back.
        call: what asking another machine took.
        failures: by index, which members did not vote on a row and why; None: all that were asked voted.
        member_labels, member_scores: (M, B) as `ballots` gives them, where `probabilities` are not at hand.
        rule: "calibrated" where label and score are not the members' plurality; "": they are.
    """

    labels: Labels
    count: Labels
    asked: Labels
    n_members: int
    score: NDArray[np.float32]
    probabilities: Sequence[Array] = ()
    member_indices: Sequence[int] | None = None
    exit_tier: Labels | None = None
    tier_votes: NDArray[np.float32] | None = None
    degraded: tuple[str | None, ...] | None = None
    call: CallCost = NO_CALL
    failures: Mapping[int, str] | None = None
    member_labels: Labels | None = None
    member_scores: Array | None = None
    rule: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def ballots(self) -> tuple[Labels, Array]:
        """(M, B) int64 each member's label, NO_LABEL where it gave none, and (M, B) its score of it, NaN where unknown.

        Members come in the tier's order; of a cascade, those of its first tier first. A tier that does not show its
        members counts as one.
        """
        if self.member_labels is not None and self.member_scores is not None:
            return self.member_labels, self.member_scores
        if not len(self.probabilities):
            return self.labels[None], self.score[None]
        labels = np.full((self.n_members, len(self)), NO_LABEL, dtype=np.int64)
        scores = np.full(labels.shape, np.nan, dtype=np.float32)
        indices = range(self.n_members) if self.member_indices is None else self.member_indices
        for place, (index, output) in enumerate(zip(indices, self.probabilities, strict=False)):
            voted = np.flatnonzero((self.asked > place) & ~np.isnan(output[:, 0]))
            labels[index, voted] = top = output[voted].argmax(axis=1)
            scores[index, voted] = output[voted, top]
        return labels, scores

    @property
    def share(self) -> NDArray[np.float32]:
        """(B,) float32: votes for the label / members asked (paper: vote(x; H))."""
        return (self.count / self.asked).astype(np.float32)

    def take(self, rows: NDArray[np.intp]) -> Vote:
        """The vote on `rows` (A,) alone."""
        return replace(
            self,
            labels=self.labels[rows],
            count=self.count[rows],
            asked=self.asked[rows],
            score=self.score[rows],
            probabilities=tuple(output[rows] for output in self.probabilities),
            exit_tier=None if self.exit_tier is None else self.exit_tier[rows],
            tier_votes=None if self.tier_votes is None else self.tier_votes[rows],
            degraded=None if self.degraded is None else tuple(self.degraded[row] for row in rows),
            member_labels=None if self.member_labels is None else self.member_labels[:, rows],
            member_scores=None if self.member_scores is None else self.member_scores[:, rows],
        )

    def replaced(self, rows: NDArray[np.intp], other: Vote, call: CallCost | None = None) -> Vote:
        """The same vote with `rows` (A,) as `other` (A rows) has them; members' outputs are let go."""
        columns = {name: getattr(self, name).copy() for name in ("labels", "count", "asked", "score")}
        for name, column in columns.items():
            column[rows] = getattr(other, name)
        silent = NO_LABEL, np.float32(np.nan)  # of members whose outputs were let go before
        names = "member_labels", "member_scores"
        for name, column, own, none in zip(names, self.ballots(), other.ballots(), silent, strict=True):
            fits = len(column) == len(own)
            columns[name] = column.copy() if fits else np.full((len(own), len(self)), none, dtype=column.dtype)
            columns[name][:, rows] = own
        return replace(self, **columns, probabilities=(), member_indices=None, call=self.call if call is None else call)


@dataclass(frozen=True, slots=True)
class Decision:
    """One example's answer, and how it came about.

    `exit_tier` counts from 1. `tier_votes` and `tier_times_s` have one entry per tier visited, in order;
    a server that holds several tiers has one time for all of them, under the tier that answered.
    `rule` is "calibrated" where that vote gave label and score, else "".
    `degraded` is None, or why this is not the answer of the tier that should have given it. `call`: what the calls of
    its batch to other machines took together.
    """

    id: str
    label: int
    exit_tier: int
    vote: float
    score: float
    asked: int
    n_members: int
    tier_votes: tuple[float, ...]
    tier_times_s: tuple[float, ...]
    degraded: str | None = None
    call: CallCost = NO_CALL
    rule: str = ""
