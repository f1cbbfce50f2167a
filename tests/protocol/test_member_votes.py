"""Calibrated votes over the wire: a tier gives the same answer there as here, through one server or a chain of them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from calibrated import cascade_of, cascades, equal
from hypothesis import given, settings
from loopback import VERSION, request_of, scripted, served, servicer, serving
from strategies import one_hot, rows, table_tier

from coe.calibration import CalibratedVote
from coe.cascade import NO_LABEL, Agreement, Always, Cascade
from coe.protocol import inference_pb2 as pb
from coe.protocol.codec import add_output, read_outputs, set_parameter
from coe.protocol.remote import RemoteTier, read_answer
from coe.protocol.service import path

ASK_ALL = Always(asks_all=True)


@pytest.fixture(scope="module")
def cloud() -> Iterator[SimpleNamespace]:
    service, names = servicer(), (f"model-{number}" for number in count())
    with serving(service.handler()) as address:

        def remote(cascade: Cascade, n_labels: int, rule: object, **options: object) -> RemoteTier:
            name = next(names)
            service.plane.models[name] = served(name, cascade, n_labels)
            own = {"n_labels": n_labels, "fingerprint": VERSION, "deadline_s": 20.0, **options}
            return RemoteTier(f"cloud {name}", address, name, rule, n_tiers=cascade.n_tiers, **own)

        yield SimpleNamespace(remote=remote, address=address)


@settings(max_examples=20)
@given(cascades(least_tiers=2))
def test_members_on_a_server_count_as_if_they_were_here(cloud, case):
    tiers, fitted, n_rows = case
    here = cascade_of(tiers, fitted)
    n_labels = tiers[0][0].shape[1]
    for stream in (False, True):
        opened = [here.tiers[0]]
        for own, tier in zip(tiers[1:], here.tiers[1:], strict=True):
            alone = Cascade([table_tier(own, ASK_ALL, tier.name)])
            opened.append(cloud.remote(alone, n_labels, tier.rule, stream=stream))
        there = Cascade(opened, keep_last_answer=False)
        for batch in (rows(n_rows), rows(1)):
            expected, got = here.decide(batch), there.decide(batch)
            np.testing.assert_array_equal(got.labels, expected.labels)
            np.testing.assert_array_equal(got.exit_tier, expected.exit_tier)
            np.testing.assert_array_equal(got.score, expected.score)
        for tier in opened[1:]:
            tier.close()


@settings(max_examples=20)
@given(cascades(least_tiers=3))
def test_a_server_of_several_tiers_and_a_chain_of_servers_give_the_members_of_all_tiers_reached(cloud, case):
    """Each server defers by plain agreement; the device fuses what all members of the tiers reached said."""
    tiers, fitted, n_rows = case
    n_labels = tiers[0][0].shape[1]
    rules = [Agreement(1)] * (len(tiers) - 2) + [ASK_ALL]
    behind = [table_tier(own, rule, f"t{at}") for at, (own, rule) in enumerate(zip(tiers[1:], rules, strict=True))]
    whole = Cascade(behind)
    last = cloud.remote(Cascade(behind[-1:]), n_labels, Always())
    chain = Cascade([*behind[:-1], last])
    rule = CalibratedVote(tuple(fitted[1:]), len(tiers[0]))
    first = cascade_of(tiers, fitted).tiers[0]
    plain = whole.decide(rows(n_rows))
    for server in (whole, chain):
        remote = cloud.remote(server, n_labels, rule)
        decided = Cascade([first, remote], keep_last_answer=False).decide(rows(n_rows))
        for row in range(n_rows):
            if decided.exit_tier[row] == 1:
                continue
            reached = int(plain.exit_tier[row])  # of the server's tiers
            assert decided.exit_tier[row] == 1 + reached
            asked = [table for own in tiers[: 1 + reached] for table in own]
            labels, scores = ([float(f(table[row])) for table in asked] for f in (np.argmax, np.max))
            label, p = fitted[reached].posterior_of_one([int(one) for one in labels], scores)
            assert (decided.labels[row], decided.score[row]) == (label, np.float32(p))
        remote.close()
    last.close()


def test_a_server_gives_what_each_member_said_where_that_is_asked_for_and_of_tiers_reached_alone():
    agreed, split = one_hot([0, 0]), one_hot([0, 1])
    cascade = Cascade([table_tier([agreed, split, agreed], Agreement(1)), table_tier([one_hot([2, 2])], ASK_ALL)])
    service = servicer(served("m", cascade, 3))
    with serving(service.handler()) as address, grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary(path("ModelInfer"), pb.ModelInferRequest.SerializeToString)

        def outputs(x: list[list[int]], **fields: object) -> dict[str, np.ndarray]:
            request = request_of("m", np.array(x, dtype=np.int64))
            for name in fields.get("outputs", ()):
                request.outputs.add(name=name)
            if "asks" in fields:
                set_parameter(request.parameters, "member_votes", fields["asks"])
            return read_outputs(pb.ModelInferResponse.FromString(ask(request, timeout=20)))

        assert "member_label" not in outputs([[0]])
        assert "member_label" not in outputs([[0]], asks=False)
        near = outputs([[0]], asks=True)
        assert near["member_label"].tolist() == [[0, 0, 0]]
        assert near["member_score"].tolist() == [[1, 1, 1]]
        both = outputs([[0], [1]], asks=True)
        assert both["member_label"].tolist() == [[0, 0, 0, NO_LABEL], [0, 1, 0, 2]]
        assert np.isnan(both["member_score"][0, 3])
        assert both["member_score"][1, 3] == 1
        assert outputs([[1]], outputs=["member_label"])["member_label"].tolist() == [[0, 1, 0, 2]]


def test_a_server_of_others_counts_as_one_member_and_a_coe_cloud_without_the_parameter_is_refused():
    """Both fit a table of one member behind the device; with two, there is no vote to fuse."""

    def answer(request: bytes, context: object) -> bytes:
        response = pb.ModelInferResponse()
        add_output(response, "label", np.array([1], dtype=np.int32))
        add_output(response, "vote", np.array([1], dtype=np.float32))
        add_output(response, "score", np.array([0.75], dtype=np.float32))
        return response.SerializeToString()

    device = CalibratedVote((equal(1, 2.0),))
    first = table_tier([np.array([[0.5, 0.25, 0.25]], dtype=np.float32)], device)
    with serving(scripted(answer)) as address:
        for n_members, exit_tier in ((1, 2), (2, 1)):
            rule = CalibratedVote((equal(1 + n_members),), 1)
            remote = RemoteTier("cloud", address, "model", rule, n_labels=3, deadline_s=20.0)
            (decided,) = Cascade([first, remote]).decide(rows(1))
            assert decided.exit_tier == exit_tier
            assert (decided.degraded or "").startswith(
                "" if exit_tier == 2 else "rejected: tier cloud: expected the votes"
            )
            remote.close()


@pytest.mark.parametrize(
    ("labels", "scores"),
    [([[0, 3]], [[1, 1]]), ([[0, -2]], [[1, 1]]), ([[0, 1]], [[1]]), ([0], [1])],
)
def test_members_that_are_none_are_refused(labels, scores):
    response = pb.ModelInferResponse()
    for name, values in (("label", [1]), ("member_label", labels)):
        add_output(response, name, np.array(values, dtype=np.int32))
    for name, values in (("vote", [1]), ("score", [1]), ("member_score", scores)):
        add_output(response, name, np.array(values, dtype=np.float32))
    with pytest.raises(ValueError, match="member_"):
        read_answer(response, 1, 3)
