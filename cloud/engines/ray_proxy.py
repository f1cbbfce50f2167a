"""Our gRPC service inside Ray Serve's proxy process, in front of the ingress.

Ray passes a call on to the application that the call's metadata name, without its deadline, and where the replica dies
answers INTERNAL. So: the application is always ours; the deadline goes along; a call whose replica died is retried.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import grpc

from coe.protocol.service import METHODS, path

APPLICATION = "coe-cloud"
ADDED_BY = "cloud.engines.ray_proxy.add_service"
HEALTH = "/grpc.health.v1.Health/Check"
ATTEMPTS = 3  # replicas that may be lost under one call; a call that kills them must not kill them all
PAUSE_S = 0.05  # before the second attempt; twice as long before each one after

Routed = Callable[[Any, Any], Awaitable[bytes]]  # Ray's handler of a method


class RetriedCall:
    """A call's context for Ray's handler: it records what Ray sets, so that the call can be retried."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._code: Any = None
        self._details = ""
        self.trailing: list[tuple[str, str]] = []
        self.is_answered = False  # by a replica, be it with an error

    def __getattr__(self, name: str) -> Any:  # peer, auth_context, ...
        return getattr(self._context, name)

    def invocation_metadata(self) -> list[tuple[str, str]]:
        sent = [(key, value) for key, value in self._context.invocation_metadata() or () if key != "application"]
        return [*sent, ("application", APPLICATION)]

    def code(self) -> Any:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> list[tuple[str, str]]:
        return self.trailing

    def set_code(self, code: Any) -> None:
        self._code = code

    def set_details(self, details: str) -> None:
        self._details = details

    def set_trailing_metadata(self, trailing: list[tuple[str, str]]) -> None:
        """Ray calls this with what came back from a replica, and only then."""
        self.trailing = list(trailing)
        self.is_answered = True


class ServiceHandlers(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """The service's methods. Ray replaces the `_method_handlers` of what is added to its server by its own."""

    def __init__(self) -> None:
        blank = grpc.unary_unary_rpc_method_handler(_placeholder)
        self._method_handlers: dict[str, Any] = dict.fromkeys((*map(path, METHODS), HEALTH), blank)

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        handler = self._method_handlers.get(details.method)
        return handler and grpc.unary_unary_rpc_method_handler(partial(_call, handler.unary_unary))


def add_service(servicer: Any, server: Any) -> None:
    """For `gRPCOptions.grpc_servicer_functions`; Ray answers in the servicer's place."""
    server.add_generic_rpc_handlers((ServiceHandlers(),))


def _placeholder(data: Any, context: Any) -> bytes:
    raise AssertionError("Ray puts its own handler here")


async def _call(routed: Routed, data: bytes, context: Any) -> bytes:
    left = context.time_remaining()
    end = None if left is None else time.monotonic() + left
    for attempt in range(ATTEMPTS):
        if attempt:
            await asyncio.sleep(PAUSE_S * 2**attempt)
        seen = RetriedCall(context)
        left_s = None if end is None else end - time.monotonic()
        answer = await routed((data, left_s), seen)
        if seen.is_answered or seen.code() is not grpc.StatusCode.INTERNAL:
            break
    code, text = seen.code(), seen.details()
    if code in (None, 0, grpc.StatusCode.OK):
        context.set_trailing_metadata(tuple(seen.trailing))
        return answer
    if not seen.is_answered and code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.NOT_FOUND):
        # Ray's own text has many lines: no replica lived to answer, or the application is going.
        code, text = grpc.StatusCode.UNAVAILABLE, "the server is not ready, or is draining"
    await context.abort(code, text, tuple(seen.trailing))
    raise AssertionError("abort raises")
