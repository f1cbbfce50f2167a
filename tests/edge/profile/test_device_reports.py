"""A device reports to nobody: not by what it runs on, either."""

from __future__ import annotations

import os
import subprocess
import sys

ONNX = """
import os, sys
from edge.main import main
code = main(["--limit", "1"])
print(code, os.environ.get("ORT_DISABLE_TELEMETRY"))
"""


def decided_at(home) -> tuple[str, list[str]]:
    """What a device with that home says, and the files that it left there."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_", "CI", "GITHUB"))}
    environment = kept | {"HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", ONNX], capture_output=True, text=True, timeout=240, env=environment, check=True
    )
    return done.stdout.splitlines()[-1], sorted(path.name for path in home.rglob("*") if path.is_file())


def test_onnx_runtime_is_told_to_report_nothing_and_writes_no_id_of_the_device(tmp_path):
    assert decided_at(tmp_path) == ("0 1", [])
