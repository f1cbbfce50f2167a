"""Times the page in a real browser, beside the Python runtime on the same machine; prints JSON.

    python web/measure.py [--digits 1000] [--rounds 5]

Needs the built page (web/dist, or COE_WEB_DIST), Chromium, and `pip install playwright`. Rounds alternate, so that both
see the same machine; a figure is the median over the rounds of the mean over the digits without the slowest twentieth
(a browser tells times in steps of 0.1 ms, so a median would be one of few numbers).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[1:1] = [str(ROOT), str(ROOT / "tests" / "web"), str(ROOT / "tests")]

from phone import CHROMIUM, DIST, Phone, missing, server  # noqa: E402

from coe import __version__  # noqa: E402
from coe.config.open import open_cascade  # noqa: E402
from coe.models.inputs import InputDecoder  # noqa: E402
from coe.zoo.digits import test_examples  # noqa: E402
from edge.config import default_config, read_config  # noqa: E402

WARM = 50
LINK = {"offline": False, "latency": 50, "downloadThroughput": 10e6 / 8, "uploadThroughput": 5e6 / 8}  # ms, bytes/s
TIMED = """async (examples) => {
  const all = examples.map((base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0)));
  const rows = [];
  const started = performance.now();
  for (const captured of all) {
    const before = performance.now();
    const { decodeMs, decision } = await window.coe.measure(captured);
    rows.push([performance.now() - before, decodeMs, decision.tierTimesMs[0]]);
  }
  return { rows, allMs: performance.now() - started };
}"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--digits", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if why := missing():
        print(why, file=sys.stderr)
        return 1
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as hub, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        digits = _kept_here(options.digits)
        told = {
            "coe": __version__,
            "chromium": chromium.version,
            "cpus": os.cpu_count(),
            "page": _sizes(),
            "decision": _decisions(chromium, hub.url, digits, options.rounds),
            "start": _starts(chromium, hub.url, digits[0], options.rounds),
        }
        chromium.close()
    print(json.dumps(told, indent=2))
    return 0


def _kept_here(n_digits: int) -> list[bytes]:
    """Digits that the device decides by itself: no network in the figures."""
    config = read_config(default_config())
    cascade = open_cascade(config.cascade)
    door = InputDecoder(config.cascade.task.input_spec)
    kept = []
    for name, png, _ in test_examples(n_digits):
        run = cascade.start(door.batch([name], [png]))
        run.step()
        if run.is_done:
            kept.append(png)
    cascade.close()
    return kept


def _decisions(chromium: Any, url: str, digits: list[bytes], rounds: int) -> dict[str, Any]:
    """Milliseconds a decision, from the captured PNG to the answer, and of it decoding and the tier."""
    import base64

    phone = Phone(chromium.new_context())
    phone.open(url)
    packed = [base64.b64encode(png).decode() for png in digits]
    phone.page.evaluate(TIMED, packed[:WARM])
    pages, pis = [], []
    for _ in range(rounds):
        told = phone.page.evaluate(TIMED, packed)
        pages.append([_mean(column) for column in zip(*told["rows"], strict=True)])
        pis.append(_python(digits))
    browser = [statistics.median(column) for column in zip(*pages, strict=True)]
    python = [statistics.median(column) for column in zip(*pis, strict=True)]
    phone.context.close()
    names = ("in_all_ms", "decode_ms", "tier_ms")
    return {
        "digits": len(digits),
        "browser": dict(zip(names, browser, strict=True)),
        "python": dict(zip(names, python, strict=True)),
        "ratio_of_tiers": browser[2] / python[2],
        "ratio_in_all": browser[0] / python[0],
    }


def _python(digits: list[bytes]) -> list[float]:
    """The same with ONNX Runtime in Python: one example at a time, one thread, PNG to answer."""
    config = read_config(default_config())
    cascade = open_cascade(config.cascade)
    door = InputDecoder(config.cascade.task.input_spec)
    rows = []
    for number, png in enumerate(digits[:WARM] + digits):
        started = time.perf_counter()
        batch = door.batch(["x"], [png])
        decoded = time.perf_counter()
        run = cascade.start(batch)
        run.step()
        run.decisions()[0]
        ended = time.perf_counter()
        if number >= WARM:
            rows.append((1e3 * (ended - started), 1e3 * (decoded - started), 1e3 * (ended - decoded)))
    cascade.close()
    return [_mean(column) for column in zip(*rows, strict=True)]


def _mean(times: Iterable[float]) -> float:
    ordered = sorted(times)
    return statistics.fmean(ordered[: max(1, len(ordered) * 19 // 20)])


def _starts(chromium: Any, url: str, digit: bytes, rounds: int) -> dict[str, Any]:
    """Milliseconds from opening the page to the first decision: cold, from what is kept, and without any network."""
    found: dict[str, list[float]] = {"cold_ms": [], "cold_10_mbit_ms": [], "kept_ms": [], "no_network_ms": []}
    n_bytes = 0
    for _ in range(rounds):
        for name, link in (("cold_ms", None), ("cold_10_mbit_ms", LINK)):
            phone = Phone(chromium.new_context())
            inside = phone.context.new_cdp_session(phone.page)
            inside.send("Network.enable")
            sizes: list[float] = []
            inside.on("Network.loadingFinished", lambda event, sizes=sizes: sizes.append(event["encodedDataLength"]))
            if link:
                inside.send("Network.emulateNetworkConditions", link)
            found[name].append(_first_decision(phone, url, digit))
            n_bytes = int(sum(sizes))
            if link is None:
                phone.ready_for_no_network()
                found["kept_ms"].append(_first_decision(phone, url, digit))
                phone.context.set_offline(True)
                found["no_network_ms"].append(_first_decision(phone, url, digit))
            phone.context.close()
    return {name: statistics.median(times) for name, times in found.items()} | {"bytes_of_first_visit": n_bytes}


def _first_decision(phone: Phone, url: str, digit: bytes) -> float:
    phone.open(url)
    phone.decide([("first", digit)])
    told: float = phone.page.evaluate("() => window.coe.started().firstDecisionMs")
    return told


def _sizes() -> dict[str, int]:
    """Bytes of the page without WebGPU, as they are and as they travel."""
    files = [path for path in DIST.rglob("*") if path.is_file() and path.suffix not in (".br", ".gz")]
    shell = [path for path in files if "webgpu" not in path.name and "asyncify" not in path.name]
    packed = [path.with_name(f"{path.name}.br") for path in shell]
    return {
        "bytes": sum(path.stat().st_size for path in shell),
        "bytes_sent": sum(
            (small if small.is_file() else path).stat().st_size for path, small in zip(shell, packed, strict=True)
        ),
        "bytes_of_webgpu": sum(path.stat().st_size for path in files if path not in shell),
    }


if __name__ == "__main__":
    sys.exit(main())
