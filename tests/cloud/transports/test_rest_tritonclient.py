"""NVIDIA's `tritonclient` over HTTP, both its clients, against the REST server."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from loopback import VERSION
from rest_loopback import open_rest, table_core

from coe import __version__
from coe.protocol.core import InferenceCore

pytest.importorskip("tritonclient.http", reason="needs tritonclient: pip install 'tritonclient[http]'")
pytest.importorskip("tritonclient.http.aio", reason="needs tritonclient: pip install 'tritonclient[http]'")

import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

ROWS = np.arange(100)[:, None]
# Its asyncio client does not give back the connection of an answer that it raises an error for.
pytestmark = pytest.mark.filterwarnings("ignore:Unclosed connection:ResourceWarning")


class Caller:
    """One of the two clients: `call("infer", ...)` is `client.infer(...)`, awaited where it has to be."""

    def __init__(self, kind: str, port: int) -> None:
        self.url = f"127.0.0.1:{port}"
        self._runner = asyncio.Runner() if kind == "asyncio" else None
        self.client: Any = triton.InferenceServerClient(self.url) if self._runner is None else self._run(self._open())

    async def _open(self) -> Any:
        return triton_aio.InferenceServerClient(self.url)

    def _run(self, coroutine: Any) -> Any:
        assert self._runner is not None
        return self._runner.run(coroutine)

    def __call__(self, method: str, *arguments: Any, **named: Any) -> Any:
        result = getattr(self.client, method)(*arguments, **named)
        return result if self._runner is None else self._run(result)

    def refusal(self, method: str, *arguments: Any, **named: Any) -> tuple[str, str]:
        with pytest.raises(InferenceServerException) as caught:
            self(method, *arguments, **named)
        return caught.value.status(), caught.value.message()

    def close(self) -> None:
        self("close")
        if self._runner is not None:
            self._runner.close()


class Models:
    def __init__(self) -> None:
        self.done: list[str] = []

    def index(self) -> list[Any]:
        return [SimpleNamespace(name="table", version=VERSION, state="READY", reason="")]

    async def load(self, name: str) -> None:
        self.done.append(f"load {name}")

    async def unload(self, name: str) -> None:
        self.done.append(f"unload {name}")


@pytest.fixture(scope="module")
def core() -> InferenceCore:
    return table_core(100)


@pytest.fixture(scope="module")
def models() -> Models:
    return Models()


@pytest.fixture(scope="module")
def port(core: InferenceCore, models: Models) -> Iterator[int]:
    with open_rest(core, repository=models) as server:
        yield server.port


@pytest.fixture(scope="module", params=["gevent", "asyncio"])
def call(request: pytest.FixtureRequest, port: int) -> Iterator[Caller]:
    caller = Caller(request.param, port)
    yield caller
    caller.close()
    gc.collect()  # in here, where what it leaves behind is expected


def tensor(array: np.ndarray, *, binary: bool = True, datatype: str = "INT64") -> Any:
    given = triton.InferInput("input", list(array.shape), datatype)
    return given.set_data_from_numpy(array, binary_data=binary)


def test_readiness_and_metadata(call: Caller):
    assert call("is_server_live")
    assert call("is_server_ready")
    assert call("is_model_ready", "table")
    assert call("is_model_ready", "table", VERSION)
    assert not call("is_model_ready", "none")
    assert call("get_server_metadata")["version"] == __version__
    model = call("get_model_metadata", "table")
    assert (model["name"], model["versions"], model["inputs"][0]["name"]) == ("table", [VERSION], "input")


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("wanted", ["nothing", "binary", "json"])
def test_a_hundred_rows_are_answered_in_every_form(call: Caller, binary: bool, wanted: str):
    names = ["label", "vote", "score", "exit_tier", "members", "tier_votes"]
    outputs = [triton.InferRequestedOutput(name, binary_data=wanted == "binary") for name in names]
    result = call(
        "infer",
        "table",
        [tensor(ROWS, binary=binary)],
        outputs=None if wanted == "nothing" else outputs,
        request_id="7",
    )
    assert result.get_response()["id"] == "7"
    exits = [1 + row % 2 for row in range(100)]
    assert result.as_numpy("exit_tier").tolist() == exits
    assert result.as_numpy("label").tolist() == [row % 3 if row % 2 == 0 else 2 - row % 3 for row in range(100)]
    assert result.as_numpy("members").shape == (100, 2)
    votes = result.as_numpy("tier_votes")
    assert votes.dtype == np.float32
    assert np.isnan(votes[:, 1]).tolist() == [leaves == 1 for leaves in exits]


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_texts_are_bytes(call: Caller, binary: bool):
    wanted = [triton.InferRequestedOutput("label_name", binary_data=binary)]
    names = call("infer", "table", [tensor(ROWS[:2])], outputs=wanted).as_numpy("label_name").tolist()
    assert names == ([b"label 0", b"label 1"] if binary else ["label 0", "label 1"])


def test_the_repository(call: Caller, models: Models):
    assert call("get_model_repository_index") == [{"name": "table", "version": VERSION, "state": "READY", "reason": ""}]
    models.done.clear()
    call("load_model", "table")
    call("unload_model", "table")
    assert models.done == ["load table", "unload table"]


def test_refusals_are_told_as_such(call: Caller, core: InferenceCore):
    status, text = call.refusal("infer", "none", [tensor(ROWS)])
    assert ("404" in status, "expected one of table" in text) == (True, True)
    status, text = call.refusal("infer", "table", [tensor(ROWS)], model_version="other")
    assert ("404" in status, VERSION in text) == (True, True)
    status, text = call.refusal("infer", "table", [tensor(ROWS)], outputs=[triton.InferRequestedOutput("none")])
    assert ("400" in status, "outputs: expected one of" in text) == (True, True)
    status, _ = call.refusal("infer", "table", [tensor(ROWS)], timeout=1)
    assert "504" in status
    core.accepts = False
    try:
        status, _ = call.refusal("infer", "table", [tensor(ROWS)])
        assert "503" in status
        assert not call("is_server_ready")
    finally:
        core.accepts = True
