"""What the tests of sources share: the agent's fakes, the programs as processes, gRPC servers in the test's own."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[1:1] = [str(HERE.parent), *(str(HERE.parent.parent / folder) for folder in ("e2e", "protocol"))]
