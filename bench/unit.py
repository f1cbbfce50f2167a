"""One agent as its systemd unit runs it, on a folder, before a cloud and a proxy: what bench/faults.py breaks.

As a program it is the agent itself, `unit.py --config edge.yaml`: its member loom fails on files such as
00012-raise.png, by their names.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0:1] = [str(ROOT), *(str(ROOT / "tests" / part) for part in ("", "e2e", "faults", "edge", "edge/sinks"))]

BOUND_S = 90.0  # until every example has its record
DEADLINE_S, SLACK_S = 2.0, 2.0  # of an example, and what a busy machine may add
WATCHDOG_S = 5.0
SPEED_UP = 60.0  # of the pauses between an end and the next start
CONFIG = """
task: zoo:digits
tiers:
  - name: device
    members: [zoo:digits/stroke.onnx, zoo:digits/loom.onnx, zoo:digits/mosaic.onnx]
    confidence: 0.99
  - {{name: cloud, address: "127.0.0.1:{port}", model: digits, deadline_ms: 1000}}
source: {source}
{sinks}
state: state
deadline_ms: {deadline_ms:g}
when_unavailable: spool
spool: {{link_share: 1}}
link: {{backoff_ms: [50, 500]}}
"""
AGENT = [sys.executable, str(Path(__file__).resolve())]
FOLDER, SINK = "{kind: folder, path: in, watch: true}", "sink: {path: out.jsonl}"


def faulty_agent(arguments: list[str]) -> int:
    """`coe-edge ARGUMENTS`, whose member loom fails on files such as 00012-raise.png."""
    from coe.cascade.tier import LocalTier
    from coe.models.onnx import OnnxMember
    from edge.main import main

    under_way = [""]
    vote, predict = LocalTier.vote, OnnxMember.predict

    def noted_vote(self: Any, batch: Any, rule: Any) -> Any:
        under_way[0] = batch.ids[0]
        return vote(self, batch, rule)

    def failing_predict(self: Any, x: Any) -> Any:
        kind = under_way[0].rpartition("-")[2].partition(".")[0]
        output = predict(self, x)
        if "loom" not in self.name:
            return output
        if kind == "raise":
            raise ValueError("a fault of this member")
        if kind == "memory":
            raise MemoryError
        if kind == "hang":
            time.sleep(3600)
        if kind == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        return output[:, :-1] if kind == "shape" else output * float("nan") if kind == "nan" else output

    LocalTier.vote, OnnxMember.predict = noted_vote, failing_predict  # type: ignore[method-assign]
    return main(arguments)


class Unit:
    """The agent as the unit of `coe-edge install-service` runs it, until `stop`, with pauses that are shorter by
    SPEED_UP. `ended`: exit codes of ends that nobody asked for.
    """

    def __init__(self, folder: Path, **environment: str) -> None:
        from edge.config import read_config
        from edge.setup.install_service import ServiceUnit

        self.folder = folder
        text = ServiceUnit(read_config(folder / "edge.yaml"), ("coe-edge",), "").text()
        self.settings = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and line[0] not in "#[")
        assert self.settings["StartLimitIntervalSec"] == "0", "starts without end"
        self.ended: list[int | str] = []
        self.pid = 0
        self.n_starts = 0
        self.is_ready = threading.Event()
        self.is_over = False  # it ended, and is not started again
        self._is_stopped, self._is_killed = False, False
        self._address = str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self._address)
        self._socket.settimeout(0.1)
        self._environment = os.environ | {"PYTHONPATH": str(ROOT), "NOTIFY_SOCKET": self._address} | environment
        self._environment["WATCHDOG_USEC"] = str(int(WATCHDOG_S * 1e6))
        self._log = (folder / "log").open("ab")
        self._start()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def kill(self) -> None:
        """SIGKILL, as a power cut would; it is started again."""
        self._is_killed = True
        self.is_ready.clear()
        self._process.kill()

    def stop(self) -> int:
        """SIGTERM, once it is up again after a kill; its exit code."""
        self.is_ready.wait(0 if self.is_over else 60)
        self._is_stopped = True
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._thread.join()
        self._socket.close()
        self._log.close()
        return code

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def _start(self) -> None:
        command = [*AGENT, "--config", str(self.folder / "edge.yaml")]
        self._beat = time.monotonic() + 60  # a start may take long
        self._process = subprocess.Popen(
            command, env=self._environment, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )
        self.pid = self._process.pid
        self.n_starts += 1

    def restarts_after(self, code: int) -> bool:
        """Whether it is started again after this exit code."""
        never = {int(number) for number in self.settings["RestartPreventExitStatus"].split()}
        return code not in never and (self.settings["Restart"] == "always" or code != 0)

    def pause_s(self, n_restarts: int) -> float:
        """Before the next start after so many, as systemd reckons it."""
        first, steps, most = (float(self.settings[key]) for key in ("RestartSec", "RestartSteps", "RestartMaxDelaySec"))
        return float(first * (most / first) ** min(n_restarts / steps, 1.0)) / SPEED_UP

    def _watch(self) -> None:
        while True:
            with suppress(TimeoutError):
                words = self._socket.recv(65536).decode()
                if "WATCHDOG=1" in words or "READY=1" in words:
                    self._beat = time.monotonic() + WATCHDOG_S
                    self.is_ready.set()
            if time.monotonic() > self._beat and not self._is_stopped:
                self._process.kill()
            if (code := self._process.poll()) is None:
                continue
            if self._is_stopped:
                return
            if not self._is_killed:
                self.ended.append("watchdog" if code == -9 else code)
            self._is_killed = False
            if not self.restarts_after(code):
                self.is_over = True
                return
            time.sleep(self.pause_s(len(self.ended)))
            if not self._is_stopped:
                self._start()


@dataclass
class Bed:
    """A folder, an agent on it, a cloud and a proxy before that; `given` are the names of the files put in."""

    folder: Path
    size: float
    opened: ExitStack = field(default_factory=ExitStack)
    given: list[str] = field(default_factory=list)
    source: str = FOLDER
    sinks: str = SINK
    is_slow_allowed: bool = False  # the scenario stops the agent or the machine for longer than a deadline
    at_least_once: bool = False
    code: int | None = None
    note: str = ""

    def __post_init__(self) -> None:
        from programs import Cloud
        from proxies import Proxy

        from coe.zoo import digits

        (self.folder / "in").mkdir(parents=True)
        self.cloud = self.opened.enter_context(Cloud(self.folder))
        self.proxy = self.opened.enter_context(Proxy(self.cloud.port))
        self._digits = digits.test_examples()
        self.unit: Unit | None = None

    def start(self, **environment: str) -> Unit:
        text = CONFIG.format(port=self.proxy.port, source=self.source, sinks=self.sinks, deadline_ms=DEADLINE_S * 1000)
        (self.folder / "edge.yaml").write_text(text)
        self.unit = Unit(self.folder, **environment)
        return self.unit

    def digit(self) -> bytes:
        return self._digits[len(self.given) % 1000][1]

    def name(self, kind: str = "") -> str:
        self.given.append(f"{len(self.given):05d}{'-' if kind else ''}{kind}.png")
        return self.given[-1]

    def put(self, n: float, kind: str = "", pause_s: float = 0.01) -> None:
        """So many files (`n` is scaled, but one at least), as a camera writes them: under another name first."""
        for _ in range(max(1, round(n * self.size))):
            data, name = self.digit(), self.name(kind)
            part = self.folder / "in" / f"{name}.part"
            part.write_bytes(data)
            part.rename(self.folder / "in" / name)
            time.sleep(pause_s)

    def records(self) -> list[dict[str, Any]]:
        path = self.folder / "out.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def wait(self, claim: Callable[[], object], within_s: float = BOUND_S) -> bool:
        end = time.monotonic() + within_s
        while not (is_true := claim()) and time.monotonic() < end and (self.unit is None or not self.unit.is_over):
            time.sleep(0.05)
        return bool(is_true)

    def is_answered(self) -> bool:
        return set(self.given) <= {record.get("id") for record in self.records()}

    def is_corrected(self) -> bool:
        found = self.records()
        return {r["spooled"] for r in found if "spooled" in r} <= {r["corrects"] for r in found if "corrects" in r}

    def settle(self) -> None:
        """Wait for a record of each file and a correction of each that was spooled, then stop the agent."""
        if self.wait(self.is_answered):
            self.wait(self.is_corrected)
        if self.unit is not None:
            self.code = self.unit.stop()


if __name__ == "__main__":
    sys.exit(faulty_agent(sys.argv[1:]))
