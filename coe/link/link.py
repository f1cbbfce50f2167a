"""A link between a device and a server: each direction a chain of models that a message passes in order.

A model says when messages arrive, for many at once (a fleet) or one (a live study), and keeps what it must between
calls, such as a queue: calls come in the order of time. Each model draws from a random stream of its own, so that
the same messages meet the same link however they are grouped into calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

PACKET_BYTES = 1500

Seconds = NDArray[np.float64]
Bytes = NDArray[np.float64]
Numbers = NDArray[np.intp]  # of links
Passage = Callable[[Seconds, Bytes, Numbers], Seconds]


class LinkModel(Protocol):
    """One thing that happens to messages on their way: a delay, a loss, a queue, an outage."""

    def start(self, rng: np.random.Generator, phases: Seconds) -> Passage:
        """A function of (seconds when sent, bytes, number of the link), each (N,): seconds when they arrive.

        Args:
            phases: (n_links,) in [0, 1): where in its period, such as a recording, each link is at second 0.
        """
        ...


class OneWay:
    """One direction of some links, running."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._passages = passages

    def deliver(self, sent_s: ArrayLike, n_bytes: ArrayLike, links: ArrayLike = 0) -> Seconds:
        """(N,) seconds at which messages arrive.

        Args:
            sent_s: (N,) seconds, or one number; those of one link in order, from call to call too.
            n_bytes: (N,) or one number. links: (N,) from 0, or one number: the link that each message takes.
        """
        at, size, which = np.broadcast_arrays(np.atleast_1d(sent_s), n_bytes, links)
        at, size, which = at.astype(np.float64), size.astype(np.float64), which.astype(np.intp)
        for passage in self._passages:
            at = passage(at, size, which)
        return at


@dataclass(frozen=True, slots=True)
class Link:
    """What lies between a device and a server.

    Args:
        up, down: the models that a message passes on its way there, and an answer on its way back.
        both: passed first in either direction, with one state for both: an outage, a bandwidth that they share.
    """

    up: Sequence[LinkModel] = ()
    down: Sequence[LinkModel] = ()
    both: Sequence[LinkModel] = ()

    def mean_call_s(self, n_bytes: float, n_answered: float = 200) -> float:
        """Seconds that the link adds to a call, on average over calls that do not wait for each other."""
        up, down = self.start(0)
        sent_s = np.random.default_rng(0).exponential(60.0, 4096).cumsum()
        return float((down.deliver(up.deliver(sent_s, n_bytes), n_answered) - sent_s).mean())

    def start(self, seed: int, n_links: int = 1) -> tuple[OneWay, OneWay]:
        """(up, down) of `n_links` such links from second 0: one at the start of its recordings, several anywhere.

        The same seed gives the same links.
        """
        first, *sequences = np.random.SeedSequence(seed).spawn(1 + len(self.both) + len(self.up) + len(self.down))
        phases = np.random.default_rng(first).random(n_links) if n_links > 1 else np.zeros(1)
        rngs = map(np.random.default_rng, sequences)
        both, up, down = (
            [model.start(next(rngs), phases) for model in models] for models in (self.both, self.up, self.down)
        )
        return OneWay(both + up), OneWay(both + down)
