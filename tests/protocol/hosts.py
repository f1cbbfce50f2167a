"""Hosts of one tier, each a real server that answers with its own number as the label; also a process, to be killed.

As a program: `python hosts.py NUMBER PORT` says its port and serves until it is killed.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from coe.protocol import inference_pb2 as pb
from coe.protocol.codec import add_output
from coe.protocol.service import PLATFORM, SERVICE, server_options

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
N_LABELS = 4


def label_answer(label: int) -> bytes:
    response = pb.ModelInferResponse(model_name="model")
    add_output(response, "probabilities", np.eye(N_LABELS, dtype=np.float32)[[label]])
    return response.SerializeToString()


class Host:
    """Answers with `number` until it is closed. `refuse` may abort a call; `n_calls` counts them."""

    def __init__(
        self, number: int, address: str = "127.0.0.1:0", *, has_health: bool = True, platform: str = PLATFORM
    ) -> None:
        self.number = number
        self.platform = platform
        self.n_calls = 0
        self.n_watched = 0
        self.refuse: Callable[[grpc.ServicerContext], None] = lambda context: None
        self.health = health.HealthServicer()
        self._pool = ThreadPoolExecutor(16)
        self._server = grpc.server(self._pool, options=server_options(), interceptors=[_Watches(self)])
        handlers = {
            "ModelInfer": grpc.unary_unary_rpc_method_handler(self._infer),
            "ModelMetadata": grpc.unary_unary_rpc_method_handler(self._told),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        if has_health:
            health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
            self.set_health(SERVING)
        self.port = self._server.add_insecure_port(address)
        self.address = f"{address.rpartition(':')[0]}:{self.port}"
        self._server.start()

    def set_health(self, status: int) -> None:
        self.health.set(SERVICE, status)

    def close(self) -> None:
        self._server.stop(0).wait()
        self._pool.shutdown()

    def _infer(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.n_calls += 1
        self.refuse(context)
        return label_answer(self.number)

    def _told(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        told = pb.ModelMetadataResponse(name="model", platform=self.platform)
        told.inputs.add(name="x", datatype="FP32", shape=[-1, 1])
        return told.SerializeToString()


class _Watches(grpc.ServerInterceptor):  # type: ignore[misc]
    """Counts the clients that watch a host's health."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def intercept_service(self, continuation, details):  # type: ignore[no-untyped-def]
        self.host.n_watched += details.method.endswith("/Watch")
        return continuation(details)


@contextmanager
def hosts(n: int, **options: Any) -> Iterator[list[Host]]:
    opened = [Host(number, **options) for number in range(n)]
    try:
        yield opened
    finally:
        for host in opened:
            host.close()


class HostProcess:
    """A host in a process of its own."""

    def __init__(self, number: int, port: int = 0) -> None:
        command = [sys.executable, __file__, str(number), str(port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def name_server(records: dict[str, list[str]]) -> Iterator[int]:
    """The port of a DNS server (UDP) that knows the IPv4 addresses of some names."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]

        def serve() -> None:
            while True:
                question, asker = server.recvfrom(2000)
                if question == b"stop":
                    return
                server.sendto(_dns_answer(question, records), asker)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield port
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stopper:
                stopper.sendto(b"stop", ("127.0.0.1", port))
            thread.join(10)


def _dns_answer(question: bytes, records: dict[str, list[str]]) -> bytes:
    at, parts = 12, []
    while length := question[at]:
        parts.append(question[at + 1 : at + 1 + length].decode())
        at += 1 + length
    (kind,) = struct.unpack_from(">H", question, at + 1)
    found = records.get(".".join(parts), []) if kind == 1 else []
    head = question[:2] + b"\x81\x80" + struct.pack(">4H", 1, len(found), 0, 0) + question[12 : at + 5]
    return head + b"".join(b"\xc0\x0c\0\1\0\1" + struct.pack(">IH", 1, 4) + socket.inet_aton(ip) for ip in found)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    print(Host(int(sys.argv[1]), f"127.0.0.1:{sys.argv[2]}").port, flush=True)
    while True:
        time.sleep(60)
