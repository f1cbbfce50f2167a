"""Recorded links: Mahimahi's delivery opportunities, and CSV of bitrate and round trip as 5G data sets have it."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from coe.cascade.errors import ConfigError

from .bandwidth import Queue, Steps
from .link import PACKET_BYTES, Bytes, LinkModel, Numbers, Passage, Seconds


class Opportunities:
    """Mahimahi's: at each of these times one packet's bytes may pass; after the last it starts again.

    Args:
        times_ms: (K,) whole milliseconds, in order; one that is repeated is several packets.
    """

    def __init__(self, times_ms: Sequence[int]) -> None:
        self._times = np.asarray(times_ms, dtype=np.float64) / 1000
        self.period_s = float(self._times[-1])

    def bytes_before(self, at_s: Seconds) -> Bytes:
        loops, at = np.divmod(at_s, self.period_s)
        before = np.searchsorted(self._times, at)  # what is at this very time may still be taken
        return np.asarray((loops * len(self._times) + before) * PACKET_BYTES, dtype=np.float64)

    def time_of(self, n_bytes: Bytes) -> Seconds:
        loops, last = np.divmod(np.maximum(np.ceil(n_bytes / PACKET_BYTES) - 1, 0), len(self._times))
        time: Seconds = loops * self.period_s + self._times[last.astype(np.intp)]
        return time


@dataclass(frozen=True, slots=True)
class RoundTrips:
    """Half of a round trip that changes: recorded at `starts_s`, each until the next, repeated after `period_s`."""

    starts_s: Seconds
    round_trips_s: Seconds
    period_s: float

    def start(self, rng: np.random.Generator, phases: Seconds) -> Passage:
        shift_s = phases * self.period_s

        def passage(sent_s: Seconds, n_bytes: Bytes, links: Numbers) -> Seconds:
            at = np.mod(sent_s + shift_s[links], self.period_s)
            return sent_s + self.round_trips_s[np.searchsorted(self.starts_s, at, side="right") - 1] / 2

        return passage


def read_recorded(path: Path, *, up: bool) -> tuple[LinkModel, ...]:
    """The models of one direction, from a file: a CSV, or Mahimahi's whatever its name.

    Raises:
        ConfigError: it is neither, it cannot be read, or nothing ever passes.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError([f"{path}: the link cannot be read: {reason}"]) from None
    try:
        return _csv(text, up=up) if path.suffix == ".csv" else (Queue(_mahimahi(text)),)
    except (ValueError, KeyError, IndexError) as error:
        raise ConfigError([f"{path}: {error}"]) from None


def _mahimahi(text: str) -> Opportunities:
    fix = "one whole number of milliseconds a line, in order, the last above 0"
    lines = text.split()
    bad = next((line for line in lines if not line.isdecimal()), None)
    times = [] if bad is not None else [int(line) for line in lines]
    if not times or times != sorted(times) or times[-1] == 0:
        raise ValueError(f"expected {fix}, got {'another order or nothing' if bad is None else repr(bad)}")
    return Opportunities(times)


BITRATES = {True: ("up_kbps", "UL_bitrate"), False: ("down_kbps", "DL_bitrate")}
TIMES = ("t_s", "timestamp", "Timestamp")
ROUND_TRIPS = ("rtt_ms", "PINGAVG")


def _csv(text: str, *, up: bool) -> tuple[LinkModel, ...]:
    """Columns: a time, kbit/s in this direction and, where there are any, round trips in ms; "-" and "": not known."""
    rows = list(csv.DictReader(text.splitlines()))
    known = rows[0] if rows else {}
    columns = [next((name for name in names if name in known), None) for names in (TIMES, BITRATES[up], ROUND_TRIPS)]
    time, rate, round_trip = columns
    if time is None or rate is None:
        wanted = " and ".join(" or ".join(names) for names in (TIMES, BITRATES[up]))
        raise ValueError(f"expected rows with the columns {wanted}, got {', '.join(known) or 'none'}")
    seconds = [_seconds(row[time]) for row in rows]
    starts, first = np.unique(np.array(seconds) - seconds[0], return_index=True)
    if starts[0] < 0:
        raise ValueError("expected rows in the order of time")
    period_s = float(starts[-1] + np.median(np.diff(starts))) if len(starts) > 1 else 1.0
    kbps = np.array([_number(row, rate) for row in rows])
    mean = np.add.reduceat(np.nan_to_num(kbps), first) / np.diff(np.append(first, len(rows)))  # of one second
    if not mean.any():
        raise ValueError(f"expected bitrates above 0 in {rate}, got none")
    models: tuple[LinkModel, ...] = (Queue(Steps(starts, mean * 125, period_s)),)
    if round_trip is None:
        return models
    pings = np.array([_number(row, round_trip) for row in rows])
    known_at = np.flatnonzero(~np.isnan(pings))
    if not len(known_at):
        return models
    last = known_at[np.maximum(np.searchsorted(known_at, first, side="right") - 1, 0)]  # before the first: the first
    return (*models, RoundTrips(starts, pings[last] / 1000, period_s))


def _number(row: Mapping[str, str], column: str) -> float:
    return float("nan") if row[column] in ("", "-", None) else float(row[column])


def _seconds(text: str) -> float:
    """Seconds, from any start, of a number, "2019.12.16_07.22.43" or an ISO date."""
    if "_" in text:
        return datetime.strptime(text + "+0000", "%Y.%m.%d_%H.%M.%S%z").timestamp()
    return datetime.fromisoformat(text).timestamp() if ":" in text else float(text)
