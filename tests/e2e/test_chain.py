"""A device and three servers in a row, each a process of its own: together one cascade, and every hop accounted for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import yaml
from programs import Cloud, edge

from coe.cascade import Always, Batch, Cascade, Confidence, Decision
from coe.config import Fields, Report
from coe.config.cascade import read_cascade
from coe.config.manifest import read_manifest
from coe.config.open import open_tier
from coe.models.inputs import InputDecoder
from coe.protocol.core import RESERVE
from coe.protocol.remote import RemoteTier
from coe.protocol.service import path
from coe.zoo import digits

TASK = read_manifest(digits.MANIFEST).task
N = 64
MEMBERS = {
    "device": ["stroke", "loom", "mosaic"],
    "near": ["pyramid", "lattice", "ripple"],
    "far": ["pyramid", "ripple", "resnet"],
    "best": ["resnet"],
}
NAMES = tuple(MEMBERS)


def local_tier(name: str, rule: str = "") -> str:
    members = ", ".join(f"zoo:digits/{member}.onnx" for member in MEMBERS[name])
    return f"  - {{name: {name}, members: [{members}]{rule}}}\n"


def remote_tier(name: str, port: int, deadline_ms: int = 20_000) -> str:
    return f'  - {{name: {name}, address: "127.0.0.1:{port}", model: digits, deadline_ms: {deadline_ms}}}\n'


def config(folder: Path, name: str, *tiers: str, more: str = "") -> Path:
    written = folder / f"{name}.yaml"
    written.write_text("task: zoo:digits\ntiers:\n" + "".join(tiers) + more, encoding="utf-8")
    return written


def examples(n: int = N) -> list[Batch]:
    """One batch for each of the first bundled digits."""
    decoder = InputDecoder(TASK.input_spec)
    return [decoder.batch([name], [png]) for name, png, _ in digits.test_examples(n)]


@dataclass(frozen=True)
class Wanted:
    """Rules such that every tier answers some examples, and what the same cascade at home says of them.

    Args:
        rules: of each tier but the last, by name.
        decisions: of all four tiers; behind: of the three behind the device.
    """

    rules: dict[str, str]
    decisions: list[Decision]
    behind: list[Decision]


@pytest.fixture(scope="module")
def wanted() -> Iterator[Wanted]:
    text = "task: zoo:digits\ntiers:\n" + "".join(local_tier(name, ", confidence: 0.5") for name in NAMES)
    report = Report("chain")
    read = read_cascade(Fields(yaml.safe_load(text), report), Path())
    report.check()
    tiers = [open_tier(tier, read) for tier in read.tiers]
    rules: dict[str, str] = {}
    left = examples()
    for tier in tiers[:-1]:  # about a third of what reaches a tier goes on
        scores = [float(tier.vote(batch, Confidence(1.0)).score[0]) for batch in left]
        low, high = sorted(scores)[len(scores) // 3 : len(scores) // 3 + 2]
        threshold = (low + high) / 2
        tier.rule = Confidence(threshold)
        rules[tier.name] = f", confidence: {threshold!r}"
        left = [batch for batch, score in zip(left, scores, strict=True) if score < threshold]
    whole, behind = Cascade(tiers), Cascade(tiers[1:])
    yield Wanted(
        rules,
        [whole.decide(batch)[0] for batch in examples()],
        [behind.decide(batch)[0] for batch in examples()],
    )
    whole.close()


@pytest.fixture(scope="module")
def servers(wanted, tmp_path_factory) -> Iterator[dict[str, Cloud]]:
    with chain(tmp_path_factory.mktemp("chain"), wanted.rules) as started:
        yield started


@contextmanager
def chain(
    folder: Path, rules: dict[str, str], between: Callable[[int], int] = lambda port: port
) -> Iterator[dict[str, Cloud]]:
    """The servers of the three tiers behind the device, by name. `between` may put something before a port."""
    with ExitStack() as stack:
        best = stack.enter_context(Cloud(folder, config(folder, "best", local_tier("best"))))
        behind = remote_tier("best", between(best.port))
        far = stack.enter_context(Cloud(folder, config(folder, "far", local_tier("far", rules["far"]), behind)))
        behind = remote_tier("far", between(far.port))
        near = stack.enter_context(Cloud(folder, config(folder, "near", local_tier("near", rules["near"]), behind)))
        yield {"near": near, "far": far, "best": best}


def run_device(folder: Path, rules: dict[str, str], port: int) -> list[dict[str, Any]]:
    """The device's records of every example, in order."""
    own = local_tier("device", rules["device"])
    more = 'source: {kind: digits}\nsink: {path: "-"}\nordered: true\nmax_in_flight: 1\n'
    with edge(folder, config(folder, "edge", own, remote_tier("cloud", port), more=more), "--limit", N) as agent:
        assert agent.end() == 0, agent.complained
    return agent.records


def test_a_chain_of_three_servers_answers_as_one_cascade_with_the_device(servers, wanted, tmp_path):
    records = run_device(tmp_path, wanted.rules, servers["near"].port)
    assert [record["id"] for record in records] == [decision.id for decision in wanted.decisions]
    assert [record["label"] for record in records] == [decision.label for decision in wanted.decisions]
    exits = [record["exit_tier"] for record in records]
    assert exits == [decision.exit_tier for decision in wanted.decisions]
    assert set(exits) == {1, 2, 3, 4}
    assert not any(record["degraded"] for record in records)
    for record, decision in zip(records, wanted.decisions, strict=True):
        assert record["tier_votes"] == pytest.approx(decision.tier_votes, abs=1e-6)
        check_hops(record)


def check_hops(record: dict[str, Any]) -> None:
    """As many hops as servers were asked, each within the time of the server before it."""
    call, n_hops = record.get("call", {}), record["exit_tier"] - 1
    assert {key for key in call if key.startswith("hop_")} == {
        *(f"hop_{hop}_s" for hop in range(1, n_hops + 1)),
        *(f"hop_{hop}_server_s" for hop in range(2, n_hops + 1)),
    }
    if n_hops == 0:
        return
    whole = call["call_s"]
    for hop in range(1, n_hops + 1):
        wire, server = call[f"hop_{hop}_s"], call["server_s" if hop == 1 else f"hop_{hop}_server_s"]
        assert 0 < wire < whole
        assert 0 < server < whole
        assert wire + server <= whole + 1e-6  # of rounding in the record
        whole = server
    behind = sum(call[f"hop_{hop}_s"] for hop in range(2, n_hops + 1))
    assert call.get("hops_s", 0.0) == pytest.approx(behind, abs=1e-6)


@pytest.mark.parametrize("stream", [False, True], ids=["a call each", "one stream"])
def test_many_callers_of_a_chain_at_once_each_get_their_own(servers, wanted, stream):
    address = f"127.0.0.1:{servers['near'].port}"
    tier = RemoteTier("cloud", address, "digits", Always(), n_labels=10, deadline_s=20.0, stream=stream)

    def ask(batch: Batch) -> tuple[int, int]:
        vote = tier.vote(batch, Always())
        return int(vote.labels[0]), int(vote.exit_tier[0])

    with ThreadPoolExecutor(16) as callers:
        answers = list(callers.map(ask, examples()))
    tier.close()
    assert answers == [(decision.label, decision.exit_tier) for decision in wanted.behind]


@pytest.mark.slow
def test_a_server_that_dies_costs_its_own_tier_and_those_behind_it_alone(wanted, tmp_path):
    with chain(tmp_path, wanted.rules) as servers:
        for killed, last in (("best", 3), ("far", 2)):
            servers[killed].process.kill()
            servers[killed].end()
            records = run_device(tmp_path, wanted.rules, servers["near"].port)
            for record, decision in zip(records, wanted.decisions, strict=True):
                assert record["exit_tier"] == min(decision.exit_tier, last)
                if decision.exit_tier <= last:
                    assert (record["label"], record["degraded"]) == (decision.label, None)
                else:
                    assert record["degraded"].startswith(f"unavailable: tier {killed}: UNAVAILABLE")


class Passage:
    """Stands between two servers: hands every call on, and notes how much time it had left."""

    def __init__(self, port: int) -> None:
        self.left: list[float] = []
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self._server = grpc.server(ThreadPoolExecutor(4))
        self._server.add_generic_rpc_handlers((self,))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        ask = self._channel.unary_unary(details.method)

        def pass_on(request: bytes, context: grpc.ServicerContext) -> bytes:
            if details.method == path("ModelInfer"):
                self.left.append(context.time_remaining())
            answer: bytes = ask(request, timeout=context.time_remaining())
            return answer

        return grpc.unary_unary_rpc_method_handler(pass_on)

    def close(self) -> None:
        self._server.stop(0).wait()
        self._channel.close()


@pytest.mark.slow
def test_the_deadline_of_each_server_is_what_the_one_before_has_left_less_a_reserve(tmp_path):
    every_one = dict.fromkeys(NAMES, ", confidence: 1.0")  # nobody is ever that sure: all go to the last
    passages: list[Passage] = []

    def between(port: int) -> int:
        passages.insert(0, Passage(port))
        return passages[0].port

    try:
        with chain(tmp_path, every_one, between) as servers:
            port = between(servers["near"].port)
            tier = RemoteTier("cloud", f"127.0.0.1:{port}", "digits", Always(), n_labels=10, deadline_s=8.0)
            batch = examples(12)
            exits = [int(tier.vote(one, Always()).exit_tier[0]) for one in batch]
            tier.close()
    finally:
        for passage in passages:
            passage.close()
    assert exits == [3] * 12
    lefts = np.array([passage.left for passage in passages])  # (3 hops, 12 calls)
    assert lefts.shape == (3, 12)
    grain_s = 0.05  # gRPC rounds what it sends
    assert (lefts[0] <= 8.0 + grain_s).all()
    assert (lefts[1:] <= lefts[:-1] * (1 - RESERVE) + grain_s).all()
    assert (lefts[2] > 1.0).all()
