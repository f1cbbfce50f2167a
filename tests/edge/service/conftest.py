"""The programs as processes (tests/e2e/programs.py) are to be had here, too."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[1:1] = [str(Path(__file__).parent.parent.parent / "e2e")]
