"""A real MLServer as a process, in the virtual environment that `.ci/mlserver` makes for it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from programs import BOUND_S, closed_port, until

from coe.protocol import inference_pb2 as pb
from coe.protocol.service import path
from coe.zoo import digits

HERE = Path(__file__).parent
SETTING = "COE_MLSERVER_PYTHON"

# Model name -> (class in digits_runtime, the one input it names); None: it names none.
MODELS: dict[str, tuple[str, tuple[str, list[int]] | None]] = {
    "digits": ("Digits", ("FP32", [-1, 1, 28, 28])),
    "digits-half": ("Digits", ("FP16", [-1, 1, 28, 28])),
    "digits-pixels": ("Digits", ("UINT8", [-1, 28, 28, 1])),
    "digits-other": ("Digits", ("FP32", [-1, 3, 28, 28])),
    "free": ("Digits", ("FP32", [-1, -1, -1, -1])),
    "files": ("Lengths", ("BYTES", [-1])),
    "broken": ("Broken", ("FP32", [-1, 1, 28, 28])),
    "silent": ("Lengths", None),
}


def mlserver_python() -> str:
    """MLServer's interpreter; skips the test where there is none."""
    found = Path(os.environ.get(SETTING) or HERE.parents[1] / ".venv-mlserver" / "bin" / "python")
    if not found.exists():
        pytest.skip(f"needs MLServer in an environment of its own: .ci/mlserver .venv-mlserver, or {SETTING}")
    return str(found)


class MLServer:
    """Serves models in a `with` block, ready once the block begins; its words go to a file in `folder`.

    Args:
        lay_out: writes them into the repository's folder; by itself MODELS.
    """

    def __init__(self, folder: Path, lay_out: Callable[[Path], None] | None = None) -> None:
        python = mlserver_python()
        self.port = closed_port()
        self.address = f"127.0.0.1:{self.port}"
        repository = folder / "models"
        repository.mkdir()
        settings = {"host": "127.0.0.1", "grpc_port": self.port, "http_port": closed_port(), "parallel_workers": 0}
        settings |= {"metrics_endpoint": None, "debug": False}
        (repository / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        (lay_out or _lay_out)(repository)
        self._words = folder / "mlserver.log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MLSERVER"))}
        with self._words.open("wb") as words:
            self.process = subprocess.Popen(
                [python, "-m", "mlserver.cli.main", "start", str(repository)],
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=folder,
            )

    @property
    def said(self) -> str:
        return self._words.read_text(encoding="utf-8")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(BOUND_S)

    def __enter__(self) -> MLServer:
        try:
            until(lambda: self.process.poll() is not None or self._is_ready(), lambda: self.said)
            assert self.process.poll() is None, self.said
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _is_ready(self) -> bool:
        with grpc.insecure_channel(self.address) as channel:
            try:
                answer = channel.unary_unary(path("ServerReady"))(b"", timeout=1, wait_for_ready=True)
            except grpc.RpcError:
                return False
        return pb.ServerReadyResponse.FromString(answer).ready


def _lay_out(repository: Path) -> None:
    shutil.copy(HERE / "digits_runtime.py", repository)
    for name, (kind, takes) in MODELS.items():
        parameters = {"uri": str(digits.FOLDER / "resnet.onnx"), "version": "3"}
        model: dict[str, object] = {"name": name, "implementation": f"digits_runtime.{kind}", "parameters": parameters}
        if takes is not None:
            model["inputs"] = [{"name": "pixels", "datatype": takes[0], "shape": takes[1]}]
            model["outputs"] = [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]}]
        write_model(repository, model)


def write_model(repository: Path, settings: dict[str, object]) -> None:
    folder = repository / str(settings["name"])
    folder.mkdir(exist_ok=True)
    (folder / "model-settings.json").write_text(json.dumps(settings), encoding="utf-8")
