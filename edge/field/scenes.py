"""The same scene is not sent twice: a picture like one that was sent has the answer that one got."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coe.cascade.cascade import Run
from coe.cascade.errors import TierError
from coe.cascade.types import NO_CALL, Array
from edge.sinks import Outcome
from edge.sources import Example

from .config import SceneConfig

SIDE = 16  # cells of a thumbnail, each way
MOST_PIXELS = 256  # of a picture's side that are looked at


class SameScene(TierError):
    """An example like this one is on its way to the cloud, or waits for it."""

    reason = "duplicate"


@dataclass(slots=True, eq=False)
class Scene:
    """One that was sent: its example's id, its picture, when, and its outcome once it has the cloud's answer."""

    id: str
    size: tuple[int, ...]
    cells: NDArray[np.float32]
    at: float
    outcome: Outcome | None = None


class SceneFilter:
    """Remembers the latest scenes that were sent, and what the cloud answered. Also an outcome observer.

    Two pictures show the same scene if they have the same size and no cell of their thumbnails (`cells_of`) differs by
    more than `difference`. The largest difference counts, not the mean, in which a small change would be lost.

    Args:
        clock: seconds that only go forward.
    """

    def __init__(self, config: SceneConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config
        self._clock = clock
        self._lock = threading.Lock()
        self._scenes: deque[Scene] = deque(maxlen=config.remember)

    def answer(self, example: Example, run: Run) -> Outcome | None:
        """The outcome of an earlier example of the same scene; None: there is none.

        Where the earlier one has no answer yet the run ends here, with the device's own answer, if it has one.
        """
        x = run.batch.x
        if x.dtype != np.uint8 or x.ndim != 4:
            return None
        cells, now = cells_of(x[0]), self._clock()
        with self._lock:
            same = next((scene for scene in self._scenes if self._is_same(scene, x.shape[1:], cells, now)), None)
            if same is None or (same.outcome is None and not run.falls_back):
                self._scenes.append(Scene(example.id, x.shape[1:], cells, now))
                return None
        if same.outcome is None:
            run.fail(SameScene(run.next_tier.name, f"the same scene as {same.id}, which has no answer yet"))
        return same.outcome

    def on_outcome(self, example: Example, outcome: Outcome) -> None:
        if not outcome.deferred or outcome.corrects:
            return
        with self._lock:
            sent = next((scene for scene in self._scenes if scene.id == outcome.id), None)
            if sent is None or (outcome.decision is not None and outcome.decision.id != outcome.id):
                return
            if outcome.decision is not None and not outcome.reason:
                sent.outcome = replace(outcome, decision=replace(outcome.decision, call=NO_CALL))
            elif not outcome.spooled:
                self._scenes.remove(sent)

    def _is_same(self, scene: Scene, size: tuple[int, ...], cells: NDArray[np.float32], now: float) -> bool:
        if scene.size != size or now - scene.at > self.config.max_age_s:
            return False
        return bool(np.abs(scene.cells - cells).max() <= self.config.difference)


def cells_of(pixels: Array) -> NDArray[np.float32]:
    """(SIDE, SIDE) mean brightness, 0 to 255, of parts of a picture (H, W, C); fewer where it is smaller."""
    height, width = pixels.shape[:2]
    seen = pixels[:: max(1, height // MOST_PIXELS), :: max(1, width // MOST_PIXELS)].mean(axis=2, dtype=np.float32)
    edges = [np.linspace(0, side, min(side, SIDE) + 1).astype(int) for side in seen.shape]
    sums = np.add.reduceat(np.add.reduceat(seen, edges[0][:-1], axis=0), edges[1][:-1], axis=1)
    cells: NDArray[np.float32] = (sums / np.outer(*map(np.diff, edges))).astype(np.float32)
    return cells
