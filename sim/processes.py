"""Real programs as real processes: a cloud server, an edge agent."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from coe.cascade import TierUnavailable

READY = re.compile(r"ready on (\S+):(\d+)")


class Server:
    """`coe-cloud serve` on a free port of this machine; use it in a `with` block.

    Raises:
        TierUnavailable: it did not become ready within `timeout_s`; the message has its last words.
    """

    def __init__(self, config: Path, timeout_s: float = 30.0) -> None:
        command = [sys.executable, "-m", "cloud.main", "serve", "--config", str(config), "--grpc-port", "0"]
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
            self._await_ready(timeout_s)
        except BaseException:
            self.stop()
            raise

    def _await_ready(self, timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        while not self._ready.wait(0.05):
            if self._process.poll() is not None or time.monotonic() > end:
                raise TierUnavailable("cloud", "the server did not start: " + " | ".join(self._words))

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

    def __enter__(self) -> Server:
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
    command = [sys.executable, "-m", "edge.main", "--config", str(config), *arguments]
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
