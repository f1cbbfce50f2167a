"""Real requests on real cascades of table members, for the tests of what watches them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from strategies import one_hot, rows, table_tier

from cloud.observe.status import MemberFacts, ModelFacts, ServerView, TierFacts
from coe.cascade import Agreement, Always, Batch, Cascade, Tier
from coe.protocol.core import Decided, InferenceCore, Request, ServedModel

# Of rows 0 to 3, all three members agree on 0 and 1, two of them on 2, none on 3.
MEDIUM = [one_hot([0, 1, 2, 0]), one_hot([0, 1, 2, 1]), one_hot([0, 1, 1, 2])]
BEST = [one_hot([0, 1, 1, 2])]


def medium() -> Tier:
    return table_tier(MEDIUM, Agreement(Fraction(1)), "medium", early=False)


def best() -> Tier:
    return table_tier(BEST, Always(), "best")


class TableDecoder:
    """Takes the numbers of rows in the tables."""

    def batch(self, ids: Sequence[str], values: np.ndarray, deadline: float = np.inf) -> Batch:
        return Batch(tuple(ids), np.asarray(values, dtype=np.int64).reshape(-1, 1), None, deadline)


def served(name: str = "digits", tiers: Sequence[Tier] = (), *, keep_last_answer: bool = True) -> ServedModel:
    """A model of these tiers; none: medium, then best."""
    cascade = Cascade(list(tiers) or [medium(), best()], keep_last_answer=keep_last_answer)

    async def decide(batch: Batch) -> Decided:
        return Decided(cascade.decide(batch))

    return ServedModel(name, "f00d", ("a", "b", "c"), ("INT64", (-1, 1)), TableDecoder(), decide, cascade.n_tiers)


def request(wanted: Sequence[int] = (0,), model: str = "digits", **fields: object) -> Request:
    """Asks about these rows of the tables."""
    values = {"input": np.array(wanted, dtype=np.int64)[:, None]}
    return Request(model, "", inputs=values, **({"id": "r1", "n_bytes": 100} | fields))  # type: ignore[arg-type]


def core(observer: object, *models: ServedModel) -> InferenceCore:
    """A core that accepts requests, watched by `observer`."""
    offered = models or (served(),)
    made = InferenceCore(
        {one.name: one for one in offered},
        gates=observer.gates,  # type: ignore[attr-defined]
        watchers=observer.watchers,  # type: ignore[attr-defined]
    )
    made.accepts = True
    return made


def decided(cascade: Cascade, n: int = 1, first: int = 0) -> Decided:
    """The decisions on table rows `first` and on."""
    return Decided(cascade.decide(rows(n, first)))


FACTS = (
    ModelFacts(
        "digits",
        "f00d5eed1234",
        (
            TierFacts(
                "medium",
                "answers when all members agree",
                members=tuple(
                    MemberFacts(f"{name}.onnx", "onnx", sign * 64, "ONNX Runtime, CPU, 1 thread", 0.95)
                    for name, sign in (("ripple", "a"), ("pyramid", "b"), ("lattice", "c"))
                ),
            ),
            TierFacts(
                "best",
                "always answers",
                members=(MemberFacts("resnet.onnx", "onnx", "d" * 64, "ONNX Runtime, CUDA, 1 thread", 0.987),),
            ),
        ),
    ),
    ModelFacts("digits-best", "f00d5eed1234", (TierFacts("best", "always answers"),)),
)


@dataclass
class World:
    """A server's answers to those who watch it, to be changed by a test; and its clock."""

    ready: bool = True
    facts: tuple[ModelFacts, ...] = FACTS
    waiting: int = 0
    failures: tuple[tuple[str, str, int, str | None], ...] = ()
    now: float = 1000.0

    @property
    def view(self) -> ServerView:
        return ServerView(
            lambda name: self.ready,
            lambda: self.facts,
            lambda: {"medium": self.waiting, "best": 0},
            lambda: self.failures,
        )
