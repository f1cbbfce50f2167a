"""Large requests (a part of bench/cloud.py): against as many small ones, and what they cost those beside them."""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

from processes import Server, Worker

ROWS, LARGEST, SMALL_CLIENTS = 100, 1024, 8


def measure_large(server: Server, small: Worker, large: Worker, options: Any) -> dict[str, Any]:
    """One large request for many rows against single ones; small requests with and without large ones beside them.

    Args:
        small, large: load workers: two processes, so that a large request is not in its neighbours' client's way.
    """
    repeats = max(3, round(options.rounds * options.seconds * 4))
    took = small.ask(do="burst", address=server.address, rows=ROWS, payload=options.payload, repeats=repeats)
    job = {"do": "closed", "address": server.address, "pid": server.pid, "seconds": options.seconds}
    job |= {"payload": options.payload, "clients": SMALL_CLIENTS, "warm_s": 0.2}
    # Few different requests of 1024 rows are enough, and each is of megabytes.
    heavy = job | {"rows": LARGEST, "n_requests": 2, "clients": 1}
    alone, beside, large_alone, large_beside = [], [], [], []
    for _ in range(options.rounds):
        alone.append(small.ask(**job))
        large_alone.append(large.ask(**heavy))
        at = time.monotonic() + 0.5
        large.send(**heavy | {"at": at})
        small.send(**job | {"at": at})
        large_beside.append(large.receive())
        beside.append(small.receive())
    errors: dict[str, int] = {}
    for answer in (*alone, *beside, *large_alone, *large_beside):
        for code, n in answer["errors"].items():
            errors[code] = errors.get(code, 0) + n
    result = {
        "rows_at_once": _burst(took),
        "beside": {
            "large_rows": LARGEST,
            "small_clients": SMALL_CLIENTS,
            "small_alone": _figures(alone),
            "small_beside_large": _figures(beside),
            "large_alone": _figures(large_alone),
            "large_beside_small": _figures(large_beside),
        },
        "errors": errors,
    }
    _print(result)
    return result


def _burst(took: dict[str, list[float]]) -> dict[str, Any]:
    """Ratios are within a repeat."""
    at_once = [one / many for one, many in zip(took["one_request"], took["single_at_once"], strict=True)]
    return {
        "rows": ROWS,
        "repeats": len(at_once),
        **{f"{way}_s": statistics.median(seconds) for way, seconds in took.items()},
        "slowest_one_request_s": max(took["one_request"]),
        "ratio_to_single_at_once": statistics.median(at_once),
        "worst_ratio": max(at_once),
        "never_slower": max(at_once) <= 1,
    }


def _figures(answers: list[dict[str, Any]]) -> dict[str, float]:
    """Over all rounds' calls together."""
    latencies = sorted(latency for answer in answers for latency in answer["latencies_us"])
    if not latencies:
        raise SystemExit("no call was answered in a whole measurement: give it more --seconds")
    n = len(latencies)
    return {
        "requests_per_s": n / sum(answer["seconds"] for answer in answers),
        "p50_s": latencies[n // 2] / 1e6,
        "p99_s": latencies[min(n - 1, n * 99 // 100)] / 1e6,
        "slowest_s": latencies[-1] / 1e6,
    }


def _print(result: dict[str, Any]) -> None:
    burst = result["rows_at_once"]
    print(
        f"{ROWS} rows in one request {burst['one_request_s'] * 1e3:.1f} ms, as single ones at once "
        f"{burst['single_at_once_s'] * 1e3:.1f} ms, in turn {burst['single_in_turn_s'] * 1e3:.1f} ms; "
        f"worst ratio to those at once {burst['worst_ratio']:.2f}",
        file=sys.stderr,
    )
    for name, row in result["beside"].items():
        if isinstance(row, dict):
            figures = ", ".join(f"{key[:-2]} {row[key] * 1e3:.1f} ms" for key in ("p50_s", "p99_s", "slowest_s"))
            print(f"{name:>20}: {row['requests_per_s']:.0f} requests/s, {figures}", file=sys.stderr)
