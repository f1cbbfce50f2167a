"""What a device loads on its way to a first decision, package by package: reviewed by hand, so that nothing heavy
comes in unseen. Each costs start-up time and memory on a small computer."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

CONFIG = """
task: zoo:digits
tiers:
  - name: device
    members: [zoo:digits/mosaic.{suffix}, zoo:digits/stroke.{suffix}, zoo:digits/loom.{suffix}]
    agreement: unanimous
  - {{name: cloud, address: "127.0.0.1:1", model: digits}}
source: {{kind: digits}}
"""
CHILD = """
import sys
from edge.main import main
code = main(sys.argv[1:])
print(code, sorted({name.split(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)), file=sys.stderr)
"""

LOADED = {
    "PIL",  # decodes PNG and JPEG
    "coe",
    "edge",
    "google",  # protobuf: the messages to the cloud
    "grpc",
    "numpy",
    "typing_extensions",  # of grpc
    "yaml",  # the config
}
RUNTIME = {"onnx": "onnxruntime", "tflite": "ai_edge_litert"}
# What these bring along by themselves: Cython's shared parts, and what grpc takes in where it is installed beside it.
WITH_THEM = ("grpc_health", "grpc_reflection", "grpc_status", "grpc_tools", "grpc_channelz", "grpc_csds", "grpc_admin")


@pytest.mark.parametrize("suffix", RUNTIME)
def test_a_device_loads_these_packages_and_no_other_on_its_way_to_a_decision(tmp_path, suffix):
    config = tmp_path / "pi.yaml"
    config.write_text(CONFIG.format(suffix=suffix), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, "--config", str(config), "--limit", "5"],
        capture_output=True,
        text=True,
        timeout=240,
    )
    code, _, names = done.stderr.strip().splitlines()[-1].partition(" ")
    assert (code, len(done.stdout.splitlines())) == ("0", 5), done.stderr
    loaded = {
        name
        for name in ast.literal_eval(names)
        if not name.startswith("_") and name != "cython_runtime" and name not in WITH_THEM
    }
    assert loaded == LOADED | {RUNTIME[suffix]}
