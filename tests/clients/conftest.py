"""What the tests with other people's clients and servers share: a real coe-cloud, digits, and what they should be."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from cloud.config import default_config, read_config
from coe.cascade import Batch, Decisions
from coe.config.manifest import Task, read_manifest
from coe.config.open import open_cascade
from coe.models.inputs import InputDecoder
from coe.zoo import digits

if TYPE_CHECKING:
    from programs import Cloud

# The programs as processes, and gRPC servers inside the test's own: pytest adds these folders only once it has seen
# a test in them.
sys.path[1:1] = [str(Path(__file__).parent.parent / folder) for folder in ("e2e", "protocol")]


@pytest.fixture(scope="session")
def task() -> Task:
    return read_manifest(digits.MANIFEST).task


@pytest.fixture(scope="session")
def decoder(task: Task) -> InputDecoder:
    return InputDecoder(task.input_spec)


@pytest.fixture(scope="session")
def hundred(decoder: InputDecoder) -> Batch:
    """The first hundred of the bundled test digits."""
    examples = digits.test_examples(100)
    return decoder.batch([name for name, _, _ in examples], [png for _, png, _ in examples])


@pytest.fixture(scope="session")
def at_home(hundred: Batch) -> Decisions:
    """What the cascade behind `server` decides about them with no wire in between."""
    cascade = open_cascade(read_config(default_config()).cascade)
    try:
        return cascade.decide(hundred)
    finally:
        cascade.close()


@pytest.fixture(scope="session")
def pngs(hundred: Batch) -> np.ndarray:
    assert hundred.captured is not None
    return hundred.captured


@pytest.fixture(scope="session")
def floats(task: Task, hundred: Batch) -> np.ndarray:
    """(100, 1, 28, 28) as the models take them."""
    return task.input_spec.prepare(hundred.x)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """`coe-cloud serve` with the bundled digits' cloud tiers: models digits, digits-medium and digits-best."""
    from programs import Cloud

    with Cloud(tmp_path_factory.mktemp("cloud")) as program:
        yield program
