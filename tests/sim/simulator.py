"""coe-sim in this process: its exit code and what it printed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from sim.main import main

SHARED = Path(os.environ.get("COE_DATA") or Path(__file__).parents[3] / "shared" / "data")


def shared(name: str) -> Path:
    """A file of the shared data; the test is skipped where it is not there."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not here (set COE_DATA to the folder that holds it)")
    return path


class Program:
    """Runs coe-sim and keeps what it said."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: object, code: int = 0) -> tuple[str, str]:
        """(standard output, standard error)."""
        before = signal.getsignal(signal.SIGTERM)
        try:
            got = main([str(one) for one in arguments])
        except SystemExit as ended:  # argparse, of a wrong argument
            got = ended.code
        finally:
            signal.signal(signal.SIGTERM, before)
        out, err = self.capsys.readouterr()
        assert got == code, err
        return out, err
