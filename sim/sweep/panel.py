"""What every ensemble says over a trace, each worked out once however many cascades have it.

A tier is reduced to two bits an example: is its label right, does its answer stand. `coe.cascade.vote` breaks the
ties; counting equal ballots is done here, for all examples at once, and tests hold it against the cascade itself.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from coe.cascade.types import Array
from coe.cascade.vote import break_ties, plurality, pool

from ..traces import Trace
from .bits import Words, packed

Flags = NDArray[np.bool_]
THREADS = 2
CHUNK = 2048  # rows whose probabilities are pooled together


@dataclass(frozen=True, slots=True, eq=False)
class SweptTier:
    """One tier, reduced to bits. `rule` says how it decides, for tables."""

    members: tuple[str, ...]
    rule: str
    right: Words
    stands: Words


class Panel:
    """The ensembles of one trace. Not thread-safe; make the tiers first, then sweep."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self._same: dict[tuple[str, str], NDArray[np.uint8]] = {}
        self._kept: dict[Hashable, SweptTier] = {}
        self._counted: dict[tuple[str, ...], tuple[Flags, NDArray[np.uint8]]] = {}
        self._scored: dict[tuple[tuple[str, ...], bool], tuple[Flags, NDArray[np.float32]]] = {}
        self._entropies: dict[str, NDArray[np.float64]] = {}
        self._right = {model: trace.right(model) for model in trace.models}

    def __len__(self) -> int:
        return len(self.trace)

    def agreement(self, members: Sequence[str], needed: int) -> SweptTier:
        """The tier answers where at least `needed` members give the plurality's label. Paper: Eq. (3)."""
        own = tuple(members)
        return self._tier((own, needed), own, f"{needed} of {len(own)}", lambda: self._agreeing(own, needed))

    def always(self, members: Sequence[str]) -> SweptTier:
        """The plurality, whatever its vote: what a last tier does."""
        return self.agreement(members, 0)

    def confidence(self, members: Sequence[str], threshold: float, *, pools: bool) -> SweptTier:
        """The answer stands where its score reaches the threshold.

        Args:
            pools: label and score are of the members' mean output (needs probabilities); otherwise of the plurality.
        """
        own = tuple(members)

        def bits() -> tuple[Flags, Flags]:
            right, score = self.scored(own, pools)
            return right, score >= np.float32(threshold)

        return self._tier((own, "score", pools, threshold), own, f"score >= {threshold:.3g}", bits)

    def entropy(self, model: str, most: float) -> SweptTier:
        """The answer stands where the entropy of the output, in nats, is at most `most` (needs probabilities)."""

        def bits() -> tuple[Flags, Flags]:
            return self._right[model], self.entropies(model) <= most

        return self._tier((model, "entropy", most), (model,), f"entropy <= {most:.3g}", bits)

    def ideal(self, members: Sequence[str]) -> SweptTier:
        """The answer stands exactly where it is right. Paper: Proposition 1, with epsilon = 0."""
        own = tuple(members)
        return self._tier((own, "ideal"), own, "where right", lambda: (self.counted(own)[0], self.counted(own)[0]))

    def random(self, members: Sequence[str], rate: float, rng: np.random.Generator) -> SweptTier:
        """The answer stands on a random share `rate` of the examples."""
        own = tuple(members)
        return SweptTier(own, f"random {rate:.0%}", packed(self.counted(own)[0]), packed(rng.random(len(self)) < rate))

    def count_all(self, ensembles: Iterable[tuple[str, ...]], threads: int = THREADS) -> None:
        """`counted` for many ensembles at once, on threads: NumPy lets others work meanwhile."""
        missing = [members for members in dict.fromkeys(ensembles) if members not in self._counted]
        for one, other in {pair for members in missing for pair in combinations(members, 2)}:
            self._equal(one, other)
        with ThreadPoolExecutor(threads) as workers:
            self._counted.update(zip(missing, workers.map(self._count, missing), strict=True))

    def counted(self, members: tuple[str, ...]) -> tuple[Flags, NDArray[np.uint8]]:
        """(B,) whether the plurality's label is right, and (B,) the votes for it."""
        if members not in self._counted:
            self._counted[members] = self._count(members)
        return self._counted[members]

    def scored(self, members: tuple[str, ...], pools: bool) -> tuple[Flags, NDArray[np.float32]]:
        """(B,) whether the label is right, and (B,) its score."""
        if (members, pools) not in self._scored:
            labels = np.empty(len(self), dtype=np.int64)
            score = np.empty(len(self), dtype=np.float32)
            for start in range(0, len(self), CHUNK):
                rows = slice(start, start + CHUNK)
                labels[rows], score[rows] = self._score(members, pools, rows)
            self._scored[members, pools] = labels == self.trace.labels, score
        return self._scored[members, pools]

    def entropies(self, model: str) -> NDArray[np.float64]:
        """(B,) of the model's output, in nats."""
        if model not in self._entropies:
            output = self.trace.models[model].probabilities
            assert output is not None
            own = np.empty(len(self))
            for start in range(0, len(self), CHUNK):
                p = np.clip(output[start : start + CHUNK].astype(np.float64), 1e-12, 1.0)
                own[start : start + CHUNK] = -(p * np.log(p)).sum(axis=1)
            self._entropies[model] = own
        return self._entropies[model]

    def _tier(
        self, key: Hashable, members: tuple[str, ...], rule: str, bits: Callable[[], tuple[Flags, Flags]]
    ) -> SweptTier:
        if key not in self._kept:
            right, stands = bits()
            self._kept[key] = SweptTier(members, rule, packed(right), packed(stands))
        return self._kept[key]

    def _agreeing(self, members: tuple[str, ...], needed: int) -> tuple[Flags, Flags]:
        right, count = self.counted(members)
        return right, count >= needed

    def _count(self, members: tuple[str, ...]) -> tuple[Flags, NDArray[np.uint8]]:
        if len(members) == 1:
            return self._right[members[0]], np.ones(len(self), dtype=np.uint8)
        votes = np.ones((len(members), len(self)), dtype=np.uint8)  # (M, B) ballots equal to this one
        for one in range(len(members)):
            for other in range(one):
                same = self._equal(members[one], members[other])
                votes[one] += same
                votes[other] += same
        count = votes.max(axis=0)
        leads = votes == count  # (M, B) ballots for a leading label
        n_leading = leads.sum(axis=0, dtype=np.uint8)
        right = np.zeros(len(self), dtype=np.bool_)
        for member, leading in zip(members, leads, strict=True):
            right |= leading & self._right[member]
        tied = np.flatnonzero(right & (n_leading > count))  # a tie that no right label is in stays wrong
        if tied.size:
            ballots, probabilities, scores = self._columns(members, tied)
            right[tied] = break_ties(ballots, leads[:, tied], probabilities, scores) == self.trace.labels[tied]
        return right, count

    def _equal(self, one: str, other: str) -> NDArray[np.uint8]:
        """(B,) 1 where two models say the same."""
        key = (min(one, other), max(one, other))
        if key not in self._same:
            first, second = (self.trace.models[name].predictions for name in key)
            self._same[key] = (first == second).view(np.uint8)
        return self._same[key]

    def _score(self, members: tuple[str, ...], pools: bool, rows: slice) -> tuple[Array, Array]:
        if not pools:
            return self._plurality(members, rows)
        outputs = [self.trace.models[member].probabilities for member in members]
        return pool(np.stack([output[rows] for output in outputs if output is not None]))

    def _plurality(self, members: tuple[str, ...], rows: Array | slice) -> tuple[Array, Array]:
        """The cascade's own vote on these rows: labels and scores."""
        labels, _, score = plurality(*self._columns(members, rows))
        return labels, score

    def _columns(self, members: tuple[str, ...], rows: Array | slice) -> tuple[Array, Array | None, Array | None]:
        """What a vote is made of: ballots (M, A), and probabilities (M, A, L) or top-1 scores (M, A)."""
        said = [self.trace.models[member] for member in members]
        ballots = np.stack([one.predictions[rows] for one in said]).astype(np.int64)
        outputs = [one.probabilities[rows] for one in said if one.probabilities is not None]
        if len(outputs) == len(said):
            return ballots, np.stack(outputs), None
        scores = [one.scores[rows] for one in said if one.scores is not None]
        return ballots, None, np.stack(scores) if len(scores) == len(said) else None
