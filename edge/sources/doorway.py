"""The local door's gRPC server: on loopback or a Unix socket, on an event loop of its own thread."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import grpc

from coe.cascade.errors import ConfigError
from coe.models.base import import_runtime
from coe.wire.plane import Plane
from coe.wire.service import SERVICE, server_options
from coe.wire.servicer import InferenceServicer

from .config import DoorConfig

T = TypeVar("T")
START_S = 10.0
STOP_S = 1.0  # for answers that are on their way out
MODE = 0o660  # of a Unix socket: the agent's user and its group may ask


class Doorway:
    """Serves `plane` until closed.

    Raises:
        ConfigError: the address is taken, or cannot be bound.
        RuntimeMissing: a package is not installed.
    """

    def __init__(self, config: DoorConfig, plane: Plane) -> None:
        self.config = config
        self.port = 0
        self._plane = plane
        self._health = import_runtime(
            "grpc_health.v1.health", "gRPC health", "pip install 'coe-cascade[edge]'"
        ).aio.HealthServicer()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="coe-door", daemon=True)
        self._thread.start()
        try:
            self._server = self._run(self._start(), START_S)
        except BaseException:
            self._end()
            raise

    @property
    def address(self) -> str:
        return self.config.address if self.config.path else f"{self.config.host}:{self.port}"

    def close(self) -> None:
        """Answers under way have a moment; then the door is shut, and its socket gone. Twice is fine."""
        if self._loop.is_closed():
            return
        try:
            self._run(self._stop(), STOP_S + START_S)
        finally:
            self._end()
            if self.config.path is not None:
                self.config.path.unlink(missing_ok=True)

    async def _start(self) -> grpc.aio.Server:
        self._servicer = InferenceServicer(self._plane)
        server = grpc.aio.server(options=server_options(self.config.max_message_bytes))
        server.add_generic_rpc_handlers((self._servicer.handler(),))
        health_pb2_grpc = import_runtime(
            "grpc_health.v1.health_pb2_grpc", "gRPC health", "pip install 'coe-cascade[edge]'"
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        self.port = self._bind(server)
        await server.start()
        self._plane.accepts = True
        await self._tell_health("SERVING")
        return server

    async def _stop(self) -> None:
        await self._tell_health("NOT_SERVING")
        self._servicer.end_streams()
        await self._server.stop(STOP_S)

    async def _tell_health(self, state: str) -> None:
        pb2 = import_runtime("grpc_health.v1.health_pb2", "gRPC health", "pip install 'coe-cascade[edge]'")
        for name in ("", SERVICE, self.config.model):
            await self._health.set(name, getattr(pb2.HealthCheckResponse, state))

    def _bind(self, server: grpc.aio.Server) -> int:
        config = self.config
        bracketed = f"[{config.host}]" if ":" in config.host and not config.host.startswith("[") else config.host
        address = f"{bracketed}:{config.port}" if config.path is None else f"unix:{config.path}"
        if config.path is not None:
            _clear(config.path)
        mask = os.umask(0o777 & ~MODE)  # nobody else gets in between its making and its mode
        port = 0
        try:
            with contextlib.suppress(RuntimeError):
                port = server.add_insecure_port(address)
        finally:
            os.umask(mask)
        if not port:
            raise ConfigError([f"source.address: expected a free address, got {address} which cannot be bound"])
        if config.path is not None:
            config.path.chmod(MODE)
        return port

    def _run(self, work: Coroutine[Any, Any, T], seconds: float) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(seconds)

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(START_S)
        if not self._loop.is_running():
            self._loop.close()


def _clear(path: Path) -> None:
    """Remove the socket of an agent that was killed; gRPC itself would remove that of one that lives, too.

    Raises:
        ConfigError: it is in use, or no socket, or its folder is not there.
    """
    if not path.parent.is_dir():
        raise ConfigError([f"source.address: expected a folder for the socket, got {path.parent} (create it)"])
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError([f"source.address: expected a socket or nothing at {path}, got a file (move it away)"])
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as trial:
        trial.settimeout(1.0)
        try:
            trial.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise ConfigError([f"source.address: {path} cannot be used: {error.strerror or error}"]) from None
    raise ConfigError([f"source.address: expected a free address, got {path} where another program answers"])
