"""What the fault tests share: a real coe-cloud and the bundled digits."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from programs import Cloud

# The programs as processes, and gRPC servers inside the test's own: pytest adds these folders only once it has seen
# a test in them.
sys.path[1:1] = [str(Path(__file__).parent.parent / folder) for folder in ("e2e", "protocol")]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """A coe-cloud that no test kills."""
    from programs import Cloud

    with Cloud(tmp_path_factory.mktemp("cloud")) as program:
        yield program
