"""Models that change while they are served: the new ones beside the old, swapped, the old drained; bad ones refused."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cloud.config import read_config
from cloud.server import Server
from coe import zoo
from coe.cascade import NO_LABEL, Batch, ModelError
from coe.cascade.errors import CascadeError, NotAllowed
from coe.protocol.core import Request
from coe.protocol.status import UnknownModel

CONFIG = """
task: models
model: digits
tiers:
  - {name: small, members: [models/a.onnx]}
server: {grpc_port: 0, reload_s: 0, model_control: %s}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A server's config beside a manifest and one model, which is the bundled stroke.onnx."""
    pytest.importorskip("onnxruntime")
    (tmp_path / "models").mkdir()
    put_model(tmp_path, "stroke.onnx")
    (tmp_path / "cloud.yaml").write_text(CONFIG % "true", encoding="utf-8")
    return tmp_path


def put_model(folder: Path, name: str, *, checksum: str | None = None) -> None:
    """Make the bundled model `name` the one that is served; with the right checksum in the manifest, or `checksum`."""
    bundled = yaml.safe_load(zoo.find("digits/manifest.yaml").read_text(encoding="utf-8"))
    target = folder / "models" / "a.onnx"
    shutil.copy(zoo.find(f"digits/{name}"), folder / "fresh.onnx")
    os.replace(folder / "fresh.onnx", target)
    entry = bundled["models"][name] | {"sha256": checksum or hashlib.sha256(target.read_bytes()).hexdigest()}
    bundled["models"] = {"a.onnx": entry}
    (folder / "models" / "manifest.yaml").write_text(yaml.safe_dump(bundled), encoding="utf-8")


def serve(folder: Path, work: Callable[[Server], Awaitable[Any]]) -> Any:
    """What `work` returns, given a running server."""
    server = Server(read_config(folder / "cloud.yaml"))

    async def main() -> Any:
        await server.start()
        try:
            return await asyncio.wait_for(work(server), 30)
        finally:
            await server.stop()

    return asyncio.run(main())


async def ask(server: Server, model: str = "digits") -> list[float]:
    """The score of one digit: it tells which model answered."""
    image = np.full((1, 28, 28, 1), 90, dtype=np.uint8)
    answer = await server.core.infer(Request(model, "", "", {"input": image}))
    return [float(value) for value in answer.outputs["score"]]


def test_a_changed_model_is_swapped_in_and_the_old_one_closed(folder):
    async def work(server: Server) -> None:
        before, old = await ask(server), server.repository.engine
        assert not await server.repository.reload()  # nothing changed
        put_model(folder, "loom.onnx")
        assert await server.repository.reload()
        after = await ask(server)
        assert before != after
        assert server.repository.generation == 2
        assert server.repository.engine is not old
        await asyncio.sleep(0.2)
        closed = old.tiers[0].vote(Batch(("x",), np.zeros((1, 28, 28, 1), np.uint8)), old.tiers[0].rule)
        assert closed.labels.tolist() == [NO_LABEL]  # none of its members votes any more

    serve(folder, work)


def test_a_call_under_way_is_answered_by_the_generation_it_came_to(folder):
    async def work(server: Server) -> None:
        before = await ask(server)
        calls = [asyncio.ensure_future(ask(server)) for _ in range(8)]
        await asyncio.sleep(0)
        put_model(folder, "loom.onnx")
        swap = asyncio.ensure_future(server.repository.reload())
        seen = []
        while not swap.done():
            seen.append(await ask(server))
            await asyncio.sleep(0)
        after = await ask(server)
        assert [await call for call in calls] == [before] * 8
        assert before in seen
        assert all(score in (before, after) for score in seen)

    serve(folder, work)


@pytest.mark.parametrize("what", ["a wrong checksum", "no model", "no manifest that can be read"])
def test_a_bad_change_is_refused_once_and_the_old_model_keeps_serving(folder, what):
    async def work(server: Server) -> None:
        before = await ask(server)
        if what == "a wrong checksum":
            put_model(folder, "loom.onnx", checksum="0" * 64)
        elif what == "no model":
            put_model(folder, "loom.onnx")
            data = b"not a model"
            (folder / "models" / "a.onnx").write_bytes(data)
            text = (folder / "models" / "manifest.yaml").read_text(encoding="utf-8")
            content = yaml.safe_load(text)
            content["models"]["a.onnx"]["sha256"] = hashlib.sha256(data).hexdigest()
            (folder / "models" / "manifest.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        else:
            (folder / "models" / "manifest.yaml").write_text("models: [", encoding="utf-8")
        with pytest.raises(CascadeError):
            await server.repository.reload()
        assert server.repository.last_error
        assert not await server.repository.reload()  # the same change is not tried again
        assert await ask(server) == before
        put_model(folder, "loom.onnx")  # mended
        assert await server.repository.reload()
        assert await ask(server) != before
        assert server.repository.last_error == ""

    serve(folder, work)


def test_a_task_with_other_labels_is_another_version_and_asking_for_the_old_one_says_so(folder):
    async def work(server: Server) -> None:
        old = server.core.find("digits").version
        path = folder / "models" / "manifest.yaml"
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        content["labels"] = [f"digit {label}" for label in content["labels"]]
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        assert await server.repository.reload()
        assert server.core.find("digits").version != old
        with pytest.raises(UnknownModel, match="fingerprint"):
            server.core.find("digits", old)

    serve(folder, work)


def test_the_watch_finds_a_change_by_itself_and_a_refused_one_is_one_line_in_the_log(folder, caplog):
    async def until(claim: Callable[[], bool]) -> None:
        for _ in range(200):
            if claim():
                return
            await asyncio.sleep(0.05)
        raise AssertionError("it did not come about")

    async def work(server: Server) -> None:
        watch = asyncio.ensure_future(server.repository.watch(0.05))
        put_model(folder, "loom.onnx", checksum="0" * 64)
        await until(lambda: bool(server.repository.last_error))
        await asyncio.sleep(0.3)
        put_model(folder, "loom.onnx")
        await until(lambda: server.repository.generation == 2)
        watch.cancel()

    with caplog.at_level(logging.WARNING):
        serve(folder, work)
    refusals = [record for record in caplog.records if "refused" in record.getMessage()]
    assert len(refusals) == 1
    assert "sha256" in refusals[0].getMessage()


def test_a_model_can_be_unloaded_and_loaded_where_that_is_allowed(folder):
    async def work(server: Server) -> None:
        repository = server.repository
        await repository.unload("digits")
        with pytest.raises(UnknownModel):
            await ask(server)
        assert not server.core.is_ready("digits")
        assert [(entry.name, entry.state) for entry in repository.index()] == [
            ("digits-small", "READY"),
            ("digits", "UNAVAILABLE"),
        ]
        await ask(server, "digits-small")
        await repository.load("digits")
        await ask(server)
        assert {entry.state for entry in repository.index()} == {"READY"}
        with pytest.raises(UnknownModel):
            await repository.unload("nobody")

    serve(folder, work)


def test_an_unloaded_model_stays_so_when_others_change(folder):
    async def work(server: Server) -> None:
        await server.repository.unload("digits")
        put_model(folder, "loom.onnx")
        assert await server.repository.reload()
        assert set(server.core.models) == {"digits-small"}

    serve(folder, work)


def test_strangers_may_neither_load_nor_unload_by_default(folder):
    (folder / "cloud.yaml").write_text((CONFIG % "false"), encoding="utf-8")

    async def work(server: Server) -> None:
        for change in (server.repository.load, server.repository.unload):
            with pytest.raises(NotAllowed, match="model_control"):
                await change("digits")
        await ask(server)

    serve(folder, work)


def test_a_model_whose_file_is_gone_is_refused(folder):
    async def work(server: Server) -> None:
        (folder / "models" / "a.onnx").unlink()
        with pytest.raises(ModelError, match="cannot be read"):
            await server.repository.reload()
        await ask(server)

    serve(folder, work)
