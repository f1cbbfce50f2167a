"""The programs as real processes, which end with the test however it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

BOUND_S = 90.0  # nothing here may take longer, on any machine
READY = re.compile(r"ready on (\S+):(\d+): (.*)")

EDGE = """
task: zoo:digits
tiers:
  - name: device
    members: [zoo:digits/stroke.onnx, zoo:digits/loom.onnx, zoo:digits/mosaic.onnx]
    {rule}
  - {{name: cloud, address: "127.0.0.1:{port}", model: digits, deadline_ms: {deadline_ms}}}
source: {source}
sink: {{path: {sink}}}
"""


class Program:
    """`python -m MODULE ...` in a `with` block; its words go to files in `folder`."""

    def __init__(
        self, module: str, arguments: Sequence[object], folder: Path, stdin: bytes | int | None = None
    ) -> None:
        self._out, self._err = folder / f"{id(self)}.out", folder / f"{id(self)}.err"
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("COE_", "GRPC_"))}
        command = [sys.executable, "-W", "error::ResourceWarning", "-m", module, *map(str, arguments)]
        given = subprocess.PIPE if isinstance(stdin, bytes) else subprocess.DEVNULL if stdin is None else stdin
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(command, stdin=given, stdout=out, stderr=err, env=environment)
        if isinstance(stdin, bytes):
            assert self.process.stdin is not None
            self.process.stdin.write(stdin)
            self.process.stdin.close()

    @property
    def said(self) -> str:
        return self._out.read_text(encoding="utf-8")

    @property
    def complained(self) -> str:
        return self._err.read_text(encoding="utf-8")

    @property
    def records(self) -> list[dict[str, Any]]:
        """The whole JSON lines on its standard output."""
        return records_in(self.said)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Its exit code, once it has ended by itself."""
        return self.process.wait(BOUND_S)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(BOUND_S)


class Cloud(Program):
    """`coe-cloud serve` on a free port, or on `port`; ready once the block begins."""

    def __init__(self, folder: Path, config: Path | None = None, port: int = 0) -> None:
        arguments = ["serve", "--grpc-port", port, *(["--config", config] if config else [])]
        super().__init__("cloud.main", arguments, folder)
        self.port = 0

    def __enter__(self) -> Cloud:
        try:
            until(lambda: READY.search(self.said) or self.process.poll() is not None, lambda: self.complained)
            found = READY.search(self.said)
            assert found, self.complained
            self.port = int(found[2])
        except BaseException:
            self.__exit__()
            raise
        return self


def edge(folder: Path, config: Path, *arguments: object, stdin: bytes | int | None = None) -> Program:
    return Program("edge.main", ["--config", config, *arguments], folder, stdin)


def edge_config(
    folder: Path,
    port: int,
    *more: str,
    source: str = "{kind: digits}",
    rule: str = "agreement: unanimous",
    sink: str = '"-"',
    deadline_ms: int = 5000,
) -> Path:
    path = folder / "edge.yaml"
    text = EDGE.format(port=port, source=source, rule=rule, sink=sink, deadline_ms=deadline_ms)
    path.write_text(text + "".join(f"{line}\n" for line in more), encoding="utf-8")
    return path


def records_in(text: str) -> list[dict[str, Any]]:
    whole = text[: text.rfind("\n") + 1]
    return [json.loads(line) for line in whole.splitlines()]


def until(
    claim: Callable[[], object],
    otherwise: Callable[[], object] = lambda: "it never came true",
    within_s: float = BOUND_S,
) -> None:
    end = time.monotonic() + within_s
    while not claim():
        assert time.monotonic() < end, otherwise()
        time.sleep(0.01)


def closed_port() -> int:
    """A port of this machine where nobody listens."""
    import socket

    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])
