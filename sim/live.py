"""Real programs as real processes: a cloud server, an edge agent, and one measured run of a system."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from coe.cascade import TierUnavailable

from .output import Progress
from .records import Record, read_records
from .systems import BundledTask, Uplink, edge_config, write

PYTHON = (sys.executable, "-P")  # a folder `edge` or `cloud` where this program runs is not ours
READY = re.compile(r"ready on (\S+):(\d+)")


class CloudProcess:
    """`coe-cloud serve` on a free port of this machine; use it in a `with` block.

    Raises:
        TierUnavailable: it did not become ready within `timeout_s`; the message has its last words.
    """

    def __init__(self, config: Path, timeout_s: float = 30.0) -> None:
        command = [*PYTHON, "-m", "cloud.main", "serve", "--config", str(config), "--grpc-port", "0"]
        self._words: deque[str] = deque(maxlen=20)
        self._ready = threading.Event()
        self.port = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        try:
            with _uninterrupted():
                self._process = subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
                )
                self._reader.start()
            end = time.monotonic() + timeout_s
            while not self._ready.wait(0.05):
                if self._process.poll() is not None or time.monotonic() > end:
                    raise TierUnavailable("cloud", "the server did not start: " + " | ".join(self._words))
        except BaseException:
            self.stop()
            raise

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._words.append(line.strip())
            if found := READY.search(line):
                self.port = int(found[2])
                self._ready.set()

    def kill(self) -> None:
        """SIGKILL: gone at once, as in a power cut."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """SIGTERM, and wait for the drain; SIGKILL if that takes longer than 15 s."""
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self.kill()
        self._reader.join(1)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> CloudProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """SIGINT and SIGTERM wait until the block is over: between a child's start and its being known here, they would
    leave it behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def run_agent(
    config: Path, arguments: Sequence[str], watch: Callable[[], None], every_s: float = 0.1, stdin: Path | None = None
) -> None:
    """`coe-edge --config`, to its end; `watch` is called every `every_s` meanwhile.

    Args:
        stdin: a file for its standard input; None: it has none.

    Raises:
        TierUnavailable: it failed; the message has its last words.
    """
    command = [*PYTHON, "-m", "edge.main", "--config", str(config), *arguments]
    process = None
    try:
        with open(stdin or os.devnull, "rb") as given, _uninterrupted():
            process = subprocess.Popen(
                command, stdin=given, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, encoding="utf-8"
            )
        while True:
            try:
                _, words = process.communicate(timeout=every_s)
                break
            except subprocess.TimeoutExpired:
                watch()
    except BaseException:
        if process is not None:
            process.kill()
            process.communicate()
        raise
    if process.returncode != 0:
        raise TierUnavailable("device", "the agent failed: " + " | ".join(words.strip().splitlines()[-5:]))


PACE_S = 0.006  # between two calls, on average, at least
CALLS_APART = 4.0  # and several times what one costs, so that none waits for another's
CALM_S = 5.0  # a run that ends sooner than this one by one needs no concurrency


@dataclass(frozen=True, slots=True)
class Pace:
    """How examples follow each other: one at a time, or started evenly with many under way."""

    interval_s: float
    max_in_flight: int

    @classmethod
    def of(cls, n: int, delay_s: float, deferral_rate: float = 1.0, cost_s: float = 0.0, link_s: float = 0.0) -> Pace:
        """One at a time where even every example's delay is over soon, else evenly spaced starts at a low load.

        A delay is waiting, not work: examples that wait side by side do not slow each other down. The choice is the
        same for all systems at one delay, so that they are compared alike.

        Args:
            delay_s: of a round trip. deferral_rate: share of the examples that make it. cost_s: of the dearest system
                without a delay. link_s: what a model of the link adds to a call, which may be work of the link.
        """
        apart_s = max(PACE_S, CALLS_APART * max(cost_s, link_s))
        if n * (delay_s + link_s + 0.002) <= max(CALM_S, link_s and n * apart_s):
            return cls.one_at_a_time()
        return cls(apart_s * deferral_rate, min(1024, 16 + round(1.5 * (delay_s + link_s) / apart_s)))

    @classmethod
    def one_at_a_time(cls) -> Pace:
        return cls(0.0, 0)


@dataclass(frozen=True, slots=True)
class LiveInput:
    """A bundled task, and the labelled examples that its agent decides.

    Args:
        lines: JSON lines, as the agent reads them from standard input; None: it has examples of its own.
    """

    bundle: BundledTask
    lines: Path | None = None


def run_live(
    live_input: LiveInput, system: str, uplink: Uplink, n: int, progress: Progress, title: str, pace: Pace
) -> list[Record]:
    """One record per example of the first `n`, in the order of their names.

    Raises:
        TierUnavailable: a process failed.
        ConfigError: an example was left without a decision.
    """
    progress.start(title, n)
    with tempfile.TemporaryDirectory(prefix="coe-sim-") as folder:
        sink = Path(folder) / "decisions.jsonl"
        content = edge_config(
            live_input.bundle, system, uplink, sink, interval_s=pace.interval_s, max_in_flight=pace.max_in_flight
        )
        config = write(content, Path(folder) / "edge.yaml")
        run_agent(config, ["--limit", str(n)], lambda: progress.show(_n_lines(sink)), stdin=live_input.lines)
        records = read_records(sink)
    progress.end()
    order = {record.id: record for record in records}
    return [order[name] for name in sorted(order)]


def _n_lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0
