"""Which examples may not leave the device: those of labels that are never sent, or that a privacy filter holds back."""

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
from coe.cascade.types import NO_LABEL, Array
from coe.config.cascade import CascadeConfig
from coe.models.inputs import InputDecoder
from edge.agent import HeldBackError
from edge.sinks import Outcome
from edge.sources import Example

if TYPE_CHECKING:
    from .config import FieldConfig


# (bytes as captured or an array, {label name: votes}) -> True or a reason to hold it back, False or None to let it go
PrivacyFilter = Callable[[bytes | Array, Mapping[str, int]], Any]


class SendPolicy:
    """Called with an example that would be sent: why it may not leave the device; None if it may.

    An example counts as one of a label that is never sent if any member of any local tier votes for that label: the
    members disagree, so the plurality alone would let the doubtful ones pass. All members vote for that.

    Args:
        privacy_filter: called last. If it raises, the example is held back.
    """

    def __init__(
        self, labels: tuple[str, ...], never_send: frozenset[int], privacy_filter: PrivacyFilter | None = None
    ) -> None:
        self.labels = labels
        self.never_send = never_send
        self.privacy_filter = privacy_filter

    def __call__(self, example: Example, run: Run) -> str | None:
        votes = Counter(label for number in range(len(run.visits)) for label in _votes_of(run, number))
        for label in sorted(self.never_send):
            if votes[label]:
                return f'class "{self.labels[label]}" is never sent'
            if votes[NO_LABEL]:
                return f'class "{self.labels[label]}" is never sent, and a member that failed did not say what this is'
        del votes[NO_LABEL]
        if self.privacy_filter is None or example.value is None:
            return None
        try:
            reason = self.privacy_filter(example.value, {self.labels[label]: n for label, n in votes.items()})
        except Exception as error:  # noqa: BLE001 - whatever a user's code raises must not send the example
            return f"its privacy filter failed: {type(error).__name__}: {error}"
        if not reason:
            return None
        return reason if isinstance(reason, str) else "its privacy filter holds it back"

    def may_be_shared(self, outcome: Outcome) -> bool:
        """True if the example may be shown or stored: it was sent; or all members of the first tier voted, all for one
        label that may be sent, and there is no privacy filter (which is not called for an example that stays).
        """
        decision = outcome.decision
        if decision is not None and decision.label in self.never_send:
            return False
        if outcome.deferred or outcome.corrects:
            return outcome.reason != HeldBackError.reason
        if decision is None or self.privacy_filter is not None:
            return False
        return decision.exit_tier == 1 and decision.vote == 1 and decision.asked == decision.n_members


def send_policy_check(policy: SendPolicy, cascade: Cascade, decoder: InputDecoder) -> Callable[[Example], str | None]:
    """The policy as a function of the example alone, for one that the device has decided and that is sent anyway."""

    def held_back(example: Example) -> str | None:
        assert example.value is not None
        run = cascade.start(decoder.batch([example.id], [example.value]))
        while not run.is_done and not run.next_tier.waits:
            run.step()
        return policy(example, run)

    return held_back


def _votes_of(run: Run, number: int) -> list[int]:
    """The label of each member of a tier that the run has visited; NO_LABEL where it failed."""
    vote, tier = run.visits[number].vote, run.cascade.tiers[number]
    if len(vote.probabilities) < vote.n_members:  # the vote was settled before all had voted
        vote = tier.vote(run.batch, Always(asks_all=True))
    return [NO_LABEL if np.isnan(output[0]).any() else int(np.argmax(output[0])) for output in vote.probabilities]


def load_privacy_filter(reference: str, folder: Path) -> PrivacyFilter:
    """The function at "module:function" or "file.py:function".

    Args:
        folder: a file's path is relative to it.
    Raises:
        ConfigError: there is no such function, or its module cannot be imported.
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
    """SHA-256 of the file that a privacy filter comes from; "" if there is none."""
    place, _, _ = reference.rpartition(":")
    if place.endswith(".py"):
        path = folder / Path(place).expanduser()
    else:
        path = Path(getattr(sys.modules.get(place), "__file__", None) or "")
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _from_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"coe_edge_privacy_filter_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def describe_send_policy(field: FieldConfig, cascade: CascadeConfig) -> str:
    """A text that changes with the labels, the filter's code and the models; "" if all examples may leave."""
    if not field.holds_back:
        return ""
    names = sorted(cascade.task.labels[label] for label in field.never_send)
    models = hashlib.sha256()
    for spec in (spec for tier in cascade.local_tiers for spec in tier.members):
        with spec.path.open("rb") as file:
            models.update(hashlib.file_digest(file, "sha256").digest())
    reference = field.privacy_filter
    code = f"{reference} {privacy_filter_digest(reference, field.folder)}" if reference else ""
    return f"never_send {names}; privacy_filter {code}; models {models.hexdigest()}"


def open_send_policy(config: FieldConfig, labels: tuple[str, ...]) -> SendPolicy | None:
    """The policy of a config; None: all examples may leave.

    Raises:
        ConfigError: the privacy filter cannot be loaded.
    """
    if not config.holds_back:
        return None
    privacy_filter = load_privacy_filter(config.privacy_filter, config.folder) if config.privacy_filter else None
    return SendPolicy(labels, config.never_send, privacy_filter)
