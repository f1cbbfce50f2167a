"""The bundled test digits: 1,000 scanned digits as PNG, with their labels."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from coe.zoo import digits

from .base import Example


class DigitsSource:
    """The digits in their fixed order, `repeat` times."""

    def __init__(self, repeat: int = 1) -> None:
        self.repeat = repeat

    def examples(self, stop: threading.Event) -> Iterator[Example]:
        bundled = digits.test_examples()
        for turn in range(1, self.repeat + 1):
            for name, png, label in bundled:
                if stop.is_set():
                    return
                yield Example(name if turn == 1 else f"{name}#{turn}", png, label)
