"""The contract of every engine, kept by tiers in the server's own process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from contract import EngineContract
from table_models import write_config

from programs import Cloud  # isort: skip - `contract` says where it is


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("embedded")
    with Cloud(folder, write_config(folder)) as program:
        yield program


class TestEmbedded(EngineContract):
    """As the contract has it."""
