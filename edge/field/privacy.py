"""What may leave the device: labels never sent, the user's privacy filter, and what may be stored or shown."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coe.cascade.cascade import Cascade, Run
from coe.cascade.errors import ConfigError
from coe.cascade.rule import Always
from coe.cascade.types import Array
from coe.config.cascade import CascadeConfig, LocalTierConfig
from coe.models.inputs import InputDecoder
from edge.agent import HeldBackError
from edge.sinks import Outcome
from edge.sources import Example

if TYPE_CHECKING:
    from .config import FieldConfig


# (bytes as captured or an array, {label name: votes}) -> True or a reason to hold it back, False or None to let it go
PrivacyFilter = Callable[[bytes | Array, Mapping[str, int]], Any]


class SendPolicy:
    """Why an example that the device's members disagree on may not be sent; None where it may.

    An example is of a class that is never sent if any member of any local tier votes for that class: its members
    disagree, so the plurality alone would let through just those in doubt. All members are asked for that.

    Args:
        labels: of the task.
        never_send: labels of the classes.
        privacy_filter: asked last. One that raises holds the example back.
    """

    def __init__(
        self, labels: tuple[str, ...], never_send: frozenset[int], privacy_filter: PrivacyFilter | None = None
    ) -> None:
        self.labels = labels
        self.never_send = never_send
        self.privacy_filter = privacy_filter

    def __call__(self, example: Example, run: Run) -> str | None:
        votes = Counter(label for number in range(run.number) for label in _ballots(run, number))
        for label in sorted(self.never_send):
            if votes[label]:
                return f'class "{self.labels[label]}" is never sent'
        if self.privacy_filter is None or example.value is None:
            return None
        try:
            told = self.privacy_filter(example.value, {self.labels[label]: n for label, n in votes.items()})
        except Exception as error:  # noqa: BLE001 - whatever a user's code raises must not send the example
            return f"its privacy_filter failed: {type(error).__name__}: {error}"
        if not told:
            return None
        return told if isinstance(told, str) else "its privacy_filter holds it back"

    def may_be_shared(self, outcome: Outcome) -> bool:
        """Whether nothing can say that its example may not leave: it was let go, or all members of the first tier, all
        asked, gave it one label that may be sent, and there is no privacy_filter, which was not asked.
        """
        decision = outcome.decision
        if decision is not None and decision.label in self.never_send:
            return False
        if outcome.deferred or outcome.corrects:
            return outcome.reason != HeldBackError.reason
        if decision is None or self.privacy_filter is not None:
            return False
        return decision.exit_tier == 1 and decision.vote == 1 and decision.asked == decision.n_members


def send_policy_check(
    hold_back: SendPolicy, cascade: Cascade, decoder: InputDecoder
) -> Callable[[Example], str | None]:
    """The same question about an example that the device has decided by itself, and that may be sent all the same."""

    def held_back(example: Example) -> str | None:
        assert example.value is not None
        run = cascade.start(decoder.batch([example.id], [example.value]))
        while not run.is_done and not run.next_tier.waits:
            run.step()
        return hold_back(example, run)

    return held_back


def _ballots(run: Run, number: int) -> list[int]:
    """What each member of a tier that was visited votes for."""
    vote, tier = run.visits[number].vote, run.cascade.tiers[number]
    if len(vote.probabilities) < vote.n_members:  # the vote was settled without some of them
        vote = tier.vote(run.batch, Always(asks_all=True))
    return [int(np.argmax(output[0])) for output in vote.probabilities]


def load_privacy_filter(reference: str, folder: Path) -> PrivacyFilter:
    """The function at "module:function" or "file.py:function".

    Args:
        folder: where a file's path starts.
    Raises:
        ConfigError: there is none.
    """
    place, _, name = reference.rpartition(":")
    if not place or not name.isidentifier():
        raise ConfigError([f'expected "module:function" or "file.py:function", got "{reference}"'])
    try:
        module = (
            _from_file(folder / Path(place).expanduser()) if place.endswith(".py") else importlib.import_module(place)
        )
        privacy_filter = getattr(module, name)
    except Exception as error:  # noqa: BLE001 - importing runs the user's code
        raise ConfigError([f'"{reference}" cannot be loaded: {type(error).__name__}: {error}']) from None
    if not callable(privacy_filter):
        raise ConfigError([f'expected a function, got "{reference}" which is {type(privacy_filter).__name__}'])
    found: PrivacyFilter = privacy_filter
    return found


def privacy_filter_digest(reference: str, folder: Path) -> str:
    """A hash of the file that a privacy_filter is read from; "" where it has none."""
    place, _, _ = reference.rpartition(":")
    if place.endswith(".py"):
        path = folder / Path(place).expanduser()
    else:
        path = Path(getattr(sys.modules.get(place), "__file__", None) or "")
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _from_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"coe_edge_hook_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def describe_send_policy(field: FieldConfig, cascade: CascadeConfig) -> str:
    """ "" where all examples may leave. Depends on the classes, the filter's code and the models."""
    if not field.never_send and not field.privacy_filter:
        return ""
    names = sorted(cascade.task.labels[label] for label in field.never_send)
    models = hashlib.sha256()
    for tier in cascade.tiers:
        if isinstance(tier, LocalTierConfig):
            for spec in tier.members:
                with spec.path.open("rb") as file:
                    models.update(hashlib.file_digest(file, "sha256").digest())
    privacy_filter = (
        f"{field.privacy_filter} {privacy_filter_digest(field.privacy_filter, field.folder)}"
        if field.privacy_filter
        else ""
    )
    return f"never_send {names}; privacy_filter {privacy_filter}; models {models.hexdigest()}"


def open_send_policy(config: FieldConfig, labels: tuple[str, ...]) -> SendPolicy | None:
    """What holds examples back; None: all may leave.

    Raises:
        ConfigError: the privacy_filter cannot be loaded.
    """
    if not config.never_send and not config.privacy_filter:
        return None
    privacy_filter = load_privacy_filter(config.privacy_filter, config.folder) if config.privacy_filter else None
    return SendPolicy(labels, config.never_send, privacy_filter)
