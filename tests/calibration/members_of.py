"""Recorded votes of members that are right as often as is asked, and surer where they are."""

from __future__ import annotations

import numpy as np


def recorded(n: int = 1200, n_labels: int = 4, accuracies=(0.6, 0.75, 0.9), seed: int = 0):
    """Labels (M, n), scores (M, n) that are higher where a member is right, truth (n,)."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, n_labels, n)
    right = rng.random((len(accuracies), n)) < np.array(accuracies)[:, None]
    wrong = (truth + rng.integers(1, n_labels, right.shape)) % n_labels
    scores = np.clip(rng.normal(np.where(right, 0.7, 0.4), 0.2), 0, 1)
    return np.where(right, truth, wrong), scores, truth
