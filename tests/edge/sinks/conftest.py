"""What the tests of sinks share: the agent's fakes, the programs as processes, and a real MQTT broker."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from brokers import Mosquitto

HERE = Path(__file__).parent
sys.path[1:1] = [str(HERE.parent), str(HERE.parent.parent / "e2e"), str(HERE.parent.parent)]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    """A mosquitto that runs."""
    from brokers import Mosquitto

    with Mosquitto(tmp_path / "broker") as started:
        yield started
