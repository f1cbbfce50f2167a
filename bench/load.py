"""The load generator: closed-loop clients on grpc.aio, in a process of its own.

A worker: reads a job as a line of JSON, answers with a line of JSON (bench/processes.py starts it). Requests are
built before the clock starts. Every answer is looked at (it has the label column, or is the echo), and every
sixteenth is read: its labels, and the batch the server says it was in. Whatever fails is counted by its code.

The jobs, by `do`:
  closed  `clients` coroutines, each sending its next request when the answer to the last one is there.
  burst   one request of `rows` rows, then as many of one row all at once, then one after another; `repeats` times.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

import grpc
from payloads import N_REQUESTS, read_answer, requests
from processes import busy_s, cpu_s, serve_jobs

from coe.protocol.service import client_options, path

TIMEOUT_S = 20.0  # no call may hang a benchmark
READ_EVERY = 16

Caller = Callable[[bytes], Awaitable[bytes]]
prepared = cache(requests)


def answer(job: dict[str, Any]) -> dict[str, Any]:
    return asyncio.run({"closed": _closed, "burst": _burst}[job.pop("do")](**job))


class Tally:
    """What came of the calls of a job."""

    def __init__(self, is_echo: bool, is_streamed: bool) -> None:
        self.latencies_us: list[int] = []
        self.errors: Counter[str] = Counter()
        self.n_right = self.n_read = 0
        self.batches: list[float] = []  # rows of the batch that each answer read was in
        self._is_echo = is_echo
        self._is_streamed = is_streamed
        self._n_seen = 0

    def look_at(self, answer: bytes, request: bytes, truth: list[int]) -> None:
        self._n_seen += 1
        if self._is_echo:
            if len(answer) != len(request):
                self.errors["NOT_THE_ECHO"] += 1
        elif b"label" not in answer:
            self.errors["NO_LABEL"] += 1
        elif self._n_seen % READ_EVERY == 0:
            self._read(answer, truth)

    def _read(self, answer: bytes, truth: list[int]) -> None:
        labels, batch = read_answer(answer, self._is_streamed)
        if len(labels) != len(truth):
            self.errors["WRONG_ROWS"] += 1
        self.n_read += len(labels)
        self.n_right += sum(a == b for a, b in zip(labels, truth, strict=False))
        if batch:
            self.batches.append(batch)


async def _closed(
    address: str,
    clients: int,
    seconds: float,
    payload: str,
    rows: int = 1,
    pid: int = 0,
    at: float = 0.0,
    warm_s: float = 0.3,
    channels: int = 1,
    n_requests: int = N_REQUESTS,
    is_echo: bool = False,
    is_streamed: bool = False,
) -> dict[str, Any]:
    """Latencies, errors and what the answers said.

    Args:
        pid: the server's, whose CPU time is read.
        at: when the measured window starts, on the monotonic clock that all processes share; what is before it
            warms up. 0: after `warm_s`.
        n_requests: different ones, sent in turn.
    """
    made, truth = prepared(payload, rows, n_requests)
    tally = Tally(is_echo, is_streamed)
    opened = [_channel(address) for _ in range(channels)]
    start = at or time.monotonic() + warm_s
    end = start + seconds

    async def client(number: int) -> None:
        call = _caller(opened[number % channels], is_streamed)
        turn = number
        while (sent := time.monotonic()) < end:
            turn += 1
            request = made[turn % len(made)]
            try:
                answer = await call(request)
            except grpc.aio.AioRpcError as error:
                tally.errors[error.code().name] += 1
                await asyncio.sleep(0.001)
                continue
            came = time.monotonic()
            if sent >= start and came <= end:
                tally.latencies_us.append(round((came - sent) * 1e6))
                tally.look_at(answer, request, truth[turn % len(made)])

    async def cpu() -> dict[str, float]:
        await asyncio.sleep(start - time.monotonic())
        own, served, busy = time.process_time(), cpu_s(pid), busy_s()
        await asyncio.sleep(end - time.monotonic())
        used = {"client_cpu_s": time.process_time() - own, "server_cpu_s": cpu_s(pid) - served}
        return used | {"machine_cpu_s": busy_s() - busy}

    used, *_ = await asyncio.gather(cpu(), *map(client, range(clients)))
    for channel in opened:
        await channel.close()
    return {
        "seconds": seconds,
        "latencies_us": tally.latencies_us,
        "errors": tally.errors,
        "n_right": tally.n_right,
        "n_read": tally.n_read,
        "batches": tally.batches,
        **used,
    }


async def _burst(address: str, rows: int, payload: str, repeats: int) -> dict[str, list[float]]:
    """Seconds each time, for the rows as one request, as single ones at once, and as single ones in turn."""
    large, _ = prepared(payload, rows, 1)
    small, _ = prepared(payload, 1, rows)
    took: dict[str, list[float]] = {"one_request": [], "single_at_once": [], "single_in_turn": []}
    async with _channel(address) as channel:
        call = _caller(channel, False)
        await asyncio.gather(*map(call, small))  # connected, warm

        async def timed(way: str, done: Awaitable[Any]) -> None:
            started = time.perf_counter()
            await done
            took[way].append(time.perf_counter() - started)

        async def in_turn() -> None:
            for request in small:
                await call(request)

        for _ in range(repeats):
            await timed("one_request", call(large[0]))
            await timed("single_at_once", asyncio.gather(*map(call, small)))
            await timed("single_in_turn", in_turn())
    return took


def _channel(address: str) -> grpc.aio.Channel:
    """A connection of its own, which does not try again by itself: every failure is to be seen."""
    options = [(key, value) for key, value in client_options() if key != "grpc.service_config"]
    options += [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    options += [("grpc.service_config", json.dumps({}))]
    return grpc.aio.insecure_channel(address, options)


def _caller(channel: grpc.aio.Channel, is_streamed: bool) -> Caller:
    """One client's way to call: unary, or on a stream of its own that stays open."""
    if is_streamed:
        return _Stream(channel).call
    unary = channel.unary_unary(path("ModelInfer"))
    return lambda request: unary(request, timeout=TIMEOUT_S)


class _Stream:
    """Calls of one client, each on the same stream once the one before is answered; a new one where it broke."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._dial = channel.stream_stream(path("ModelStreamInfer"))
        self._open: Any = None

    async def call(self, request: bytes) -> bytes:
        stream = self._open or self._dial()
        self._open = None
        await stream.write(request)
        answer: bytes = await stream.read()
        if answer is grpc.aio.EOF:
            code = await stream.code()
            raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "the stream ended")
        self._open = stream
        return answer


if __name__ == "__main__":
    serve_jobs(answer)
