"""Messages as Triton sends them, written by the generated code of Triton's own client.

    python tests/clients/record_triton.py            write tests/clients/recorded/ anew
    python tests/clients/record_triton.py --check    compare with what is committed; exit 1 if it is stale

No Triton ran for this: it comes in no package. The messages are put together from what Triton publishes (its protocol
extensions, its client's examples) with `tritonclient`'s protobufs, so that none of our code had a hand in the bytes.
Two rows, three labels: the first row's is 1, the second's 0.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from tritonclient.grpc import service_pb2
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor

FOLDER = Path(__file__).parent / "recorded"
PROBABILITIES = np.array([[0.25, 0.5, 0.25], [0.75, 0.125, 0.125]], np.float32)
LABELS = np.array([1, 0])
EMBEDDING = np.arange(14, dtype=np.float32).reshape(2, 7)
SEQUENCE = {"sequence_id": 0, "sequence_start": False, "sequence_end": False}


def answer(outputs: dict[str, np.ndarray], name: str = "digits", **parameters: Any) -> Any:
    """A ModelInferResponse: raw contents in the order of the outputs, version "1", no id where none was sent."""
    response = service_pb2.ModelInferResponse(model_name=name, model_version="1")
    for output, array in outputs.items():
        response.outputs.add(name=output, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
        is_text = array.dtype == object
        response.raw_output_contents.append(serialize_byte_tensor(array).item() if is_text else array.tobytes())
    for key, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
        setattr(response.parameters[key], kind, value)
    return response


def metadata() -> Any:
    told = service_pb2.ModelMetadataResponse(name="digits", versions=["1"], platform="onnxruntime_onnx")
    told.inputs.add(name="input", datatype="FP32", shape=[-1, 1, 28, 28])
    told.outputs.add(name="probabilities", datatype="FP32", shape=[-1, 3])
    return told


def texts(*rows: Iterable[str]) -> np.ndarray:
    return np.array([[text.encode() for text in row] for row in rows], dtype=object)


# File -> (what it stands for, the message).
MESSAGES: dict[str, tuple[str, Any]] = {
    "metadata": (
        "ModelMetadata of an ONNX model with a free batch dimension, of which there is one version",
        metadata(),
    ),
    "fp32": ("an ONNX model's one output", answer({"probabilities": PROBABILITIES})),
    "fp16": ("a TensorRT plan in half precision", answer({"probabilities": PROBABILITIES.astype(np.float16)})),
    "fp64": (
        "a Python backend that answers in NumPy's own floats",
        answer({"OUTPUT0": PROBABILITIES.astype(np.float64)}),
    ),
    "ensemble_parameters": (
        "a Triton ensemble: its answers carry the sequence's parameters though there is no sequence",
        answer({"probabilities": PROBABILITIES}, "digits_ensemble", **SEQUENCE),
    ),
    "sequence_text_id": (
        "a sequence whose id is a text, and the flag of the last answer",
        answer(
            {"probabilities": PROBABILITIES}, triton_final_response=True, **(SEQUENCE | {"sequence_id": "camera-7"})
        ),
    ),
    "other_order": (
        "other outputs first, one of them of the probabilities' shape, as a model gives that exposes its logits",
        answer({"embedding": EMBEDDING, "logits": np.log(PROBABILITIES) + 9, "probabilities": PROBABILITIES}),
    ),
    "bf16_beside": (
        "an output in BF16 beside the probabilities",
        answer({"features": EMBEDDING.astype(ml_dtypes.bfloat16), "probabilities": PROBABILITIES}),
    ),
    "sklearn_label": (
        "a scikit-learn model in ONNX: an output `label` INT64 [B, 1] of its own, and its probabilities",
        answer({"label": LABELS.astype(np.int64)[:, None], "probabilities": PROBABILITIES}),
    ),
    "votes_in_columns": (
        "a Python backend that votes as a tier does, each output [B, 1]",
        answer(
            {
                "score": PROBABILITIES.max(axis=1, keepdims=True),
                "vote": np.array([[2 / 3], [1]], np.float32),
                "label": LABELS.astype(np.int32)[:, None],
            }
        ),
    ),
    "classification": (
        "the classification extension, BYTES [B, 2] of value:index:label; RemoteTier never asks for it",
        answer({"probabilities": texts(["0.5:1:one", "0.25:0:zero"], ["0.75:0:zero", "0.125:1:one"])}),
    ),
    "empty_final": (
        "a decoupled model's empty last answer",
        service_pb2.ModelInferResponse(
            model_name="digits",
            model_version="1",
            parameters={"triton_final_response": service_pb2.InferParameter(bool_param=True)},
        ),
    ),
    "other_labels": ("a model of four labels", answer({"probabilities": np.full((2, 4), 0.25, np.float32)})),
    "shape_of_one_row": ("an answer to one row where two were asked", answer({"probabilities": PROBABILITIES[:1]})),
}


def files() -> dict[str, bytes]:
    notes = [
        "# Triton's messages",
        "",
        "Made by `record_triton.py`, which says how. Not captured from a running Triton.",
        "",
    ]
    notes += ["| file | bytes | stands for |", "| --- | --- | --- |"]
    made = {}
    for name, (note, message) in MESSAGES.items():
        made[f"{name}.bin"] = data = message.SerializeToString(deterministic=True)
        notes.append(f"| `{name}.bin` | {len(data)} | {note} |")
    return made | {"README.md": "\n".join([*notes, ""]).encode()}


def main(arguments: list[str]) -> int:
    wanted = files()
    if arguments == ["--check"]:
        stale = [name for name, data in wanted.items() if (FOLDER / name).read_bytes() != data]
        stale += [path.name for path in FOLDER.iterdir() if path.name not in wanted]
        print(f"stale: {', '.join(stale)}" if stale else "fresh")
        return bool(stale)
    FOLDER.mkdir(exist_ok=True)
    for name, data in wanted.items():
        (FOLDER / name).write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
