"""Numbers that come as a model takes them are read where they lie: from the message's bytes into the runtime."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from coe.models import InputDecoder, InputSpec

SHAPE = (3, 4, 4)
CONTRACT = InputSpec("tensor", SHAPE)


@pytest.mark.parametrize("input_spec", [CONTRACT, InputSpec("image", (4, 4, 3), scale=1 / 255)])
def test_a_raw_tensor_goes_through_the_door_and_the_contract_without_a_copy(input_spec):
    raw = np.random.default_rng(1).random((5, *SHAPE), dtype=np.float32).tobytes()
    wired = np.frombuffer(raw, dtype=np.float32).reshape(5, *SHAPE)
    batch = InputDecoder(input_spec).batch([f"x{row}" for row in range(5)], wired)
    ready = input_spec.prepare(batch.x)
    assert np.shares_memory(ready, wired)
    assert ready.__array_interface__["data"] == wired.__array_interface__["data"]
    assert ready.flags.c_contiguous


MEASURE = """
import sys
import numpy as np
from onnx import TensorProto, helper, numpy_helper
from coe.models import InputSpec, InputDecoder, ModelSpec, load
from pathlib import Path

n, rows = 1 << 22, 8  # 16 MiB a row
ends = [numpy_helper.from_array(np.array([value]), name) for name, value in (("a", 0), ("b", 3), ("axis", 1))]
nodes = [
    helper.make_node("Slice", ["x", "a", "b", "axis"], ["few"]),
    helper.make_node("Softmax", ["few"], ["y"], axis=1),
]
x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", n])
y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])
graph = helper.make_graph(nodes, "g", [x], [y], ends)
path = Path(sys.argv[1])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
path.write_bytes(model.SerializeToString())

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

input_spec = InputSpec("tensor", (n,))
member = load(ModelSpec("wide", path, "onnx", ("a", "b", "c"), input_spec))
raw = bytes(4 * n * rows)
before = peak()
batch = InputDecoder(input_spec).batch([""] * rows, np.frombuffer(raw, dtype=np.float32).reshape(rows, n))
assert member.predict(member.prepare(batch.x)).shape == (rows, 3)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from /proc")
def test_from_the_wire_through_onnx_runtime_memory_does_not_grow_by_the_tensors_size(tmp_path):
    told = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "wide.onnx")], capture_output=True, text=True, timeout=240
    )
    assert told.returncode == 0, told.stderr
    assert float(told.stdout) < 24  # MiB, of a tensor of 128
