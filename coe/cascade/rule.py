"""Deferral rules: does this tier's answer stand, or does the example go on?

A rule says `needed(n_members)` (how many votes make the tier answer, for stopping early) and
`exits(batch, vote)`. Agreement is the paper's rule; the others are the baselines it is compared with.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .types import NO_LABEL, Batch, Vote

NEAR_MISS = Fraction(2, 100)  # a decimal this little above a reachable fraction was probably meant as it


class DeferralRule(Protocol):
    """What a cascade asks of a rule.

    `pools_scores`: the tier's label is that of the members' mean output instead of the plurality.
    """

    @property
    def pools_scores(self) -> bool: ...

    def needed(self, n_members: int) -> int | None:
        """Votes that make the tier answer; None where the vote alone does not tell, so all are asked."""

    def exits(self, batch: Batch, vote: Vote) -> NDArray[np.bool_]:
        """(B,) bool: True where the answer stands (the paper's r(x) = 1)."""
        ...


@dataclass(frozen=True, slots=True)
class Agreement:
    """The answer stands where at least `theta` of the members agree. Paper: Eq. (3).

    `theta` is an exact fraction in (0, 1]; comparisons are between integers. Over members asked in turn and
    stopped early, votes / asked >= theta holds exactly where it would after asking everybody.
    """

    theta: Fraction
    pools_scores: bool = False

    def __post_init__(self) -> None:
        """Also "2/3" and 0.6 are taken, the latter as its shortest decimal. Raises ValueError outside (0, 1]."""
        theta = self.theta if isinstance(self.theta, Fraction) else Fraction(str(self.theta))
        if not 0 < theta <= 1:
            raise ValueError(f"expected a share in (0, 1], got {self.theta}")
        object.__setattr__(self, "theta", theta)

    def needed(self, n_members: int) -> int:
        return math.ceil(self.theta * n_members)

    def exits(self, batch: Batch, vote: Vote) -> NDArray[np.bool_]:
        if len(vote.count) == 1:  # the device's hot path: plain integers
            stands_alone = vote.count.item() * self.theta.denominator >= vote.asked.item() * self.theta.numerator
            return np.array((stands_alone,), dtype=np.bool_)
        stands: NDArray[np.bool_] = vote.count * self.theta.denominator >= vote.asked * self.theta.numerator
        return stands


@dataclass(frozen=True, slots=True)
class Always:
    """The last tier's rule: it answers, whatever its vote, if a member voted at all. Paper: Algorithm 1, last line."""

    pools_scores: bool = False
    asks_all: bool = False  # the vote itself is wanted (a tier served to others), not only the label

    def needed(self, n_members: int) -> int | None:
        return None if self.pools_scores or self.asks_all else 0

    def exits(self, batch: Batch, vote: Vote) -> NDArray[np.bool_]:
        stands: NDArray[np.bool_] = vote.labels != NO_LABEL
        return stands


def fuses(rule: DeferralRule | None) -> bool:
    """True if the rule has a method `fuse`: it gives label and score itself, from what all members so far said."""
    return hasattr(rule, "fuse")


def as_last(rule: DeferralRule) -> DeferralRule:
    """The rule of a tier that is the last: it always answers, with the label that its own rule gives."""
    return rule if isinstance(rule, Always) or fuses(rule) else Always(rule.pools_scores)


@dataclass(frozen=True, slots=True)
class Confidence:
    """Baseline: the answer stands where the maximum probability of the (mean) output is >= threshold.

    Wang et al., "Wisdom of Committees", 2021. With one member it is that member's own confidence.
    """

    threshold: float
    pools_scores: bool = True

    def needed(self, n_members: int) -> None:
        return None

    def exits(self, batch: Batch, vote: Vote) -> NDArray[np.bool_]:
        return vote.score >= self.threshold


@dataclass(frozen=True, slots=True)
class Ideal:
    """Headroom, for studies: the answer stands exactly where it is right. Needs the labels.

    Paper: Proposition 1; a rule that never keeps a wrong answer meets its condition with epsilon = 0.
    """

    truth: Mapping[str, int]
    pools_scores: bool = False

    def needed(self, n_members: int) -> None:
        return None

    def exits(self, batch: Batch, vote: Vote) -> NDArray[np.bool_]:
        wanted = np.array([self.truth[name] for name in batch.ids], dtype=np.int64)
        right: NDArray[np.bool_] = vote.labels == wanted
        return right


SPELLINGS = 'write "unanimous", "majority", a fraction ("2/3"), a count ("2 of 3") or a decimal (0.6)'


def parse_agreement(value: object, n_members: int | None) -> tuple[Agreement, str | None]:
    """The rule a config's `agreement:` means for `n_members`, and a warning or None.

    Args:
        n_members: None where they are not known here (a remote tier); a count then says it itself.

    Raises:
        ValueError: the text says what was expected, what was found and how to fix it.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"expected an agreement, got {value!r} ({SPELLINGS})")
    text = str(value).strip().lower()
    if text == "unanimous":
        return Agreement(Fraction(1)), None
    if text == "majority":
        if n_members is None:
            raise ValueError('expected a fraction for a remote tier, got "majority" (write "2/3" or "2 of 3")')
        return Agreement(Fraction(n_members // 2 + 1, n_members)), None
    if match := re.fullmatch(r"(\d+)\s+of\s+(\d+)", text):
        count, of = int(match[1]), int(match[2])
        members = of if n_members is None else n_members
        if of != members or not 1 <= count <= of:
            raise ValueError(
                f'expected a count of this tier\'s {members} members, got "{value}" '
                f'(write "{min(max(count, 1), members)} of {members}")'
            )
        return Agreement(Fraction(count, of)), None
    try:
        theta = Fraction(text)  # exact for "2/3" and for decimals: 0.66 is 66/100, not its nearest double
    except (ValueError, ZeroDivisionError):
        raise ValueError(f'expected an agreement, got "{value}" ({SPELLINGS})') from None
    if not 0 < theta <= 1:
        raise ValueError(f"expected a share in (0, 1], got {value} ({SPELLINGS})")
    return Agreement(theta), None if "/" in text or n_members is None else _near_miss(theta, n_members, text)


def _near_miss(theta: Fraction, n_members: int, text: str) -> str | None:
    needed = math.ceil(theta * n_members)
    below = Fraction(needed - 1, n_members)
    if needed > 1 and needed != theta * n_members and theta - below <= NEAR_MISS:
        return (
            f"{text} of {n_members} members needs {needed} votes, because {needed - 1}/{n_members} < {text}; "
            f'write "{needed - 1}/{n_members}" if {needed - 1} of {n_members} was meant'
        )
    return None
