"""For every test: hypothesis the same each run; COE_EXAMPLES=1000 has it look harder."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings

HERE = Path(__file__).parent
HELPERS = (
    "e2e",
    "protocol",
    "cloud",
    "edge",
    "cascade",
)  # folders whose modules that are no tests are imported in others

# pytest puts this folder on the path, where tests/edge would stand for the program `edge` of an editable install.
sys.path[0:0] = [str(HERE.parent), *(str(HERE / folder) for folder in HELPERS)]

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # tests that import ONNX Runtime themselves report nothing, either

STATE = tempfile.TemporaryDirectory(prefix="coe-state-")  # of agents without `state:`; gone with this process
os.environ["XDG_STATE_HOME"] = STATE.name

settings.register_profile(
    "coe",
    derandomize=True,
    deadline=None,
    max_examples=int(os.environ.get("COE_EXAMPLES", "60")),
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("coe")
