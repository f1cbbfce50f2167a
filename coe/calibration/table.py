"""The fitted table of a cascade as a file: who votes in which tier, each stage's numbers, and what was promised."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coe.cascade import ConfigError

from .vote import StageVote

VERSION = 1
RULES = ("calibrated", "agreement", "confidence", "single")
MADE_BY = "make it again: coe-sim plan, or cascade.calibrate(x, y)"


@dataclass(frozen=True, slots=True)
class TableMember:
    """A member as the table knows it; `sha256` of its file, None where it has none."""

    name: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Bound:
    """With probability 1 - delta over the calibration draw: accuracy(cascade) >= accuracy(reference) - epsilon.

    Args:
        holds: whether the test passed.
        lower_bound: of accuracy(cascade) - accuracy(reference), with the same probability.
        n: examples it was tested on, that nothing was chosen or fitted on.
        labels_needed: calibration examples with which it would pass four times in five; None: none would.
    """

    epsilon: float
    delta: float
    holds: bool
    lower_bound: float
    n: int
    labels_needed: int | None = None


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a calibration chose, and for which cascade.

    Args:
        rule: "calibrated", or the plainer rule that was chosen instead.
        task, labels, fingerprint: of the task, as `coe.config` has them; no fingerprint: not known.
        tiers: members, in the order in which they vote.
        stages: one a tier, where the rule is "calibrated".
        thresholds: one a tier but the last: the p, the votes needed ("2/3"), or the score at which it answers.
        n: labelled examples used, in all.
        date: ISO 8601.
        reference: the single model it was compared with.
        bound: None: nothing was tested.
    """

    rule: str
    task: str
    labels: tuple[str, ...]
    fingerprint: str | None
    tiers: tuple[tuple[TableMember, ...], ...]
    stages: tuple[StageVote, ...]
    thresholds: tuple[str | float, ...]
    n: int
    date: str
    reference: str
    bound: Bound | None = None

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """The table in a file.

        Raises:
            ConfigError: it cannot be read, or names the field that is wrong, its value and the fix.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError([f"cannot be read: {error.strerror}"], str(path)) from None
        except ValueError as error:
            raise ConfigError([f"expected JSON: {error} ({MADE_BY})"], str(path)) from None
        return cls.from_dict(content, str(path))

    @classmethod
    def from_dict(cls, content: Any, source: str = "calibration") -> Calibration:
        """The table that `to_dict` gave. Raises ConfigError as `read` does."""
        if not isinstance(content, dict) or content.get("version") != VERSION:
            found = content.get("version") if isinstance(content, dict) else content
            raise ConfigError([f"version: expected {VERSION}, got {found!r} ({MADE_BY})"], source)
        try:
            return _table(content)
        except KeyError as error:
            raise ConfigError([f"{error.args[0]}: expected this field, got none ({MADE_BY})"], source) from None
        except (TypeError, ValueError, AttributeError) as error:
            raise ConfigError([f"{error} ({MADE_BY})"], source) from None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; `from_dict` gives the same table, to the last bit."""
        tiers: list[dict[str, Any]] = [{"members": [asdict(member) for member in tier]} for tier in self.tiers]
        for tier, stage in zip(tiers, self.stages, strict=False):
            tier["stage"] = {name: getattr(stage, name) for name in STAGE}
        return {
            "version": VERSION,
            "rule": self.rule,
            "task": {"name": self.task, "labels": self.labels, "fingerprint": self.fingerprint},
            "tiers": tiers,
            "thresholds": self.thresholds,
            "n": self.n,
            "date": self.date,
            "reference": self.reference,
            "bound": None if self.bound is None else asdict(self.bound),
        }

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")

    def check(
        self,
        labels: Sequence[str],
        tiers: Sequence[Sequence[TableMember]],
        fingerprint: str | None = None,
        source: str = "calibration",
    ) -> None:
        """Raises ConfigError unless a cascade of these labels and members is the one that was calibrated.

        Args:
            tiers: members of each tier in their order; one whose `sha256` is None is not compared by it. An empty tier
                is not known here (it is on another machine) and not compared.
        """
        findings = []
        if tuple(labels) != self.labels:
            findings.append(f"task.labels: {_difference('label', self.labels, labels)}")
        elif None not in (fingerprint, self.fingerprint) and fingerprint != self.fingerprint:
            findings.append(f"task.fingerprint: expected {self.fingerprint}, got {fingerprint} (another input)")
        if len(tiers) != len(self.tiers):
            findings.append(f"tiers: expected {len(self.tiers)} as calibrated, got {len(tiers)}")
        for place, (known, given) in enumerate(zip(self.tiers, tiers, strict=False)):
            if not given:
                continue
            wanted, got = [member.name for member in known], [member.name for member in given]
            if wanted != got:
                findings.append(f"tiers[{place}].members: {_difference('member', wanted, got)}")
                continue
            for member, own in zip(known, given, strict=True):
                if None not in (member.sha256, own.sha256) and member.sha256 != own.sha256:
                    findings.append(
                        f"tiers[{place}].members: {member.name}: expected the file with sha256 {member.sha256}, "
                        f"got {own.sha256} (another model)"
                    )
        if findings:
            raise ConfigError([f"{finding}; {MADE_BY}" for finding in findings], source)


STAGE = ("b", "a", "c", "g", "d", "grids", "n_labels", "threshold", "gate_threshold")


def _table(content: dict[str, Any]) -> Calibration:
    task, tiers = content["task"], content["tiers"]
    if content["rule"] not in RULES:
        raise ValueError(f'rule: expected {" or ".join(RULES)}, got "{content["rule"]}"')
    if not isinstance(tiers, list) or not tiers:
        raise ValueError(f"tiers: expected a list of tiers, got {tiers!r}")
    members = tuple(tuple(TableMember(one["name"], one["sha256"]) for one in tier["members"]) for tier in tiers)
    labels = tuple(map(str, task["labels"]))
    stages: list[StageVote] = []
    for place, tier in enumerate(tiers if content["rule"] == "calibrated" else []):
        asked = sum(map(len, members[: place + 1]))
        try:
            stage = _stage(tier["stage"])
        except ValueError as error:
            raise ValueError(f"tiers[{place}].stage.{error}") from None
        if stage.n_members != asked or stage.n_labels != len(labels):
            raise ValueError(
                f"tiers[{place}].stage: expected numbers of {asked} members and {len(labels)} labels, got "
                f"{stage.n_members} and {stage.n_labels}"
            )
        if (stage.threshold is None) != (place == len(tiers) - 1):
            raise ValueError(f"tiers[{place}].stage.threshold: expected a number in all tiers but the last, got others")
        stages.append(stage)
    bound = None if content["bound"] is None else Bound(**content["bound"])
    return Calibration(
        content["rule"], task["name"], labels, task["fingerprint"], members, tuple(stages),
        tuple(content["thresholds"]), content["n"], content["date"], content["reference"], bound,
    )  # fmt: skip


def _stage(content: dict[str, Any]) -> StageVote:
    own: dict[str, Any] = {name: content[name] for name in STAGE if name != "gate_threshold"}
    own["gate_threshold"] = content.get("gate_threshold")
    own["grids"] = tuple(tuple(map(float, grid)) for grid in own["grids"])
    for name in ("b", "a", "c", "d"):
        own[name] = tuple(map(float, own[name]))
    return StageVote(**own)


def _difference(what: str, wanted: Sequence[str], got: Sequence[str]) -> str:
    """The first of `got` that is not as calibrated, in words."""
    if sorted(wanted) == sorted(got):
        return f"expected the order {', '.join(wanted[:9])}, got {', '.join(got[:9])}"
    other = next((one for one in got if one not in wanted), None)
    if other is not None:
        near = difflib.get_close_matches(other, wanted, 1)
        hint = f", such as {near[0]}" if near else ""
        return f'expected the {what}s of the calibration{hint}, got "{other}"'
    return f"expected {len(wanted)} {what}s as calibrated, got {len(got)}"
