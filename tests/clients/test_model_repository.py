"""The model repository extension through `tritonclient`: which models there are, unloading one, loading it again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from programs import Cloud

pytest.importorskip("tritonclient.grpc", reason="needs tritonclient: pip install 'tritonclient[grpc]'")

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from cloud.config import default_config
from coe.cascade import Decisions
from coe.config.manifest import Task

MODELS = ["digits", "digits-medium", "digits-best"]


@pytest.fixture(scope="module")
def controlled(tmp_path_factory) -> Iterator[Cloud]:
    """The same server, but whoever calls may load and unload its models."""
    folder = tmp_path_factory.mktemp("controlled")
    config = folder / "cloud.yaml"
    config.write_text(
        default_config().read_text(encoding="utf-8") + "server: {model_control: true}\n", encoding="utf-8"
    )
    with Cloud(folder, config) as program:
        yield program


@pytest.fixture
def client(controlled: Cloud) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{controlled.port}") as client:
        yield client


def index(client: triton.InferenceServerClient) -> dict[str, tuple[str, str]]:
    return {model.name: (model.version, model.state) for model in client.get_model_repository_index().models}


def labels(client: triton.InferenceServerClient, model: str, pngs) -> list[int]:
    tensor = triton.InferInput("input", [len(pngs)], "BYTES")
    return client.infer(model, [tensor.set_data_from_numpy(pngs)]).as_numpy("label").tolist()


def refused(call, *arguments: object) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as caught:
        call(*arguments)
    return caught.value.status(), caught.value.message()


def test_the_index_has_every_model_with_its_version_and_state(server: Cloud, task: Task):
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        assert index(client) == dict.fromkeys(MODELS, (task.fingerprint, "READY"))
        assert "model_repository" in client.get_server_metadata().extensions


def test_nobody_loads_or_unloads_a_model_where_the_config_does_not_say_so(server: Cloud):
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        for call in (client.load_model, client.unload_model):
            status, message = refused(call, "digits-best")
            assert status == "StatusCode.PERMISSION_DENIED"
            assert "server.model_control: true" in message
        assert client.is_model_ready("digits-best")


def test_loading_what_is_loaded_already_loads_it_anew_and_changes_no_answer(client, pngs, at_home: Decisions):
    client.load_model("digits-medium")
    assert client.is_model_ready("digits-medium")
    assert labels(client, "digits", pngs[:10]) == at_home.labels[:10].tolist()


def test_a_model_that_was_unloaded_is_gone_until_it_is_loaded_again(client, pngs, task: Task):
    before = labels(client, "digits-best", pngs[:5])
    client.unload_model("digits-best")
    assert client.is_model_ready("digits-best") is False
    assert refused(labels, client, "digits-best", pngs[:1])[0] == "StatusCode.NOT_FOUND"
    assert index(client)["digits-best"] == (task.fingerprint, "UNAVAILABLE")
    assert client.is_server_ready()
    client.load_model("digits-best")
    assert client.is_model_ready("digits-best") is True
    assert index(client)["digits-best"] == (task.fingerprint, "READY")
    assert labels(client, "digits-best", pngs[:5]) == before


def test_a_model_that_is_not_in_the_repository_cannot_be_loaded_or_unloaded(client):
    for call in (client.load_model, client.unload_model):
        status, message = refused(call, "nonsense")
        assert status == "StatusCode.NOT_FOUND"
        assert "digits-medium" in message
