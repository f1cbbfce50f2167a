"""What the bench runs on: a source's examples, the bundled digits, or a blank one where nothing is given."""

from __future__ import annotations

import math
import statistics
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from coe.cascade.errors import ConfigError, InputError
from coe.cascade.types import Batch
from coe.models.contract import Contract
from coe.models.inputs import Door

from ..config import AgentConfig
from ..sources import SourceConfig, open_source

DIGITS = "digits"


@dataclass(frozen=True)
class Examples:
    """Examples, each a batch of its own, as a device sees them.

    Args:
        told: what they are, for people.
        are_blank: zeros: fit for timing a model, not for what depends on who agrees with whom.
        n_unread: files that no example could be made of.
        decode_s: median seconds to decode and check one; NaN for a blank one.
    """

    batches: tuple[Batch, ...]
    told: str
    are_blank: bool = False
    n_unread: int = 0
    decode_s: float = math.nan

    def __len__(self) -> int:
        return len(self.batches)


def read_examples(data: str | None, config: AgentConfig, limit: int) -> Examples:
    """The first `limit` examples of `data`: a folder of images, "digits", or "-": JSON lines on standard input.

    Args:
        data: None: the digits where the config's source is these, else blank ones.
    Raises:
        ConfigError: there is no such folder, or nothing in it that the task takes.
    """
    contract = config.cascade.task.contract
    if data is None and config.source.kind == DIGITS:
        data = DIGITS
    if data is None:
        return Examples(
            (Batch(("blank",), contract.blank()),),
            "a blank example (no --data): every member is asked, and no payloads are compared",
            are_blank=True,
        )
    if data == DIGITS:
        told = "bundled digits, a test split: look, but choose nothing by it"
        return _read(SourceConfig(DIGITS), contract, limit, told)
    if data == "-":
        return _read(SourceConfig("stdin"), contract, limit, "examples of standard input")
    path = Path(data).expanduser()
    if not path.is_dir():
        raise ConfigError([f'--data: expected a folder of images, "digits" or -, got "{data}"'])
    return _read(SourceConfig("folder", path), contract, limit, f"images of {data}")


def _read(config: SourceConfig, contract: Contract, limit: int, told: str) -> Examples:
    door = Door(contract)
    batches, times = [], []
    first_error, n_unread = "", 0
    for example in open_source(config, once=True).examples(threading.Event()):
        try:
            if example.value is None:
                raise InputError(str(example.error))
            started = time.perf_counter()
            batches.append(door.batch([example.id], [example.value]))
            times.append(time.perf_counter() - started)
        except InputError as error:
            first_error, n_unread = first_error or str(error), n_unread + 1
        if len(batches) == limit:
            break
    if not batches:
        raise ConfigError([f"--data: expected examples the task takes, got none: {first_error or 'it is empty'}"])
    return Examples(tuple(batches), f"{len(batches)} {told}", n_unread=n_unread, decode_s=statistics.median(times))
