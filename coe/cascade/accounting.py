"""Three ways to charge a cascade's average cost, always named.

- `exit`: each example pays for the tier where it leaves, alone. The paper's Table 2 and Figure 5.
- `reach`: it pays for every tier it passed, the members of a tier in parallel (the slowest counts).
- `reach-serial`: as reach, members one after another (their sum). What one core sees.

The costs may be seconds, FLOPs, dollars or bytes: any quantity each member of each tier has.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Accounting(Enum):
    EXIT = "exit"
    REACH = "reach"
    REACH_SERIAL = "reach-serial"


def tier_charges(member_costs: Sequence[Sequence[float]], accounting: Accounting) -> NDArray[np.float64]:
    """(T,) what an example pays that leaves at tier 1, 2, .. T.

    Args:
        member_costs: for each tier, the cost of each of its members on one example.
    """
    serial = accounting is Accounting.REACH_SERIAL
    own = np.array([sum(costs) if serial else max(costs) for costs in member_costs], dtype=np.float64)
    return own if accounting is Accounting.EXIT else own.cumsum()


def average_cost(exit_shares: ArrayLike, member_costs: Sequence[Sequence[float]], accounting: Accounting) -> float:
    """Mean cost of one example.

    Args:
        exit_shares: (T,) share of the examples that leave at each tier; sums to 1.
        member_costs: for each tier, the cost of each of its members on one example.
    """
    shares = np.asarray(exit_shares, dtype=np.float64)
    if shares.shape != (len(member_costs),) or not np.isclose(shares.sum(), 1.0, atol=1e-6):
        raise ValueError(f"exit shares {shares.tolist()} must be one per tier ({len(member_costs)}) and sum to 1")
    return float(shares @ tier_charges(member_costs, accounting))


def communication(exit_shares: ArrayLike, delays_s: ArrayLike) -> float:
    """Mean communication of one example: sum_i exit_i * d_i seconds, exit-accounted. Paper: Figure 5."""
    return float(np.asarray(exit_shares, dtype=np.float64) @ np.asarray(delays_s, dtype=np.float64))


def communication_ratio(exit_shares: ArrayLike, delays_s: Sequence[float]) -> float:
    """How many times less a cascade communicates than its last tier alone: d_last / sum_i exit_i * d_i."""
    return delays_s[-1] / communication(exit_shares, delays_s)
