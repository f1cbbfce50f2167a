"""The processes of a benchmark: servers that are stopped in every case, workers that are asked in JSON lines, and
what /proc says of them. Linux only.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
READY = re.compile(r"ready on (\S+:\d+)")
START_S, STOP_S = 30.0, 12.0
DIE_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG
QUIET_CORES = 0.2  # that other programs may take before figures are not to be believed
PACKAGES = ("grpcio", "uvloop", "onnxruntime", "numpy", "protobuf")


class Server:
    """A process that says "ready on HOST:PORT", and is stopped when the `with` block ends, however it ends."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self.address = ""
        self.pid = 0

    def __enter__(self) -> Server:
        self._said = tempfile.TemporaryFile()  # a pipe that nobody reads would fill up
        self._process = _start(self._arguments, stdout=self._said, stderr=subprocess.STDOUT)
        self.pid = self._process.pid
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        _stop(self._process)
        self._said.close()

    def _wait(self) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            said = self._words()
            if found := READY.search(said):
                self.address = found[1]
                return
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        raise SystemExit(f"{' '.join(self._arguments)}: did not get ready:\n{self._words()[-4000:]}")

    def _words(self) -> str:
        return os.pread(self._said.fileno(), 2**20, 0).decode(errors="replace")


class Worker:
    """A Python file of this folder in a process of its own, with a client's or a model's work to do.

    It reads one JSON object a line and answers each with one.
    """

    def __init__(self, file: str) -> None:
        self._file = file
        self._process = _start([str(HERE / file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        _stop(self._process)

    def send(self, **job: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._file}: ended in the middle of its work (see its words above)")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, **job: Any) -> dict[str, Any]:
        self.send(**job)
        return self.receive()


def coe_cloud(config: Path) -> Server:
    """`coe-cloud serve` on a free port, from the code beside this folder."""
    return Server("-m", "cloud.main", "serve", "--config", str(config), "--grpc-port", "0")


def echo(loop: str) -> Server:
    """The bare echo, on "asyncio" or "uvloop"."""
    return Server(str(HERE / "echo.py"), "--loop", loop)


def end_with_everything() -> ExitStack:
    """For a benchmark's processes; SIGTERM unwinds it too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return ExitStack()


def serve_jobs(answer: Any) -> None:
    """A worker's life: answer each line of standard input until it ends."""
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used, all threads, user and system; 0 for no process."""
    if not pid:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def busy_s() -> float:
    """CPU seconds that all the machine's cores have worked, for whomever."""
    user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """VmRSS of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def machine() -> dict[str, Any]:
    """What the figures are of."""
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "machine": platform.machine(),
        "cpu": model[1] if model else "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **versions,
        "load_average": os.getloadavg(),
    }


def _start(arguments: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    libc = ctypes.CDLL(None)
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=HERE.parent,  # so that `-m cloud.main` is the code beside this folder
        preexec_fn=lambda: libc.prctl(DIE_WITH_PARENT, signal.SIGKILL),
        **options,
    )


def _stop(process: subprocess.Popen[Any]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
