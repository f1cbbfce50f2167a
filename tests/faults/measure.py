"""What a fault costs a device with and without the watch over its link: `python tests/faults/measure.py`, as root.

Prints JSON, in seconds, each a list of runs. Takes about five minutes; needs iproute2 for the two networks.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

sys.path[0:0] = [
    str(Path(__file__).parents[2]),
    *(str(Path(__file__).parents[1] / room) for room in ("e2e", "protocol")),
]

from device import device  # noqa: E402 - found where the line above says
from programs import Cloud, closed_port  # noqa: E402
from proxies import BlackHole, Proxy  # noqa: E402
from test_faults_network import DEADLINE_MS, Running, at_work  # noqa: E402

from coe.cascade import Always, TierError  # noqa: E402
from edge.link import LinkConfig  # noqa: E402

WAYS = {"unwatched": None, "watched": LinkConfig()}
N_RUNS = 3


def with_nobody_there(link: LinkConfig | None) -> float:
    """Median of a deferred digit."""
    with device(f"127.0.0.1:{closed_port()}", link) as opened:
        for _ in range(3):
            opened.decide()
        return statistics.median(opened.decide().took_s for _ in range(20))


def refusal() -> float:
    """Mean of a call that is not made."""
    n = 2000
    with device(f"127.0.0.1:{closed_port()}", LinkConfig(backoff_s=(100.0, 100.0))) as opened:
        batch = opened.next_batch(100.0)
        for _ in range(3):
            opened.decide()
        started = time.perf_counter()
        for _ in range(n):
            with suppress(TierError):
                opened.link.vote(batch, Always())
        return (time.perf_counter() - started) / n


def after_a_switch_of_networks(link: LinkConfig | None, port: int) -> float:
    """Until the cloud answers, on a connection that works."""
    with Proxy(port) as proxy, device(proxy.address, link) as opened:
        while not opened.decide(5.0).is_from_the_cloud:
            pass
        proxy.fault = BlackHole(spares_new=True)
        began = time.monotonic()
        while not opened.decide(DEADLINE_MS / 1000).is_from_the_cloud:
            time.sleep(0.02)
        return time.monotonic() - began


def after_an_outage(way: str, cut: Callable[[Running], None], fix: Callable[[Running], None], seconds: float) -> float:
    """From the mending until the cloud answers."""
    with tempfile.TemporaryDirectory() as folder, at_work(Path(folder), *[way][: way == "unwatched"]) as running:
        cut(running)
        time.sleep(seconds)
        ended = time.monotonic()
        fix(running)
        return running.until_cloud_answers(ended)


def main() -> None:
    measured: dict[str, object] = {"a call that is not made": [refusal() for _ in range(N_RUNS)]}
    measured["a digit with nobody there"] = {
        way: [with_nobody_there(link) for _ in range(N_RUNS)] for way, link in WAYS.items()
    }
    with tempfile.TemporaryDirectory() as folder, Cloud(Path(folder)) as server:
        measured["after a switch of networks"] = {
            way: [after_a_switch_of_networks(link, server.port) for _ in range(N_RUNS if link else 1)]
            for way, link in WAYS.items()
        }
    for seconds in (6.0, 20.0):
        n_runs = N_RUNS if seconds < 10 else 1
        measured[f"after packets vanished for {seconds:g} s"] = {
            way: [
                after_an_outage(
                    way, lambda at: at.cloud.cut_at_the_switch(), lambda at: at.cloud.mend_at_the_switch(), seconds
                )
                for _ in range(n_runs)
            ]
            for way in WAYS
        }
        measured[f"after the device's interface was down for {seconds:g} s"] = {
            way: [
                after_an_outage(way, lambda at: at.device.take_down(), lambda at: at.device.bring_up(), seconds)
                for _ in range(n_runs)
            ]
            for way in WAYS
        }
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
