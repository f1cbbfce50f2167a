"""The programs as real processes are in tests/e2e; a small disk of one's own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path[1:1] = [str(Path(__file__).parent.parent.parent / "e2e"), str(Path(__file__).parent.parent)]


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of 8 MB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no disk can be mounted here: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)
