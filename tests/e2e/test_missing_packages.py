"""A device or a server that lacks a package says which `pip install` mends it, in one line, exit 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HIDE = """
import importlib.abc, sys
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
from {program}.main import main
sys.exit(main(sys.argv[1:]))
"""

TORCH = """
task: zoo:digits
tiers:
  - {name: best, members: [zoo:digits-torch/best.pt]}
server: {grpc_port: 0}
"""


@pytest.mark.parametrize(
    ("package", "program", "arguments", "fix"),
    [
        ("torch", "cloud", ["serve", "--config", "torch.yaml"], "pip install torch"),
        ("grpc_health", "cloud", ["serve", "--grpc-port", "0"], "pip install 'coe-cascade[cloud]'"),
        ("cryptography", "cloud", ["serve", "--grpc-port", "0"], "pip install 'coe-cascade[cloud]'"),
        ("onnxruntime", "edge", ["--limit", "1"], "pip install onnxruntime"),
        ("tqdm", "sim", ["digits"], "pip install 'coe-cascade[sim]'"),
        ("matplotlib", "sim", ["--delays", "--out", "report"], "pip install 'coe-cascade[sim]'"),
    ],
)
def test_a_missing_package_is_named_with_its_pip_install(tmp_path: Path, package, program, arguments, fix):
    (tmp_path / "torch.yaml").write_text(TORCH)
    code = HIDE.format(package=package, program=program)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=240, cwd=tmp_path
    )
    assert done.returncode == 2, done.stderr
    assert fix in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


NO_ZOO = """
import sys
from coe import zoo
zoo.entry_points = lambda group: ()
from {program}.main import main
sys.exit(main(sys.argv[1:]))
"""

CIFAR10 = """
task: zoo:cifar10
tiers:
  - {name: device, members: [zoo:cifar10/stride.onnx]}
"""


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("sim", ["replay", "cifar10", "--tiers", "summit.onnx"]),
        ("sim", ["--delays", "--task", "sst2"]),
        ("sim", ["record", "t.parquet", "--models", "tfns"]),
        ("edge", ["--config", "cifar10.yaml"]),
        ("cloud", ["serve", "--config", "cifar10.yaml"]),
    ],
)
def test_a_task_of_the_other_distribution_is_named_with_its_pip_install(tmp_path: Path, program, arguments):
    source = "source: {kind: stdin}\n" if program == "edge" else ""
    (tmp_path / "cifar10.yaml").write_text(CIFAR10 + source)
    code = NO_ZOO.format(program=program)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=240, cwd=tmp_path
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert "is not installed (run: pip install ./zoo in a checkout of the repository)" in line
