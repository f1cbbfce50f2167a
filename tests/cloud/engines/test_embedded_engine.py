"""The contract of every engine, kept by tiers in the server's own process."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from contract import EngineContract, ask, request_of
from table_models import CONFIG, NOT_A_NUMBER, write_config

from coe.protocol.codec import read_outputs

from programs import Cloud, closed_port  # isort: skip - `contract` says where it is


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("embedded")
    with Cloud(folder, write_config(folder)) as program:
        yield program


class TestEmbedded(EngineContract):
    """As the contract has it."""


def test_where_the_next_server_is_gone_a_row_without_a_vote_is_the_servers_failure_and_no_answer(tmp_path):
    gone = CONFIG.replace("members: [d.onnx]", f'address: "127.0.0.1:{closed_port()}"')
    with Cloud(tmp_path, write_config(tmp_path, gone)) as program:
        with pytest.raises(grpc.RpcError) as caught:
            ask(program, "ModelInfer", request_of(np.array([[NOT_A_NUMBER]], np.float32)))
        answer = read_outputs(ask(program, "ModelInfer", request_of(np.array([[1.0]], np.float32))))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert answer["label"].tolist() == [1]
