"""A device in front of a cloud: the bundled digits, of which nearly all are deferred, and a watch over the link.

As a program: `python device.py ADDRESS SECONDS DEADLINE_MS [unwatched]` decides digits for so long and prints a JSON
line for each; the settings of the link are the defaults.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import yaml

from coe.cascade import Batch, Cascade, Decision
from coe.config import Fields, Report
from coe.config.cascade import read_cascade
from coe.config.open import open_cascade
from coe.models.inputs import InputDecoder
from coe.zoo import digits
from edge.link import LinkConfig
from edge.linked_tier import LinkedTier, watch_links

LINK = LinkConfig(failures=3, rebuild_after=3, backoff_s=(0.05, 0.5))
SLACK_S = 1.0  # beyond an example's deadline, on a machine that does other things as well

CASCADE = """
task: zoo:digits
tiers:
  - name: device
    members: [zoo:digits/stroke.onnx, zoo:digits/loom.onnx, zoo:digits/mosaic.onnx]
    confidence: 1.0
  - {name: cloud, model: digits, deadline_ms: 2000}
"""


@dataclass
class Answered:
    """A decision, and how long it took; `at` is a `time.monotonic()`."""

    decision: Decision
    took_s: float
    at: float

    @property
    def is_from_the_cloud(self) -> bool:
        return self.decision.exit_tier > 1 and not self.decision.degraded

    @property
    def reason(self) -> str | None:
        return self.decision.degraded.split(":")[0] if self.decision.degraded else None


class Device:
    """Decides one digit after another.

    Args:
        address: of the cloud; a list of addresses, too.
        link: None: nobody watches the link, as before there was a watch.
    """

    def __init__(self, address: str | Sequence[str], link: LinkConfig | None = LINK, **of_the_tier: object) -> None:
        content = yaml.safe_load(CASCADE)
        content["tiers"][1].update({"address": address, **of_the_tier})
        report = Report("device.yaml")
        config = read_cascade(Fields(content, report), Path())
        report.check()
        self.cascade: Cascade = open_cascade(config)
        self.links: list[LinkedTier] = []
        if link is not None:
            self.cascade, self.links = watch_links(self.cascade, link)
        self._door = InputDecoder(config.task.input_spec)
        self._digits = cycle(digits.test_examples(100))

    @property
    def link(self) -> LinkedTier:
        return self.links[0]

    def next_batch(self, deadline_s: float) -> Batch:
        """The next digit as it comes through the door."""
        name, png, _ = next(self._digits)
        return self._door.batch([name], [png], time.monotonic() + deadline_s)

    def decide(self, deadline_s: float = 2.0) -> Answered:
        """The next digit, which the device alone is not sure of."""
        started = time.monotonic()
        decision = self.cascade.decide(self.next_batch(deadline_s))[0]
        ended = time.monotonic()
        return Answered(decision, ended - started, ended)

    def decide_until_cloud(self, within_s: float, deadline_s: float = 0.25) -> list[Answered]:
        """Digits until the cloud has answered one, which is the last."""
        end = time.monotonic() + within_s
        answered = [self.decide(deadline_s)]
        while not answered[-1].is_from_the_cloud:
            assert time.monotonic() < end, f"no answer of the cloud within {within_s} s: {self.link.state}"
            time.sleep(0.005)
            answered.append(self.decide(deadline_s))
        return answered


@contextmanager
def device(address: str | Sequence[str], link: LinkConfig | None = LINK, **of_the_tier: object) -> Iterator[Device]:
    opened = Device(address, link, **of_the_tier)
    try:
        yield opened
    finally:
        opened.cascade.close()


def _run(address: str, seconds: float, deadline_ms: float, watched: bool) -> None:
    with device(address, LinkConfig() if watched else None) as opened:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            answered = opened.decide(deadline_ms / 1000)
            line = {
                "at": answered.at,
                "took_s": answered.took_s,
                "is_from_the_cloud": answered.is_from_the_cloud,
                "reason": answered.reason,
                "n_rebuilds": opened.link.state.n_rebuilds if watched else 0,
            }
            print(json.dumps(line), flush=True)
            time.sleep(0.02)


if __name__ == "__main__":
    _run(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), "unwatched" not in sys.argv)
