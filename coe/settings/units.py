"""Time as people write it: 1us, 10ms, 2s."""

from __future__ import annotations

import re

UNITS_S = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}


def parse_seconds(text: str) -> float:
    """Seconds from "1us", "10ms" or "1.5s".

    Raises:
        ValueError: it is none of these.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(us|µs|ms|s)\s*", text)
    if not match:
        raise ValueError(f'expected a time with its unit, got "{text}" (write 1us, 10ms or 2s)')
    return float(match[1]) * UNITS_S[match[2]]


def format_seconds(seconds: float, digits: int = 3) -> str:
    """The shortest of "12 us", "3.4 ms", "1.2 s", to so many digits; "1234 s" in full."""
    for unit, size in (("us", 1e-6), ("ms", 1e-3), ("s", 1.0)):
        if abs(seconds) / size < 1000 - 0.5 * 10 ** (3 - digits):  # what rounds to 1000 is the next unit's
            return f"{seconds / size:.{digits}g} {unit}"
    return f"{seconds:.0f} s"
