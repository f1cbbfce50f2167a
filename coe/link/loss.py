"""Packets that are lost, and sent again."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .link import PACKET_BYTES, Bytes, Numbers, Passage, Seconds

LONGEST_S = 60.0  # of a wait for a packet, as TCP's


@dataclass(frozen=True, slots=True)
class Loss:
    """Each packet is lost with probability `share`, alone; a message is there when its last packet is.

    A lost packet is sent again after `retransmit_s`, then twice as long each time.
    """

    share: float
    retransmit_s: float = 0.2

    def start(self, rng: np.random.Generator, phases: Seconds) -> Passage:
        longest = 1 + math.ceil(math.log(1e-18, self.share))  # no draw loses a packet more often
        waits_s = np.minimum(self.retransmit_s * 2.0 ** np.arange(longest), LONGEST_S)
        after_s = np.concatenate([[0.0], waits_s.cumsum()])

        def passage(sent_s: Seconds, n_bytes: Bytes, links: Numbers) -> Seconds:
            # The most times that one of n packets is lost is K or more with probability 1 - (1 - share^K)^n.
            n_packets = np.maximum(np.ceil(n_bytes / PACKET_BYTES), 1)
            tail = -np.expm1(np.log(1 - rng.random(len(sent_s))) / n_packets)
            lost = np.floor(np.log(np.maximum(tail, 1e-18)) / math.log(self.share)).astype(np.intp)
            found: Seconds = sent_s + after_s[lost]
            return found

        return passage
