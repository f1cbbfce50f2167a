"""Multiple choice: an example is a context with several endings, and the label says which of them is right.

On its way an example is a text, a JSON object in UTF-8: {"context": "She walks in.", "endings": ["She sits.", ..]}. A
model reads each ending as a pair with the context, and gives one number for each.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from coe.cascade.errors import InputError
from coe.cascade.types import Array

from .text import BLANK, TextContract


@dataclass(frozen=True)
class ChoicesContract(TextContract):
    """What a model of multiple choice takes in; of a task, that its examples are contexts with endings.

    Args:
        shape: (N,) endings.
    """

    shape: tuple[int, ...] = (4,)

    @property
    def n_choices(self) -> int:
        return self.shape[0]

    @property
    def model_shape(self) -> tuple[int, ...]:
        """(N, 3, T) of one prepared example; T is the longest there may be."""
        return self.n_choices, 3, self.max_length

    def blank(self) -> Array:
        """(1,) an example of one word each."""
        blank = np.empty(1, dtype=object)
        blank[0] = json.dumps({"context": BLANK, "endings": [BLANK] * self.n_choices})
        return blank

    def check(self, text: str) -> None:
        self.pairs(text)

    def prepare(self, x: Array) -> Array:
        """(B, N, 3, T) int64 from a batch's x, (B,) texts: of each pair as of a text, all filled up to one length.

        Raises:
            InputError: x is no texts, or a text is no such example.
        """
        if x.dtype != object:
            raise InputError(f"expected texts, got {x.dtype} {list(x.shape[1:])}")
        pairs = [pair for text in x.tolist() for pair in self.pairs(text)]
        prepared = self.tokens.of(pairs)  # (B * N, 3, T)
        return prepared.reshape(len(x), self.n_choices, 3, -1)

    def pairs(self, text: str) -> list[tuple[str, str]]:
        """N pairs of the context and an ending.

        Raises:
            InputError: what was expected, what came.
        """
        try:
            content = json.loads(text)
            context, endings = content["context"], content["endings"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise InputError(f"{self._expected}, got {text[:40]!r}") from None
        if not isinstance(endings, list) or len(endings) != self.n_choices:
            raise InputError(f"{self._expected}, got {len(endings) if isinstance(endings, list) else 'no list'}")
        if not all(isinstance(one, str) for one in (context, *endings)):
            raise InputError(f"{self._expected}, got something that is no text")
        return [(context, ending) for ending in endings]

    @property
    def _expected(self) -> str:
        return f'expected {{"context": "..", "endings": [..]}} with {self.n_choices} endings'
