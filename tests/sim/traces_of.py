"""What hypothesis draws traces from, and small ones the tests share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from sim.traces import Answers, Trace


def trace_of(labels: Sequence[int], said: dict[str, Sequence[int]], scores: dict[str, Sequence[float]]) -> Trace:
    """A small trace by hand."""
    models = {
        name: Answers(np.array(said[name], np.int32), np.array(scores[name], np.float32) if name in scores else None)
        for name in said
    }
    return Trace("by hand", tuple(f"e{row}" for row in range(len(labels))), np.array(labels, np.int32), models)


@st.composite
def traces(draw: st.DrawFn, *, with_probabilities: bool | None = None, max_rows: int = 150) -> Trace:
    """Few labels and scores in eighths, so that votes and scores tie often; with probabilities, scores or neither."""
    n_models, n_labels = draw(st.integers(1, 6)), draw(st.integers(2, 4))
    n_rows = draw(st.integers(1, max_rows))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["probabilities", "scores", "nothing"]))
    if with_probabilities is not None:
        kind = "probabilities" if with_probabilities else "scores"
    models = {}
    for number in range(n_models):
        table = rng.integers(0, 9, (n_rows, n_labels)) / 8
        predictions = table.argmax(axis=1).astype(np.int32)
        scores = table.max(axis=1).astype(np.float32)
        models[f"m{number}"] = Answers(
            predictions,
            None if kind == "nothing" else scores,
            table.astype(np.float32) if kind == "probabilities" else None,
        )
    labels = rng.integers(0, n_labels, n_rows).astype(np.int32)
    return Trace("drawn", tuple(f"e{row}" for row in range(n_rows)), labels, models)


@st.composite
def tier_members(draw: st.DrawFn, trace: Trace) -> list[tuple[str, ...]]:
    """One to five tiers of one to five members each."""
    names = st.lists(st.sampled_from(list(trace.models)), min_size=1, max_size=5, unique=True).map(tuple)
    return draw(st.lists(names, min_size=1, max_size=5))
