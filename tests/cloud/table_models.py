"""Members that answer from a table, as real ONNX files, for servers in processes of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from strategies import one_hot

from coe.cascade.types import Array

MEDIUM = [one_hot([0, 1, 2, 0]), one_hot([0, 1, 1, 1]), one_hot([0, 2, 1, 2])]
BEST = [one_hot([0, 1, 1, 2])]
NOT_A_NUMBER = 4  # the row on which every member's output is NaN
N_ROWS = 5

CONFIG = """
task: numbers
labels: [zero, one, two]
input: {kind: tensor, shape: [1]}
model: numbers
tiers:
  - {name: medium, members: [a.onnx, b.onnx, c.onnx], agreement: 2/3, parallel: false}
  - {name: best, members: [d.onnx]}
server: {grpc_port: 0, grace_s: 10}
limits: {max_rows: 200, max_message_mb: 0.05}
"""


def write_config(folder: Path, text: str = CONFIG) -> Path:
    """The config, and its members' files beside it."""
    for name, table in zip("abcd", [*MEDIUM, *BEST], strict=True):
        (folder / f"{name}.onnx").write_bytes(table_model(np.concatenate([table, np.full((1, 3), np.nan, np.float32)])))
    path = folder / "cloud.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def table_model(table: Array) -> bytes:
    """A model whose input (B, 1) float32 are numbers of rows of `table` (N, L) float32."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["whole", "flat"], ["rows"]),
        helper.make_node("Gather", ["table", "rows"], ["probabilities"], axis=0),
    ]
    known = [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([-1]), "flat")]
    graph = helper.make_graph(
        nodes,
        "table",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 1])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["b", table.shape[1]])],
        known,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data
