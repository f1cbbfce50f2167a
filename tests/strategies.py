"""What hypothesis draws from, and the fakes, that several test folders share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
from hypothesis import strategies as st

from coe.cascade import Agreement, Batch, CallCost, Cascade, DeferralRule, LocalTier, TierError, Vote
from coe.cascade.types import Array
from coe.models import TableMember
from coe.models.pool import MemberPool

# Eighths are exact in float32 and few, so that ties on the mean score are common.
EIGHTHS = st.integers(0, 8)


@st.composite
def tables(
    draw: st.DrawFn, n_members: int | None = None, n_rows: int | None = None, n_labels: int | None = None
) -> list[Array]:
    """One table (N, L) per member: a top label each, few scores, so votes and scores tie often."""
    n_members = draw(st.integers(1, 5)) if n_members is None else n_members
    n_rows = draw(st.integers(1, 6)) if n_rows is None else n_rows
    n_labels = draw(st.integers(2, 4)) if n_labels is None else n_labels
    exact = draw(st.booleans())
    members = []
    for _ in range(n_members):
        if exact:
            cells = draw(st.lists(EIGHTHS, min_size=n_rows * n_labels, max_size=n_rows * n_labels))
            table = np.array(cells, dtype=np.float32).reshape(n_rows, n_labels) / 8
        else:
            rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
            table = rng.dirichlet(np.full(n_labels, 0.5), n_rows).astype(np.float32)
        members.append(table)
    return members


def thetas() -> st.SearchStrategy[Fraction]:
    """Any share in (0, 1], often one that some number of members reaches exactly."""
    reachable = st.integers(1, 6).flatmap(lambda of: st.integers(1, of).map(lambda count: Fraction(count, of)))
    return reachable | st.fractions(min_value=Fraction(1, 1000), max_value=1, max_denominator=1000)


def members_of(tables: Sequence[Array]) -> list[TableMember]:
    return [TableMember(table, f"member-{index}") for index, table in enumerate(tables, start=1)]


def table_tier(
    tables: Sequence[Array],
    rule: DeferralRule | Fraction,
    name: str = "tier",
    *,
    parallel: bool = False,
    early: bool = True,
) -> LocalTier:
    """A tier of table members; a fraction stands for agreement at it."""
    rule = Agreement(rule) if isinstance(rule, Fraction) else rule
    members = members_of(tables)
    return LocalTier(name, members, rule, early=early, pool=MemberPool.of(name, members) if parallel else None)


def rows(n: int, first: int = 0) -> Batch:
    """A batch that asks table members for their rows `first` .. `first + n - 1`."""
    return Batch(tuple(f"x{row}" for row in range(first, first + n)), np.arange(first, first + n)[:, None])


def one_hot(labels: Sequence[int], n_labels: int = 3) -> Array:
    """A table whose row b is certain of labels[b]."""
    return np.eye(n_labels, dtype=np.float32)[np.asarray(labels, dtype=np.intp)]


class FakeServer:
    """A remote tier: a cascade of its own that answers for all its tiers, as a server does.

    Args:
        error: raised in place of an answer.
    """

    waits = True

    def __init__(
        self, name: str, cascade: Cascade, rule: DeferralRule, error: Callable[[], TierError] | None = None
    ) -> None:
        self.name = name
        self.cascade = cascade
        self.rule = rule
        self.error = error
        self.asked_about: list[tuple[str, ...]] = []

    @property
    def n_tiers(self) -> int:
        return self.cascade.n_tiers

    def vote(self, batch: Batch, rule: DeferralRule) -> Vote:
        self.asked_about.append(batch.ids)
        if self.error is not None:
            raise self.error()
        told = self.cascade.decide(batch)
        reasons = tuple(told.reasons())
        votes = np.full((len(batch), self.n_tiers), np.nan, dtype=np.float32)
        votes[:, : told.tier_votes.shape[1]] = told.tier_votes
        return Vote(
            labels=told.labels,
            count=np.rint(told.vote * told.asked).astype(np.int64),
            asked=told.asked,
            n_members=int(told.n_members.max()),
            score=told.score,
            exit_tier=told.exit_tier,
            tier_votes=votes,
            degraded=reasons if any(reasons) else None,
            call=CallCost(bytes_sent=100),
        )

    def complete(self, batch: Batch, vote: Vote) -> Vote:
        return vote

    def close(self) -> None:
        self.cascade.close()


class Broken:
    """A tier that never answers."""

    n_tiers = 1
    waits = True

    def __init__(self, error: TierError, rule: DeferralRule | None = None) -> None:
        self.name = error.tier
        self.rule: DeferralRule = rule or Agreement(Fraction(1))
        self._error = error
        self.calls = 0

    def vote(self, batch: Batch, rule: DeferralRule) -> Vote:
        self.calls += 1
        raise self._error

    def complete(self, batch: Batch, vote: Vote) -> Vote:
        return replace(vote)

    def close(self) -> None:
        self.calls = -1


class LinearModel:
    """A model small enough to make in a test: softmax(x @ weight + bias) over 16 inputs and 3 labels.

    Args:
        rows: a fixed batch dimension; None: any.
        shape: of one example.
        end: "softmax", "none" (logits), or "double" (twice the probabilities: a model that is not what it says).
    """

    def __init__(self, rows: int | None = None, shape: tuple[int, ...] = (1, 4, 4), end: str = "softmax") -> None:
        rng = np.random.default_rng(11)
        self.weight = rng.normal(size=(16, 3)).astype(np.float32)
        self.bias = rng.normal(size=3).astype(np.float32)
        self.rows = rows
        self.shape = shape
        self.end = end

    def __call__(self, x: Array) -> Array:
        """(B, 3) probabilities of prepared x (B, ...), in double precision."""
        logits = x.reshape(len(x), -1).astype(np.float64) @ self.weight + self.bias
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities: Array = powers / powers.sum(axis=1, keepdims=True)
        return probabilities

    def onnx(self, dtype: str = "float32", extra_input: bool = False, extra_output: bool = False) -> bytes:
        """The model as an ONNX file."""
        from onnx import TensorProto, checker, helper, numpy_helper

        kinds = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}
        batch = self.rows or "batch"
        inputs = [helper.make_tensor_value_info("x", kinds[dtype], [batch, *self.shape])]
        if extra_input:
            inputs.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))
        outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3])]
        nodes = [
            helper.make_node("Cast", ["x"], ["cast"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["cast"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits" if self.end != "none" else "y"]),
        ]
        if self.end == "softmax":
            nodes.append(helper.make_node("Softmax", ["logits"], ["y"], axis=1))
        if self.end == "double":
            nodes.append(helper.make_node("Softmax", ["logits"], ["once"], axis=1))
            nodes.append(helper.make_node("Add", ["once", "once"], ["y"]))
        if extra_output:
            outputs.insert(0, helper.make_tensor_value_info("flat", TensorProto.FLOAT, [batch, 16]))
        weights = [numpy_helper.from_array(self.weight, "weight"), numpy_helper.from_array(self.bias, "bias")]
        graph = helper.make_graph(nodes, "linear", inputs, outputs, weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        checker.check_model(model)
        data: bytes = model.SerializeToString()
        return data
