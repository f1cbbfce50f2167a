"""The ingress deployment of the Ray engine: runs Algorithm 1 and asks the tiers on the cluster.

It has the servicer and the `InferenceCore` of every engine. Ray Serve's gRPC port calls a method by the RPC's name,
with what `ray_proxy.ServiceHandlers` made of the request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NoReturn

import grpc
from grpc_health.v1 import health_pb2

from cloud.async_cascade import AsyncTier
from cloud.config import ServerConfig
from cloud.limits import CallGate
from coe.cascade.tier import Tier
from coe.config.cascade import LocalTierConfig, TierConfig
from coe.protocol.core import InferenceCore
from coe.protocol.service import METHODS, SERVICE, path
from coe.protocol.servicer import InferenceServicer

from .embedded import EmbeddedEngine, Notify
from .ray_tier import ClusterTier, ClusterTierClient

CarriedRequest = tuple[bytes, float | None]  # the message, and the seconds left to its deadline


class ClusterEngine(EmbeddedEngine):
    """The embedded engine, except that tiers with members are on the cluster; remote tiers stay as they are.

    Args:
        handles: of the tiers' deployments, by tier name.
    """

    def __init__(self, config: ServerConfig, handles: Mapping[str, Any]) -> None:
        self._handles = handles
        super().__init__(config)

    def _open(self, tier: TierConfig, notify: Notify) -> Tier:
        if isinstance(tier, LocalTierConfig):
            at_once, max_batch = self.config.engine.of(tier.name).calls_at_once, self.config.limits.max_batch
            client = ClusterTierClient(tier.name, self._handles[tier.name], at_once=at_once, max_batch=max_batch)
            return ClusterTier(tier.name, tier.rule, client)
        return super()._open(tier, notify)

    def _batcher(self, tier: Tier) -> AsyncTier:
        assert isinstance(tier, ClusterTier)
        return tier.batcher


@dataclass(eq=False)
class CallRefused(Exception):
    """A call that ends with a status."""

    code: grpc.StatusCode
    text: str
    trailing: tuple[tuple[str, str], ...] = ()


class CarriedContext:
    """What a servicer needs of a call's context, over what Ray carried here of it."""

    def __init__(self, carried: Any, left_s: float | None) -> None:
        self.invocation_metadata = carried.invocation_metadata
        self._left_s = left_s

    def time_remaining(self) -> float | None:
        return self._left_s

    async def abort(
        self, code: grpc.StatusCode, text: str = "", trailing: tuple[tuple[str, str], ...] = ()
    ) -> NoReturn:
        raise CallRefused(code, text, tuple(trailing))


@dataclass(frozen=True)
class RawMessage:
    """Bytes that are encoded already, as Ray wants a message."""

    data: bytes

    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name
        return self.data


class RayIngress:
    """One replica of the ingress.

    Args:
        handles: of the tiers' deployments, by tier name.
    Raises:
        CascadeError: the next server is of another task.
    """

    def __init__(self, config: ServerConfig, handles: Mapping[str, Any]) -> None:
        limits = config.limits
        self.engine = ClusterEngine(config, handles)
        self._max_bytes = limits.max_message_bytes
        gates = (CallGate(limits),)
        self.core = InferenceCore(self.engine.models, max_rows=limits.max_rows, max_bytes=self._max_bytes, gates=gates)
        service: Any = InferenceServicer(self.core).handler()
        self._handlers: dict[str, Any] = {name: service.service(SimpleNamespace(method=path(name))) for name in METHODS}
        self.core.accepts = True

    async def Check(self, carried: CarriedRequest, grpc_context: Any) -> RawMessage:  # noqa: N802 - the protocol's name
        """grpc.health.v1, for probes; `Watch` is not offered here."""
        name = health_pb2.HealthCheckRequest.FromString(carried[0]).service
        if name not in ("", SERVICE, *self.core.models):
            grpc_context.set_code(grpc.StatusCode.NOT_FOUND)
            return RawMessage(b"")
        state = health_pb2.HealthCheckResponse.SERVING
        return RawMessage(health_pb2.HealthCheckResponse(status=state).SerializeToString())

    async def describe(self) -> list[str]:
        """The models it serves."""
        return list(self.core.models)

    async def call(self, name: str, carried: CarriedRequest, grpc_context: Any) -> RawMessage:
        """Any RPC of the protocol, by the servicer that all engines share."""
        data, left_s = carried
        handler = self._handlers[name]
        try:
            if len(data) > self._max_bytes:
                text = f"Received message larger than max ({len(data)} vs. {self._max_bytes})"  # as gRPC itself puts it
                raise CallRefused(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
            answer = await handler.unary_unary(data, CarriedContext(grpc_context, left_s))
        except CallRefused as refused:
            grpc_context.set_code(refused.code)
            grpc_context.set_details(refused.text)
            grpc_context.set_trailing_metadata(list(refused.trailing))
            return RawMessage(b"")
        return RawMessage(answer if handler.response_serializer is None else handler.response_serializer(answer))

    def __del__(self) -> None:
        """Ray calls it once the replica's last call has ended."""
        if hasattr(self, "engine"):
            self.engine.close()


def _method(name: str) -> Any:
    async def rpc(self: RayIngress, carried: CarriedRequest, grpc_context: Any) -> RawMessage:
        return await self.call(name, carried, grpc_context)

    rpc.__name__ = name
    rpc.__qualname__ = f"RayIngress.{name}"
    return rpc


for _name in METHODS:
    setattr(RayIngress, _name, _method(_name))
