"""`tritonclient` on one persistent stream (ModelStreamInfer), sync and asyncio: many requests, each with its answer."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest
from programs import Cloud

pytest.importorskip("tritonclient.grpc", reason="needs tritonclient: pip install 'tritonclient[grpc]'")

import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

from coe.cascade import Decisions

N = 32


def given(values: np.ndarray) -> list[triton.InferInput]:
    return [triton.InferInput("input", list(values.shape), "BYTES").set_data_from_numpy(values)]


def sync_stream(server: Cloud, requests: list[tuple[str, str, np.ndarray]]) -> list[tuple[Any, Any]]:
    told: list[tuple[Any, Any]] = []
    all_there = threading.Event()

    def keep(result: Any, error: Any) -> None:
        told.append((result, error))
        is_broken = error is not None and error.status() is not None  # the stream itself, not one request on it
        if len(told) == len(requests) or is_broken:
            all_there.set()

    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        client.start_stream(keep, stream_timeout=30)
        for model, name, values in requests:
            client.async_stream_infer(model, given(values), request_id=name)
        assert all_there.wait(30)
        client.stop_stream()
    return told


def asyncio_stream(server: Cloud, requests: list[tuple[str, str, np.ndarray]]) -> list[tuple[Any, Any]]:
    async def requests_one_by_one() -> Any:
        for model, name, values in requests:
            yield {"model_name": model, "inputs": given(values), "request_id": name}

    async def ask() -> list[tuple[Any, Any]]:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            answers = client.stream_infer(requests_one_by_one(), stream_timeout=30)
            return [answer async for answer in answers]

    return asyncio.run(ask())


STREAMS = pytest.mark.parametrize("stream", [sync_stream, asyncio_stream])


@STREAMS
def test_every_request_on_a_stream_gets_its_own_answer(server: Cloud, pngs, at_home: Decisions, stream):
    told = stream(server, [("digits", f"row {row}", pngs[row : row + 1]) for row in range(N)])
    assert [error for _, error in told if error] == []
    labels = {result.get_response().id: int(result.as_numpy("label")[0]) for result, _ in told}
    assert labels == {f"row {row}": int(at_home.labels[row]) for row in range(N)}


@STREAMS
def test_a_request_that_is_refused_leaves_the_others_on_the_stream_alone(server: Cloud, pngs, at_home, stream):
    requests = [("digits", "a", pngs[:1]), ("nonsense", "b", pngs[:1]), ("digits", "c", pngs[1:3])]
    told = stream(server, requests)
    (error,) = [error for _, error in told if error]
    assert "got 'nonsense'" in error.message()
    answers = {result.get_response().id: result.as_numpy("label").tolist() for result, _ in told if result}
    assert answers == {"a": at_home.labels[:1].tolist(), "c": at_home.labels[1:3].tolist()}
