"""What of the Ray engine can be held to its word without Ray: its settings, and what it adds to Ray's gRPC port."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from cloud.config import Autoscaling, Placement, read_config
from cloud.engines.ray import check
from cloud.engines.ray_proxy import APPLICATION, ATTEMPTS, HEALTH, add_service
from cloud.engines.ray_tier import Failure
from coe.cascade import ConfigError, InputError, TierOverloaded, TierTimeout
from coe.protocol.service import METHODS, path

CONFIG = """
task: numbers
labels: [zero, one, two]
input: {kind: tensor, shape: [1]}
tiers:
  - {name: medium, members: [a.onnx, b.onnx, c.onnx]}
  - {name: best, members: [d.onnx]}
"""
Routed = Callable[[Any, Any], Awaitable[bytes]]


def config_with(folder: Path, more: str = "", text: str = CONFIG) -> Any:
    path = folder / "cloud.yaml"
    path.write_text(text + more, encoding="utf-8")
    return read_config(path)


def test_a_tier_is_placed_as_its_settings_say_and_the_others_by_default(tmp_path):
    scale = "autoscaling: {min: 1, max: 4, target_ongoing_requests: 8}"
    more = f"engine: {{tiers: {{best: {{num_gpus: 0.5, {scale}}}}}, every_node: true}}\n"
    engine = config_with(tmp_path, more).engine
    assert engine.of("best") == Placement(num_gpus=0.5, autoscaling=Autoscaling(1, 4, 8.0))
    assert (engine.of("best").at_first, engine.of("best").calls_at_once) == (1, 32)
    assert (engine.of("medium").at_first, engine.of("medium").calls_at_once) == (1, 2)
    assert engine.of("medium") == Placement(replicas=1, num_cpus=1.0)
    assert engine.ingress.num_cpus == 0
    assert engine.every_node


def test_every_finding_about_the_engine_is_told_at_once(tmp_path):
    tiers = "{good: {}, best: {replicas: 0}, medium: {replicas: 2, autoscaling: {min: 3, max: 2}}}"
    with pytest.raises(ConfigError) as caught:
        config_with(tmp_path, f"engine: {{tiers: {tiers}, ingress: {{replica: 2}}}}\n")
    assert [line.split(": ")[0] for line in caught.value.findings] == [
        "engine.tiers.good",
        "engine.tiers.best.replicas",
        "engine.tiers.medium.replicas",
        "engine.tiers.medium.autoscaling.max",
        "engine.ingress.replica",
    ]
    assert 'expected a tier with members here (medium, best), got "good"' in str(caught.value)


def test_rays_port_is_open_to_all_so_it_must_be_meant(tmp_path):
    with pytest.raises(ConfigError, match=r"plaintext on 0\.0\.0\.0.*--insecure"):
        check(config_with(tmp_path), insecure=False)
    check(config_with(tmp_path), insecure=True)


def test_what_the_engine_has_not_is_said_before_anything_is_started(tmp_path):
    text = CONFIG.replace("members: [d.onnx]", "members: [d.onnx], delay_ms: 5")
    more = "server: {model_control: true, http_port: 8000}\nsecurity: {quota: {examples_per_s: 5}}\n"
    config = config_with(tmp_path, more + 'traces: {endpoint: "http://127.0.0.1:4318"}\n', text)
    with pytest.raises(ConfigError) as caught:
        check(config, insecure=True)
    assert [line.split(":")[0] for line in caught.value.findings] == [
        "security",
        "tiers",
        "server.model_control",
        "server.http_port",
        "traces",
    ]


@pytest.mark.parametrize(
    "error",
    [TierOverloaded("best", "full", retry_after_s=0.25), TierTimeout("best", "late"), InputError("row 3: no image")],
)
def test_an_error_of_a_replica_is_the_same_at_the_door(error):
    again = Failure.of(error).error("best")
    assert (type(again), str(again)) == (type(error), str(error))
    assert getattr(again, "retry_after_s", None) == getattr(error, "retry_after_s", None)


class PortOfRays(grpc.aio._server.Server):
    """Does with handlers what Ray Serve's own server does: `route` answers in place of each."""

    def __init__(self, route: Routed) -> None:
        super().__init__(None, (), (), (), None, None)
        self._route = route

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        (ours,) = handlers
        ours._method_handlers = {
            name: handler._replace(response_serializer=None, unary_unary=self._route)
            for name, handler in ours._method_handlers.items()
        }
        super().add_generic_rpc_handlers(handlers)


def asked(route: Routed, method: str = path("ModelInfer"), **options: Any) -> bytes:
    async def ask() -> bytes:
        server = PortOfRays(route)
        add_service(None, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                answer: bytes = await channel.unary_unary(method)(b"question", timeout=10, **options)
                return answer
        finally:
            await server.stop(None)

    return asyncio.run(ask())


def answered(call: Any, code: grpc.StatusCode = grpc.StatusCode.OK, details: str = "") -> None:
    call.set_trailing_metadata([("request_id", "1")])
    call.set_code(code)
    call.set_details(details)


@pytest.mark.parametrize("method", [*map(path, METHODS), HEALTH])
def test_every_method_goes_to_our_application_with_what_is_left_of_its_deadline(method):
    seen: list[Any] = []

    async def route(asked: Any, call: Any) -> bytes:
        seen.append((asked, dict(call.invocation_metadata())["application"]))
        answered(call)
        return b"answer"

    assert asked(route, method, metadata=(("application", "somebody-elses"),)) == b"answer"
    (((data, left_s), application),) = seen
    assert (data, application) == (b"question", APPLICATION)
    assert 5 < left_s < 10.5


def test_a_call_whose_replica_died_is_asked_again():
    n_calls = 0

    async def route(asked: Any, call: Any) -> bytes:
        nonlocal n_calls
        n_calls += 1
        if n_calls < ATTEMPTS:
            call.set_code(grpc.StatusCode.INTERNAL)
            call.set_details("The actor died unexpectedly before finishing this task.")
            return b""
        answered(call)
        return b"answer"

    assert asked(route) == b"answer"
    assert n_calls == ATTEMPTS


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.NOT_FOUND])
def test_where_no_replica_answers_the_server_is_unavailable_in_our_words(code):
    async def route(asked: Any, call: Any) -> bytes:
        call.set_code(code)
        call.set_details("Traceback (most recent call last): ...")
        return b""

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        asked(route)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert caught.value.details() == "the server is not ready, or is draining"


def test_an_error_of_ours_is_passed_on_as_it_is_and_not_asked_again():
    n_calls = 0

    async def route(asked: Any, call: Any) -> bytes:
        nonlocal n_calls
        n_calls += 1
        answered(call, grpc.StatusCode.INTERNAL, "internal error 12 (the server's log has the details)")
        return b""

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        asked(route)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "internal error 12" in caught.value.details()
    assert n_calls == 1
