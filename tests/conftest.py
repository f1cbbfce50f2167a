"""For every test: hypothesis the same each run; COE_EXAMPLES=1000 has it look harder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

# pytest puts this folder on the path, where tests/edge would stand for the program `edge` of an editable install.
sys.path.insert(0, str(Path(__file__).parent.parent))

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # tests that import ONNX Runtime themselves report nothing, either

settings.register_profile(
    "coe",
    derandomize=True,
    deadline=None,
    max_examples=int(os.environ.get("COE_EXAMPLES", "60")),
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("coe")
