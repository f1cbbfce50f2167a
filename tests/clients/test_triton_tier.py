"""A real Triton (nvidia-pytriton) as a tier: probabilities, classes and names; the output that is asked for."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from programs import BOUND_S, closed_port, until

from coe.cascade import Always, Batch
from coe.models.input_spec import InputSpec
from coe.models.inputs import InputDecoder
from coe.protocol import inference_pb2 as pb
from coe.protocol.remote import RemoteTier
from coe.protocol.service import path

SETTING = "COE_PYTRITON_PYTHON"
NAMES = ("setosa", "versicolor", "virginica")
FLOWERS = InputDecoder(InputSpec("tensor", (4,)))
X = np.arange(20, dtype=np.float32).reshape(5, 4)
LABELS = [int(row[0]) % 3 for row in X]
pytestmark = pytest.mark.slow


def is_ready(address: str) -> bool:
    with grpc.insecure_channel(address) as channel:
        try:
            for name in ("both", "classes", "names"):
                request = pb.ModelReadyRequest(name=name).SerializeToString()
                answer = channel.unary_unary(path("ModelReady"))(request, timeout=1)
                if not pb.ModelReadyResponse.FromString(answer).ready:
                    return False
        except grpc.RpcError:
            return False
    return True


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    python = os.environ.get(SETTING)
    if not python:
        pytest.skip(f"needs nvidia-pytriton in an environment of its own, of the system's Python: {SETTING}")
    port = closed_port()
    log = tmp_path_factory.mktemp("triton") / "log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with log.open("wb") as words:
        process = subprocess.Popen(
            [python, str(Path(__file__).with_name("pytriton_models.py")), str(port)],
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        where = f"127.0.0.1:{port}"
        until(lambda: process.poll() is not None or is_ready(where), lambda: log.read_text(), 120)
        assert process.poll() is None, log.read_text()
        yield where
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(BOUND_S)


@pytest.mark.parametrize(("model", "score"), [("both", 2 / 3), ("classes", None), ("names", None)])
@pytest.mark.parametrize("output", ["", "the model's"])
def test_its_answers_are_a_single_vote(address, model, score, output):
    own = {"both": "probabilities", "classes": "class", "names": "name"}[model] if output else ""
    how = {"n_labels": 3, "labels": NAMES, "output": own, "prepare": FLOWERS.input_spec.prepare}
    tier = RemoteTier("cloud", address, model, Always(), deadline_s=20.0, **how)
    try:
        assert tier.metadata().platform != ""
        vote = tier.vote(Batch(tuple("abcde"), X), Always())
        said = tier.describe_answer(FLOWERS.blank())
    finally:
        tier.close()
    assert vote.labels.tolist() == LABELS
    if score is None:
        assert np.isnan(vote.score).all()
    else:
        np.testing.assert_allclose(vote.score, score, atol=1e-5)
    assert "setosa" in said
