"""Strangers at the server: whatever they send, an answer or a refusal that names its reason; never a crash or a leak.

The servicer is the real one, over the bundled models, in this process; the bytes are what gRPC would hand it.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import io
import os
import random
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from cloud.config import default_config, read_config
from cloud.server import Server
from coe.protocol import inference_pb2 as pb
from coe.protocol.codec import DATATYPES, add_input, read_outputs
from coe.protocol.servicer import InferenceServicer

BUDGET = int(os.environ.get("COE_FUZZ_REQUESTS", "200000"))  # of the slow test
PER_EXAMPLE = 25  # requests that one hypothesis example makes
REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


class Aborted(Exception):
    """What grpc's own context raises."""


class Call:
    """What the servicer sees of a call; remembers the status it ended with."""

    def __init__(self, remaining_s: float | None) -> None:
        self.remaining_s = remaining_s
        self.code: grpc.StatusCode | None = None
        self.text = ""

    def time_remaining(self) -> float | None:
        return self.remaining_s

    def invocation_metadata(self) -> tuple[()]:
        return ()

    async def abort(self, code: grpc.StatusCode, text: str, hint: tuple[Any, ...] = ()) -> None:
        assert len(text) < 4000
        self.code, self.text = code, text
        raise Aborted


class Target:
    """The bundled cloud's servicer, and an event loop to run it on."""

    def __init__(self, loop: asyncio.AbstractEventLoop, server: Server) -> None:
        self.loop = loop
        self.server = server
        self.servicer = InferenceServicer(server.core)
        self.seen: Counter[str] = Counter()

    def send(self, data: bytes, remaining_s: float | None = None) -> None:
        self.loop.run_until_complete(self._send(data, remaining_s))

    async def _send(self, data: bytes, remaining_s: float | None) -> None:
        call = Call(remaining_s)
        try:
            answer = await self.servicer._infer(data, call)
        except Aborted:
            # A number so large that the models overflow is a number.
            is_no_vote = call.code is grpc.StatusCode.INTERNAL and "no member voted" in call.text
            assert is_no_vote or call.code in REFUSALS, f"{call.code} for {data[:200]!r}"
            self.seen[call.code.name] += 1
            return
        outputs = read_outputs(pb.ModelInferResponse.FromString(answer))
        labels = outputs.get("label")
        assert labels is None or ((labels >= 0) & (labels < 10)).all()
        self.seen["OK"] += 1


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    pytest.importorskip("onnxruntime")
    loop = asyncio.new_event_loop()
    server = Server(read_config(default_config()))
    server.core.accepts = True
    try:
        yield Target(loop, server)
    finally:
        server.engine.close()
        loop.close()


@functools.cache
def pictures() -> tuple[bytes, ...]:
    """A few honest images, of every kind that is taken and some that are not."""
    made = []
    pixels = np.arange(28 * 28, dtype=np.uint8).reshape(28, 28)
    for mode, kind in (("L", "PNG"), ("L", "JPEG"), ("RGB", "PNG"), ("RGB", "JPEG"), ("L", "GIF"), ("L", "BMP")):
        with io.BytesIO() as out:
            Image.fromarray(pixels).convert(mode).save(out, kind)
            made.append(out.getvalue())
    return tuple(made)


def png_that_claims(width: int, height: int, depth: int = 8, colour: int = 0) -> bytes:
    """A PNG header of that size, and nothing behind it that would fill it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(bytes(2000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def damaged(data: bytes, dice: random.Random) -> bytes:
    """The bytes, cut, flipped, doubled, or with something in between."""
    if not data:
        return dice.randbytes(dice.randrange(1, 9))
    at = dice.randrange(len(data))
    kind = dice.randrange(6)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + dice.randbytes(dice.randrange(1, 9)) + data[at:]
    if kind == 2:
        return data[:at] + data[at + dice.randrange(1, 9) :]
    if kind == 3:
        return data + data[at:]
    flipped = bytearray(data)
    for _ in range(dice.randrange(1, 6)):
        flipped[dice.randrange(len(flipped))] ^= 1 << dice.randrange(8)
    return bytes(flipped)


def example(dice: random.Random) -> bytes:
    """One element of a BYTES tensor: an image, a broken one, a bomb, a text, or noise."""
    kind = dice.randrange(6)
    if kind == 0:
        return dice.choice(pictures())
    if kind == 1:
        return damaged(dice.choice(pictures()), dice)
    if kind == 2:
        size = dice.choice([1, 28, 60_000, 2**31 - 1])
        return png_that_claims(size, dice.choice([0, 1, 28, size]), dice.choice([1, 8, 16]), dice.choice([0, 2, 3, 6]))
    if kind == 3:
        return dice.choice(
            [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\xff\xfe invalid utf-8 \xc3\x28", b"a" * 70_000]
        )
    return dice.randbytes(dice.randrange(0, 200))


NUMBERS = (-1, 0, 1, 2, 3, 28, 784, 1025, 2**31 - 1, 2**31, 2**62, -(2**63))


def lying_request(dice: random.Random) -> pb.ModelInferRequest:
    """A request whose parts need not fit together."""
    request = pb.ModelInferRequest(
        model_name=dice.choice(["digits", "digits", "digits", "digits-medium", "digits-best", "", "x" * 300, "../etc"]),
        model_version=dice.choice(["", "", "", "", "1", "deadbeef"]),
        id=dice.choice(["", "a", "\n\u202e" * 20]),
    )
    for _ in range(dice.choice([0, 1, 1, 1, 1, 1, 2])):
        tensor = request.inputs.add(
            name=dice.choice(["input", "input", "", "x" * 500]),
            datatype=dice.choice([*DATATYPES, "FP32", "FP32", "UINT8", "BYTES", "BYTES", "BF16", "", "fp32", "STRING"]),
            shape=dice.choice(
                [
                    *([1, 1, 28, 28], [1, 28, 28, 1], [2, 28, 28, 1], [1], [1, 1]),
                    [dice.choice(NUMBERS) for _ in range(dice.choice([4, dice.randrange(0, 40)]))],
                ]
            ),
        )
        if dice.random() < 0.15:
            contents = tensor.contents
            dice.choice(
                [
                    lambda c: c.fp32_contents.extend([float("nan")] * 784),
                    lambda c: c.fp32_contents.extend([1.0] * dice.randrange(0, 800)),
                    lambda c: c.bytes_contents.append(example(dice)),
                    lambda c: c.int_contents.extend([300] * 784),
                    lambda c: c.uint_contents.extend([200] * 784),
                    lambda c: c.bool_contents.extend([True]),
                ]
            )(contents)
        elif dice.random() < 0.9:
            request.raw_input_contents.append(raw_contents(dice))
    for _ in range(dice.choice([0, 0, 0, 1, 3])):
        request.outputs.add(name=dice.choice(["label", "vote", "label_name", "tier_votes", "nonsense", ""]))
    if dice.random() < 0.1:
        request.parameters[dice.choice(["timeout", "", "x" * 100])].int64_param = dice.choice(NUMBERS)
    return request


def raw_contents(dice: random.Random) -> bytes:
    kind = dice.randrange(5)
    if kind == 0:
        values = np.full(784, dice.choice([0.5, np.nan, np.inf, -np.inf, 3e38, 1e-45]), dtype="<f4")
        return values.tobytes()
    if kind == 1:
        return dice.randbytes(dice.choice([784, 784, 1568, 783]))
    if kind == 2:
        elements = [example(dice) for _ in range(dice.randrange(1, 3))]
        lengths = [len(data) if dice.random() < 0.9 else dice.choice([0, 1, 2**32 - 1]) for data in elements]
        return b"".join(struct.pack("<I", size) + data for size, data in zip(lengths, elements, strict=True))
    if kind == 3:
        return dice.randbytes(dice.choice([0, 1, 3, 4, 8, 3136]))
    return np.zeros(784, dtype=dice.choice(["<f4", "<f8", "<f2", "<u1"])).tobytes()


@functools.cache
def honest() -> tuple[bytes, ...]:
    """Requests that are answered, to be damaged."""
    made = []
    column = np.empty(1, dtype=object)
    column[0] = pictures()[0]
    for x in (np.zeros((1, 28, 28, 1), np.uint8), np.zeros((2, 1, 28, 28), np.float32), column):
        request = pb.ModelInferRequest(model_name="digits", id="7")
        add_input(request, "input", x)
        made.append(request.SerializeToString())
    return tuple(made)


def message(dice: random.Random) -> bytes:
    """What a stranger sends."""
    kind = dice.random()
    if kind < 0.55:
        data = lying_request(dice).SerializeToString()
        return damaged(data, dice) if dice.random() < 0.2 else data
    if kind < 0.85:
        data = dice.choice(honest())
        for _ in range(dice.randrange(0, 4)):
            data = damaged(data, dice)
        return data
    return dice.randbytes(dice.randrange(0, 400))


def barrage(target: Target, seed: int, n: int) -> None:
    dice = random.Random(seed)
    for _ in range(n):
        target.send(message(dice), dice.choice([None, None, None, 5.0, 1e-9, 0.0, -3.0, 1e12]))


@given(seed=st.integers(0, 2**64 - 1))
@settings(max_examples=60, phases=[Phase.generate], suppress_health_check=list(HealthCheck), deadline=None)
def test_a_stranger_gets_an_answer_or_a_reason(target, seed):
    barrage(target, seed, PER_EXAMPLE)


def test_the_barrage_gets_through_to_the_models_and_to_every_kind_of_refusal(target):
    target.seen.clear()
    for seed in range(40):
        barrage(target, seed, PER_EXAMPLE)
    assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "DEADLINE_EXCEEDED"} <= set(target.seen)
    assert target.seen["OK"] > 30


def test_honest_requests_are_answered_after_it(target):
    for data in honest():
        before = target.seen["OK"]
        target.send(data)
        assert target.seen["OK"] == before + 1


@pytest.mark.slow
def test_200000_requests_crash_nothing_and_leave_nothing_behind(target):
    def resident_kb() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024

    n_examples = BUDGET // PER_EXAMPLE

    @given(seed=st.integers(0, 2**64 - 1))
    @settings(
        max_examples=n_examples,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        deadline=None,
        database=None,
    )
    def attack(seed: int) -> None:
        barrage(target, seed, PER_EXAMPLE)

    for seed in range(400):  # what is allocated once is allocated now
        barrage(target, seed, PER_EXAMPLE)
    gc.collect()
    before = resident_kb()
    attack()
    gc.collect()
    grown = resident_kb() - before
    assert grown < 64 * 1024, f"resident memory grew by {grown} kB"
    assert target.server.calls.n_inside == 0
    assert sum(target.seen.values()) >= BUDGET
