"""Many cascades at once over a trace: the vectorised form of `coe.cascade` for studies, on bits.

A tier is reduced to two bits an example: is its label right, does its answer stand. `coe.cascade.vote` breaks the
ties; counting equal ballots is done here, for all examples at once, and tests hold it against the cascade itself.

Of a cascade only what a study asks is worked out: how many examples leave at each tier, and how many of them wrong.
A property test holds every figure against the cascade itself.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.cascade.types import Array
from coe.cascade.vote import break_ties, plurality, pool

from .traces import Trace, by_chance
from .traces.trace import CHUNK

Words = NDArray[np.uint64]

_ONES_OF_16_BITS = np.array([bin(value).count("1") for value in range(1 << 8)], dtype=np.uint8)
_ONES_OF_16_BITS = (_ONES_OF_16_BITS[:, None] + _ONES_OF_16_BITS[None]).reshape(-1)


def packed(yes: NDArray[np.bool_]) -> Words:
    """(W,) words from (B,) answers; the bits after the last example are 0."""
    bits = np.packbits(yes)
    return np.pad(bits, (0, -len(bits) % 8)).view(np.uint64)


def ones(words: Words) -> NDArray[np.int64]:
    """How many bits are set along the last axis."""
    counted: Any = getattr(np, "bitwise_count", None)  # NumPy 2
    per_word = counted(words) if counted else _ONES_OF_16_BITS[words.view(np.uint16)]
    total: NDArray[np.int64] = per_word.sum(axis=-1, dtype=np.int64)
    return total


Flags = NDArray[np.bool_]
THREADS = 2


@dataclass(frozen=True, slots=True, eq=False)
class SweptTier:
    """One tier, reduced to bits. `rule` describes how it decides, for tables."""

    members: tuple[str, ...]
    rule: str
    right: Words
    is_final: Words


class EnsembleVotes:
    """The ensembles of one trace. Not thread-safe; make the tiers first, then sweep."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self._same: dict[tuple[str, str], NDArray[np.uint8]] = {}
        self._kept: dict[Hashable, SweptTier] = {}
        self._counted: dict[tuple[str, ...], tuple[Flags, NDArray[np.uint8]]] = {}
        self._scored: dict[tuple[tuple[str, ...], bool], tuple[Flags, NDArray[np.float32]]] = {}
        self._entropies: dict[str, NDArray[np.float32]] = {}
        self._right = {model: trace.right(model) for model in trace.models}

    def __len__(self) -> int:
        return len(self.trace)

    def agreement(self, members: Sequence[str], needed: int) -> SweptTier:
        """The tier answers where at least `needed` members give the plurality's label. Paper: Eq. (3)."""
        own = tuple(members)

        def bits() -> tuple[Flags, Flags]:
            right, count = self.counted(own)
            return right, count >= needed

        return self._tier((own, needed), own, f"{needed} of {len(own)}", bits)

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
            return self._right[model], self.entropies(model) <= np.float32(most)

        return self._tier((model, "entropy", most), (model,), f"entropy <= {most:.3g}", bits)

    def ideal(self, members: Sequence[str]) -> SweptTier:
        """The answer stands exactly where it is right. Paper: Proposition 1, with epsilon = 0."""
        own = tuple(members)
        return self._tier((own, "ideal"), own, "where right", lambda: (self.counted(own)[0], self.counted(own)[0]))

    def random(self, members: Sequence[str], rate: float, seed: int, number: int) -> SweptTier:
        """The answer stands on a random share `rate` of the examples, in tier `number`."""
        own = tuple(members)
        stands = by_chance(rate, seed, number, len(self))
        return SweptTier(own, f"random {rate:.0%}", packed(self.counted(own)[0]), packed(stands))

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

    def entropies(self, model: str) -> NDArray[np.float32]:
        """(B,) of the model's output, in nats."""
        if model not in self._entropies:
            self._entropies[model] = self.trace.models[model].entropy()
        return self._entropies[model]

    def _tier(
        self, key: Hashable, members: tuple[str, ...], rule: str, bits: Callable[[], tuple[Flags, Flags]]
    ) -> SweptTier:
        if key not in self._kept:
            right, is_final = bits()
            self._kept[key] = SweptTier(members, rule, packed(right), packed(is_final))
        return self._kept[key]

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
        """(B,) 1 where two models give the same label."""
        key = (min(one, other), max(one, other))
        if key not in self._same:
            first, second = (self.trace.models[name].predictions for name in key)
            self._same[key] = (first == second).view(np.uint8)
        return self._same[key]

    def _score(self, members: tuple[str, ...], pools: bool, rows: slice) -> tuple[Array, Array]:
        """The cascade's own vote on these rows: labels and scores."""
        ballots, probabilities, scores = self._columns(members, rows)
        if pools:
            assert probabilities is not None
            return pool(probabilities)
        labels, _, score = plurality(ballots, probabilities, scores)
        return labels, score

    def _columns(self, members: tuple[str, ...], rows: Array | slice) -> tuple[Array, Array | None, Array | None]:
        """What a vote is made of: ballots (M, A), and probabilities (M, A, L) or top-1 scores (M, A)."""
        answers = [self.trace.models[member] for member in members]
        ballots = np.stack([one.predictions[rows] for one in answers]).astype(np.int64)
        outputs = [one.probabilities[rows] for one in answers if one.probabilities is not None]
        if len(outputs) == len(answers):
            return ballots, np.stack(outputs), None
        scores = [one.scores[rows] for one in answers if one.scores is not None]
        return ballots, None, np.stack(scores) if len(scores) == len(answers) else None


Configuration = Sequence[SweptTier]


def right_rows(configuration: Configuration, n: int) -> Flags:
    """(n,) where the answer of one cascade is right."""
    right = np.zeros_like(configuration[0].right)
    active = packed(np.ones(n, dtype=np.bool_))
    for tier in configuration[:-1]:
        right |= active & tier.is_final & tier.right
        active = active & ~tier.is_final
    right |= active & configuration[-1].right
    return np.unpackbits(right.view(np.uint8))[:n].view(np.bool_)


AT_ONCE = 64  # cascades in one piece of work: with 50,000 examples each array is 400 kB, and stays in the cache

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What each of C cascades came to; T: tiers of the longest, counts after a shorter one's last tier are 0.

    Args:
        exits: (C, T) examples that left at each tier.
        wrong: (C, T) of them, with a wrong label.
        n: examples.
    """

    exits: Counts
    wrong: Counts
    n: int

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """(C,)"""
        accuracy: NDArray[np.float64] = 1 - self.wrong.sum(axis=1) / self.n
        return accuracy

    @property
    def shares(self) -> NDArray[np.float64]:
        """(C, T) share of the examples that left at each tier."""
        shares: NDArray[np.float64] = self.exits / self.n
        return shares


def sweep(configurations: Sequence[Configuration], n: int, threads: int = THREADS) -> Outcomes:
    """Every configuration over the same `n` examples, in their order."""
    n_tiers = max(map(len, configurations), default=0)
    exits, wrong = np.zeros((2, len(configurations), n_tiers), dtype=np.int64)
    outcomes = Outcomes(exits, wrong, n)
    tiers = list({id(tier): tier for one in configurations for tier in one}.values())
    place = {id(tier): at for at, tier in enumerate(tiers)}
    if not tiers:
        return outcomes
    right, is_final = (np.stack(words) for words in zip(*((tier.right, tier.is_final) for tier in tiers), strict=True))
    table = _TierTable(right, is_final, packed(np.ones(n, dtype=np.bool_)))
    work = []
    for length in range(1, n_tiers + 1):
        rows = np.array([row for row, one in enumerate(configurations) if len(one) == length], dtype=np.intp)
        tier_index = np.array([[place[id(tier)] for tier in configurations[row]] for row in rows], dtype=np.intp)
        work += [
            (rows[start : start + AT_ONCE], tier_index[start : start + AT_ONCE])
            for start in range(0, len(rows), AT_ONCE)
        ]
    with ThreadPoolExecutor(threads) as pool:
        for rows, counts in zip((rows for rows, _ in work), pool.map(lambda one: table.run(one[1]), work), strict=True):
            outcomes.exits[rows, : counts.shape[2]] = counts[0]
            outcomes.wrong[rows, : counts.shape[2]] = counts[1]
    return outcomes


@dataclass(frozen=True, slots=True)
class _TierTable:
    """Every distinct tier once: (K, W) words each, and (W,) ones for all examples."""

    right: Words
    is_final: Words
    all_rows: Words

    def run(self, tier_index: NDArray[np.intp]) -> Counts:
        """(2, C, T) exits and wrong exits of C cascades of T tiers, `places` (C, T) pointing into the table."""
        n, n_tiers = tier_index.shape
        counts = np.empty((2, n, n_tiers), dtype=np.int64)
        active = np.repeat(self.all_rows[None], n, axis=0)  # (C, W)
        for number in range(n_tiers):
            leaving = active if number == n_tiers - 1 else active & self.is_final[tier_index[:, number]]
            counts[0, :, number] = ones(leaving)
            counts[1, :, number] = counts[0, :, number] - ones(leaving & self.right[tier_index[:, number]])
            if leaving is not active:
                active ^= leaving  # what left is no longer here
        return counts
