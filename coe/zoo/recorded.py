"""A cascade over what members said, for the recipes' reports: recorded outputs through `coe.cascade` itself."""

from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from coe.cascade import Agreement, Always, Batch, Cascade, Decisions, DeferralRule, LocalTier
from coe.models import TableMember

AGREEMENTS = {"2/3": Agreement(Fraction(2, 3)), "unanimous": Agreement(Fraction(1))}
Outputs = NDArray[np.float32]  # (B, L)
Tiers = Sequence[Mapping[str, Outputs]]  # of each tier: member -> what it said


def decide(tiers: Tiers, agreements: Sequence[str]) -> Decisions:
    """The cascade of these tiers on all B examples; one agreement for each but the last, which always answers."""
    rules: list[DeferralRule] = [*(AGREEMENTS[name] for name in agreements), Always()]
    seats = [
        LocalTier(str(number), [TableMember(outputs, name) for name, outputs in tier.items()], rule)
        for number, (tier, rule) in enumerate(zip(tiers, rules, strict=True), start=1)
    ]
    return Cascade(seats).decide(_all(tiers[0]))


def plurality_of(tier: Mapping[str, Outputs]) -> NDArray[np.int64]:
    """(B,) the label that the tier's members give where they must all answer."""
    every = Always(asks_all=True)
    seats = [TableMember(outputs, name) for name, outputs in tier.items()]
    labels: NDArray[np.int64] = LocalTier("alone", seats, every).vote(_all(tier), every).labels
    return labels


def _all(tier: Mapping[str, Outputs]) -> Batch:
    rows = np.arange(len(next(iter(tier.values()))))  # (B,)
    return Batch(tuple(map(str, rows)), rows[:, None])
