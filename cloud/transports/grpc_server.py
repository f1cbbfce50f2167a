"""The gRPC server: the inference service, health and reflection, in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cloud.limits import Limits
from coe.cascade.errors import ConfigError
from coe.protocol.service import SERVICE, server_options
from coe.protocol.servicer import InferenceServicer


class Health(health.aio.HealthServicer):  # type: ignore[misc, name-defined]
    """The standard service, whose watches end when the server drains: a watcher must not keep it from stopping."""

    def __init__(self) -> None:
        super().__init__()
        self._watches: set[asyncio.Task[None]] = set()
        self._is_over = False

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802 - the protocol's name
        watch = asyncio.ensure_future(super().Watch(request, context))
        self._watches.add(watch)
        try:
            await watch
        except asyncio.CancelledError:
            watch.cancel()
            if not self._is_over:
                raise
        finally:
            self._watches.discard(watch)

    async def set_serving(self, names: Iterable[str], is_ready: bool) -> None:
        state = health_pb2.HealthCheckResponse.SERVING if is_ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", SERVICE, *names):
            await self.set(name, state)

    async def end_watches(self) -> None:
        """To be called once NOT_SERVING is set."""
        self._is_over = True
        for watch in tuple(self._watches):
            watch.cancel()


class GrpcServer:
    """The server's gRPC side.

    Args:
        limits: of calls, in all and of one connection, and of messages. gRPC itself holds as many calls again
            before the servicer gets them; beyond that it refuses them, which costs least.
        reflection: offer the service's description to clients.
    """

    def __init__(self, servicer: InferenceServicer, *, limits: Limits, reflection: bool = False) -> None:
        self.servicer = servicer
        self.health = Health()
        options = [
            *server_options(limits.max_message_bytes),
            ("grpc.max_concurrent_streams", limits.max_calls_per_connection),
            ("grpc.http.overload_protection", 0),  # would reset calls of clients that keep to that number
            ("grpc.server.max_pending_requests", limits.max_calls),
            ("grpc.server.max_pending_requests_hard_limit", 2 * limits.max_calls),
        ]
        self._server = grpc.aio.server(options=options)
        self._server.add_generic_rpc_handlers((servicer.handler(),))
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        if reflection:
            from google.protobuf import descriptor_pool
            from grpc_reflection.v1alpha import reflection as service

            from coe.protocol import inference_pb2

            pool = descriptor_pool.DescriptorPool()  # ours and health's together: neither's own pool has both
            for module in (inference_pb2, health_pb2):
                pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
            service.enable_server_reflection((SERVICE, health.SERVICE_NAME), self._server, pool=pool)

    def bind(self, host: str, port: int, credentials: grpc.ServerCredentials | None = None) -> int:
        """The port it listens on.

        Raises:
            ConfigError: it is taken.
        """
        bracketed = f"[{host}]" if ":" in host and not host.startswith("[") else host  # an IPv6 address
        address = f"{bracketed}:{port}"
        with contextlib.suppress(RuntimeError):
            server = self._server
            bound = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
            if bound:
                return int(bound)
        raise ConfigError([f"expected a free port, got {address} which cannot be bound (set --grpc-port)"])

    async def start(self) -> None:
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """No new calls; those under way may finish within `grace_s`."""
        await self.health.end_watches()
        self.servicer.end_streams()
        await self._server.stop(grace_s)
