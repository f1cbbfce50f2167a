"""`coe-cloud serve --engine ray` and Ray clusters as processes, in the environment that `.ci/ray` makes for them.

As a program (with that environment's Python): `ray_process.py CPUS...` starts a cluster of so many nodes on this
machine, says its address, and stops it when its standard input ends.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
SETTING = "COE_RAY_PYTHON"
START_S = 120.0  # several processes are started one after another
STORE_BYTES = 100 * 2**20


def ray_python() -> str:
    """An interpreter with Ray and this project; skips the test where there is none."""
    import pytest

    if importlib.util.find_spec("ray") is not None:
        return sys.executable
    found = Path(os.environ.get(SETTING) or HERE.parents[1] / ".venv-ray" / "bin" / "python")
    if not found.exists():
        pytest.skip(f"needs Ray Serve, here or in an environment of its own: .ci/ray .venv-ray, or {SETTING}")
    return str(found)


class RayProgram:
    """A program in a `with` block; however that ends, nothing of it is left: Ray's processes are its descendants."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        self._out, self._err = folder / f"{id(self)}.out", folder / f"{id(self)}.err"
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("COE_", "GRPC_", "RAY_", "PYTHON"))
        }
        self._session = tempfile.mkdtemp(prefix="coe-ray-")  # short: it holds Unix sockets
        environment |= {"RAY_TMPDIR": self._session, "RAY_USAGE_STATS_ENABLED": "0"}
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [ray_python(), *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                env=environment,
            )

    @property
    def said(self) -> str:
        return self._out.read_text(encoding="utf-8")

    @property
    def complained(self) -> str:
        return self._err.read_text(encoding="utf-8")

    def wait_for(self, words: str) -> str:
        """The rest of the line with these words."""
        end = time.monotonic() + START_S
        while words not in self.said:
            assert self.process.poll() is None, f"it ended: {self.said}\n{self.complained}"
            assert time.monotonic() < end, f"{words!r} never came: {self.said}\n{self.complained}"
            time.sleep(0.05)
        return self.said.partition(words)[2].splitlines()[0]

    def __enter__(self) -> RayProgram:
        return self

    def __exit__(self, *_: object) -> None:
        family = descendants(self.process.pid)
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        for pid in [self.process.pid] * (self.process.poll() is None) + [pid for pid, _ in family]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(30)
        shutil.rmtree(self._session, ignore_errors=True)


class RayCloud(RayProgram):
    """`coe-cloud serve --engine ray` on a free port; ready once the block begins."""

    def __init__(self, folder: Path, config: Path, *arguments: object) -> None:
        serve = ["serve", "--engine", "ray", "--insecure", "--grpc-port", 0, "--config", config]
        super().__init__(folder, "-m", "cloud.main", *serve, *arguments)
        self.port = 0

    def __enter__(self) -> RayCloud:
        try:
            self.port = int(self.wait_for("ready on ").partition(": ")[0].rpartition(":")[2])
        except BaseException:
            self.__exit__()
            raise
        return self

    def replicas(self, deployment: str) -> list[int]:
        """Process ids of a deployment's replicas, where the cluster is the program's own."""
        return replicas_of(self.process.pid, deployment)


class RayCluster(RayProgram):
    """A cluster with a node for each of `cpus`, on this machine."""

    def __init__(self, folder: Path, *cpus: int) -> None:
        super().__init__(folder, Path(__file__), *cpus)
        self.address = ""

    def __enter__(self) -> RayCluster:
        try:
            self.address = self.wait_for("cluster at ")
        except BaseException:
            self.__exit__()
            raise
        return self


def replicas_of(ancestor: int, deployment: str) -> list[int]:
    title = re.compile(rf"ray::ServeReplica:[^:]*:{deployment}\b")  # and after it, what it is doing
    return [pid for pid, name in descendants(ancestor) if title.match(name)]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def descendants(ancestor: int) -> list[tuple[int, str]]:
    """(pid, command line) of a process's children, theirs, and so on. Linux only."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = parent_of(int(entry.name))
    family, fresh = [], {ancestor}
    while fresh:
        fresh = {pid for pid, parent in parents.items() if parent in fresh}
        family += sorted(fresh)
    found = []
    for pid in family:
        with contextlib.suppress(OSError):
            found.append((pid, Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")))
    return found


def _run_cluster(cpus: list[int]) -> None:
    from ray.cluster_utils import Cluster

    options = {"object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus[0], **options})
    try:
        for count in cpus[1:]:
            cluster.add_node(num_cpus=count, **options)
        cluster.wait_for_nodes()
        print(f"cluster at {cluster.address}", flush=True)
        sys.stdin.read()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    _run_cluster([int(count) for count in sys.argv[1:]])
