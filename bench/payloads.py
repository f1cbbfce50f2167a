"""What the cloud's benchmarks send, and the server they send it to: the bundled digits, three models and their vote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from coe.config import read_yaml
from coe.config.manifest import read_manifest
from coe.models import InputDecoder
from coe.protocol import inference_pb2 as pb
from coe.protocol.codec import add_input, read_outputs
from coe.protocol.service import INPUT
from coe.zoo import digits, find

MODEL = "digits"
PAYLOADS = ("tensor", "png")  # FP32 as the model takes it; the image as captured
N_REQUESTS = 64  # different ones, sent in turn


def members() -> list[str]:
    """The three small models' files, in the bundled ensemble's order."""
    device = read_yaml(find("digits/edge.yaml"))["tiers"][0]
    return [Path(member).name for member in device["members"]]


def write_config(folder: Path, limits: Mapping[str, Any]) -> Path:
    """A server's config: one tier of the three small models, which vote in turn."""
    tier = {"name": "small", "members": [f"zoo:digits/{file}" for file in members()], "parallel": False}
    config = {"task": "zoo:digits", "model": MODEL, "tiers": [tier], "limits": dict(limits)}
    path = folder / "server.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def tensors(n: int) -> tuple[np.ndarray, list[int]]:
    """(n, *S) float32 as the models take them, and the true labels."""
    names, images, truth = zip(*_examples(n), strict=True)
    input_spec = read_manifest(digits.FOLDER).task.input_spec
    return input_spec.prepare(InputDecoder(input_spec).batch(names, images).x), list(truth)


def requests(payload: str, rows: int, n: int = N_REQUESTS) -> tuple[list[bytes], list[list[int]]]:
    """`n` different requests of so many rows, serialised, and each one's true labels."""
    x, truth = tensors(rows * n)
    images = np.array([png for _, png, _ in _examples(rows * n)], dtype=object)
    made, labels = [], []
    for start in range(0, rows * n, rows):
        request = pb.ModelInferRequest(model_name=MODEL)
        add_input(request, INPUT, (x if payload == "tensor" else images)[start : start + rows])
        made.append(request.SerializeToString())
        labels.append(truth[start : start + rows])
    return made, labels


def read_answer(answer: bytes, is_streamed: bool = False) -> tuple[list[int], float | None]:
    """The labels of an answer, and the mean rows of the batches it was in, where the server says."""
    if is_streamed:
        streamed = pb.ModelStreamInferResponse.FromString(answer)
        if streamed.error_message:
            raise ValueError(streamed.error_message)
        response = streamed.infer_response
    else:
        response = pb.ModelInferResponse.FromString(answer)
    labels = read_outputs(response)["label"].tolist()
    if "batch_rows" not in response.parameters:
        return labels, None
    told = response.parameters["batch_rows"]
    return labels, float(getattr(told, told.WhichOneof("parameter_choice") or "double_param"))


def _examples(n: int) -> list[tuple[str, bytes, int]]:
    """The first n test digits, over and over where there are fewer."""
    known = digits.test_examples(min(n, digits.N_TEST))
    return [known[i % len(known)] for i in range(n)]
