"""The Python interface: a cascade of one's own models, in one object.

Everything here builds what `coe-edge` and `coe-cloud` run (`coe.cascade`): the same rule, the same members, the same
checks with the same messages as in a config.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from coe import zoo
from coe.calibration import Calibration, TableMember, rules_of
from coe.cascade.cascade import Cascade as TierCascade
from coe.cascade.cascade import Decisions as TierDecisions
from coe.cascade.errors import ConfigError, InputError
from coe.cascade.rule import Agreement, Always, Confidence, DeferralRule, parse_agreement
from coe.cascade.tier import LocalTier, Tier
from coe.cascade.tier import Member as TierMember
from coe.cascade.types import Batch, Labels
from coe.config import Fields, Report, read_yaml
from coe.config.manifest import Task, read_task
from coe.examples import Image, Input, Tensor, Text, as_values
from coe.models.inputs import InputDecoder
from coe.models.pool import MemberPool
from coe.models.python import PythonMember

Member: TypeAlias = Any
"""A model of an ensemble: a path of an ONNX, TFLite or pinned torch file ("zoo:digits/stroke.onnx" too); a mapping as
in a config (`{"file": "m.pt2", "sha256": "..", "output": "logits"}`); an object with `predict_proba` (scikit-learn's);
or a callable x -> (B, L) probabilities."""


@dataclass(frozen=True)
class Ensemble:
    """A tier of members in this process.

    Args:
        members: at least one; `Member` says what one may be.
        agreement: of members' votes that makes the tier answer: "unanimous", "majority", "2/3", "2 of 3", a decimal, or
            `coe.Agreement`. None: the cascade's own.
        confidence: in place of agreement: answer where the highest mean probability is at least this.
        rule: in place of both: a deferral rule of one's own, which fits `coe.cascade.DeferralRule`.
        name: for errors and reports; None: "tier N".
        parallel: members run side by side, on threads of their own.
        early: stop asking members when the outcome is settled; label and decision are as if all had been asked.
        threads: of the whole tier, runtimes' included; None: one, or one a member where `parallel`.
        providers: ONNX Runtime execution providers by preference, such as ("cuda", "cpu").
        device: torch device.
    """

    members: Sequence[Member]
    agreement: str | float | Agreement | None = None
    confidence: float | Confidence | None = None
    rule: DeferralRule | None = None
    name: str | None = None
    parallel: bool = False
    early: bool = True
    threads: int | None = None
    providers: Sequence[str] = ("cpu",)
    device: str = "cpu"

    def as_config(self, name: str) -> dict[str, Any]:
        """The members that are files, as a tier of a config; its rule is not used."""
        members = [str(one) if isinstance(one, Path) else one for one in self.members if _is_file(one)]
        own = {"name": self.name or name, "members": members, "confidence": 0.0, "threads": self.threads}
        more = {"parallel": self.parallel, "early": self.early, "device": self.device}
        return {**own, **more, "providers": list(self.providers)}


@dataclass(frozen=True)
class Remote:
    """A tier on other machines: `coe-cloud`, or any server of the Open Inference Protocol v2 over gRPC.

    Args:
        address: "host:port", or several.
        model: the name the server gives the tier or the cascade.
        agreement, confidence: where it is not the last tier, as of `Ensemble`.
        deadline_s: of one call.
        send: the form in which an example is sent: "captured", "pixels", "model-size", "png", "jpeg", {"jpeg": 85}.
        tls: True, or a mapping with `ca`, `certificate`, `key`, `server_name`.
        token_file: a file with a bearer token.
        settings: anything else a remote tier takes in a config, by its key there.
    """

    address: str | Sequence[str]
    model: str
    agreement: str | float | None = None
    confidence: float | None = None
    name: str | None = None
    deadline_s: float = 2.0
    send: str | Mapping[str, int] = "captured"
    tls: bool | Mapping[str, Any] = False
    token_file: str | Path | None = None
    settings: Mapping[str, Any] | None = None

    def as_config(self, name: str) -> dict[str, Any]:
        """The same as a tier of a config."""
        own: dict[str, Any] = {
            "name": self.name or name,
            "address": self.address if isinstance(self.address, str) else list(self.address),
            "model": self.model,
            "agreement": self.agreement,
            "confidence": self.confidence,
            "deadline_ms": self.deadline_s * 1000,
            "send": self.send,
            "tls": self.tls,
            "token_file": None if self.token_file is None else str(self.token_file),
        }
        return {key: value for key, value in own.items() if value is not None} | dict(self.settings or {})


@dataclass(frozen=True, slots=True)
class Decision:
    """One example's answer.

    `label` is the position of `name` among the cascade's labels; `exit_tier` counts from 1; `vote` is the share of the
    members asked that voted for the label, `score` the mean probability they give it (NaN where not known);
    `degraded`: None, or why this is not the answer of the tier that should have given it.
    """

    id: str
    label: int
    name: str
    exit_tier: int
    vote: float
    score: float
    degraded: str | None = None


class Decisions(Sequence[Decision]):
    """The answers to B examples, in the caller's order: `d[0]` is one, `d.names` a column, `d.to_dicts()` a table."""

    def __init__(self, decisions: TierDecisions, label_names: tuple[str, ...]) -> None:
        self._decisions = decisions
        self._label_names = label_names
        self.labels: Labels = decisions.labels
        self.exit_tier: Labels = decisions.exit_tier
        self.vote: NDArray[np.float32] = decisions.vote
        self.score: NDArray[np.float32] = decisions.score
        self.degraded: list[str | None] = decisions.reasons()

    @property
    def ids(self) -> list[str]:
        """B names, the caller's own, or numbers from 0."""
        return list(self._decisions.batch.ids)

    @property
    def names(self) -> list[str]:
        """B label names."""
        return [self._label_names[label] for label in self.labels.tolist()]

    @property
    def asked(self) -> Labels:
        """(B,) int64: members asked by the tier that answered."""
        return self._decisions.asked

    @property
    def tier_votes(self) -> NDArray[np.float32]:
        """(B, T) float32: each tier's vote, NaN where it was not visited."""
        return self._decisions.tier_votes

    def exit_shares(self) -> NDArray[np.float64]:
        """(T,) share of the examples that left at each tier, up to the furthest that one reached."""
        return self._decisions.exit_shares(int(self.exit_tier.max(initial=1)))

    def to_dicts(self) -> list[dict[str, Any]]:
        """A dictionary an example: for JSON, or `pandas.DataFrame(d.to_dicts())`."""
        columns = Decision.__slots__
        return [{column: getattr(decision, column) for column in columns} for decision in self]

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Decision]:
        return (self._at(row) for row in range(len(self)))

    def __getitem__(self, row: Any) -> Any:
        """One decision by its position, or a list of them by a slice."""
        if isinstance(row, slice):
            return [self._at(one) for one in range(*row.indices(len(self)))]
        at = int(row)
        if not -len(self) <= at < len(self):
            raise IndexError(f"expected a position below {len(self)}, got {at}")
        return self._at(at % len(self))

    def _at(self, row: int) -> Decision:
        return Decision(
            self._decisions.batch.ids[row],
            int(self.labels[row]),
            self._label_names[int(self.labels[row])],
            int(self.exit_tier[row]),
            float(self.vote[row]),
            float(self.score[row]),
            self.degraded[row],
        )

    def __repr__(self) -> str:
        """A table of the first ten, and where all of them left."""
        shown = self[:10]
        rows = [("id", "label", "exit tier", "vote", "score", "degraded" if any(one.degraded for one in shown) else "")]
        for one in shown:
            share = "" if math.isnan(one.score) else f"{one.score:.3f}"
            rows.append((one.id, one.name, str(one.exit_tier), f"{one.vote:.2f}", share, one.degraded or ""))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        if len(self) > 10:
            lines.append(f".. and {len(self) - 10:,} more")
        exits = ", ".join(f"tier {number}: {share:.1%}" for number, share in enumerate(self.exit_shares(), start=1))
        return "\n".join([*lines, f"{len(self):,} examples; left at {exits}"] if len(self) else ["no examples"])


class Cascade:
    """Tiers of models from the cheapest to the one that always answers; each sees only what the one before deferred.

    Args:
        tiers: a list of members is an ensemble, a single member a tier of one; or `Ensemble`, `Remote`. All but the
            last need several members, or a `confidence`.
        labels: names, in the order of the members' outputs.
        input: what an example is: `Image`, `Tensor` or `Text`; None: rows of numbers, as many as a scikit-learn member
            says it was fitted on.
        agreement: of the ensembles that state none of their own.
        task: its name, for servers of this cascade's remote tiers.
        calibration: a fitted table (`coe-sim plan` writes one), or its file; its rules stand in place of every tier's
            own. Members, their order and the labels must be those that were calibrated.
        when_unavailable: "answer-local": where a tier gives no answer the one before it has the last word, and
            `degraded` says why; "fail": the `TierError` is raised.

    Raises:
        ConfigError: every argument that is wrong, at once.
        ModelError: a member's file is missing, changed, or not of that input or number of labels.
        RuntimeMissing: a member's runtime is not installed; the message names the pip install.

    Paper: Algorithm 1.
    """

    def __init__(
        self,
        tiers: Sequence[Member | Sequence[Member] | Ensemble | Remote],
        *,
        labels: Sequence[str],
        input: Input | None = None,
        agreement: str | float | Agreement = "unanimous",
        task: str = "task",
        calibration: str | Path | Calibration | None = None,
        when_unavailable: str = "answer-local",
    ) -> None:
        stated: list[Ensemble | Remote] = []
        for tier in _listed(tiers, "tiers", "a list of tiers"):
            members = tier if isinstance(tier, list | tuple) else [tier]
            stated.append(tier if isinstance(tier, Remote | Ensemble) else Ensemble(list(members)))
        settings: dict[str, Any] = {
            "task": task,
            "labels": [str(label) for label in _listed(labels, "labels", "a list of label names")],
            "input": _input_settings(input, stated),
        }
        if isinstance(calibration, str | Path):
            calibration = Calibration.read(Path(calibration).expanduser())
        known, opened = _open_tiers(stated, settings, agreement, when_unavailable, calibration)
        self._start(known, TierCascade(opened, keep_last_answer=when_unavailable != "fail"))

    def _start(self, task: Task, cascade: TierCascade) -> None:
        self._task = task
        self._decoder = InputDecoder(task.input_spec)
        self._cascade = cascade

    @property
    def labels(self) -> tuple[str, ...]:
        """Names, in the order of the labels."""
        return self._task.labels

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """The tiers as `coe.cascade` runs them."""
        return self._cascade.tiers

    def predict(self, x: Any) -> list[str]:
        """B label names, in order.

        Args:
            x: as of `decide`.
        """
        return self.decide(x).names

    def decide(self, x: Any, *, ids: Sequence[str] | None = None, deadline_s: float = math.inf) -> Decisions:
        """Every example's answer, and how it came about.

        Args:
            x: B examples, or one. An array: (B, *S) or S, S as of the input; images: uint8 pixels (B, H, W, C) of any
                size. A list: of arrays, rows of numbers, paths, encoded bytes, PIL images; of texts: strings.
            ids: B names, for errors and records; None: numbers from 0.
            deadline_s: seconds until the answers are wanted; a remote tier that would take longer is given up.

        Raises:
            InputError: names the first example that cannot be read, what was expected and what came.
            TierError: a tier gave no answer, and none before it had (or `when_unavailable` is "fail").
        """
        values = as_values(x, self._task.input_spec)
        names = [str(number) for number in range(len(values))] if ids is None else [str(one) for one in ids]
        if len(names) != len(values):
            raise InputError(f"ids: expected {len(values)}, one an example, got {len(names)}")
        if not len(values):
            return Decisions(self._cascade.decide(Batch((), np.empty(0, dtype=object))), self.labels)
        deadline = math.inf if math.isinf(deadline_s) else time.monotonic() + deadline_s
        batch = self._decoder.batch(names, values, deadline)
        return Decisions(self._cascade.decide(batch), self.labels)

    def calibrate(
        self,
        x: Any,
        y: Sequence[str | int],
        *,
        costs: Sequence[Sequence[float]] | None = None,
        max_cost: float = 0.95,
        epsilon: float = 0.01,
        delta: float = 0.1,
        certified: bool = False,
        seed: int = 0,
    ) -> Calibration:
        """Decide by labelled examples from now on: by the rule and thresholds that are most accurate within a budget.

        The rule is plain agreement, confidence, or the calibrated vote, which weighs who says what and how sure. Half
        of the examples choose; the other half certifies: `bound.holds` of what comes back says whether the cascade is
        at least as accurate as the best single member, less `epsilon`, with confidence 1 - `delta`.

        Args:
            x: B examples, as of `decide`, that no member was trained on; 3,000 show one point as a rule.
            y: (B,) label names, or positions among the labels.
            costs: of each member of each tier on one example; None: the seconds they take here.
            max_cost: average cost at most, against the best single member's, members asked one after another.
            certified: the cheapest thresholds that are certified, in place of the most accurate.

        Raises:
            ConfigError: a label that is none, too few of them, or nothing that is within the budget or certified.
        """
        from coe.calibration.tiers import calibrate

        values = as_values(x, self._task.input_spec)
        if len(values) != len(y):
            raise InputError(f"y: expected {len(values)}, one an example, got {len(y)}")
        places = {label: place for place, label in enumerate(self.labels)} | {n: n for n in range(len(self.labels))}
        wrong = [label for label in y if label not in places]
        if wrong:
            raise ConfigError([f"y: expected labels of the cascade, got {wrong[0]!r}"], "coe.Cascade.calibrate")
        batch = self._decoder.batch([str(number) for number in range(len(values))], values, math.inf)
        truth = np.array([places[label] for label in y], dtype=np.int64)
        empty = Calibration("single", self._task.name, self.labels, self._task.fingerprint, (), (), (), 0, "", "")
        self._cascade, table = calibrate(
            self._cascade, batch, truth, empty, costs=costs, max_cost=max_cost, epsilon=epsilon, delta=delta,
            certified=certified, seed=seed,
        )  # fmt: skip
        return table

    def close(self) -> None:
        """Let the members and connections go. Twice is fine."""
        self._cascade.close()

    def __enter__(self) -> Cascade:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        tiers = ", ".join(
            f"{tier.name} ({len(tier.members)})" if isinstance(tier, LocalTier) else tier.name for tier in self.tiers
        )
        return f"<coe.Cascade of {len(self.labels)} labels: {tiers}>"


def load(reference: str | Path) -> Cascade:
    """The cascade of a config file, as `coe-edge` or `coe-cloud` runs it, or of a bundled task, "zoo:digits".

    A bundled task's tiers all run in this process: those of its device, then those of its server.

    Raises:
        ConfigError: every setting that is wrong, at once; or no such task.
        ModelError, RuntimeMissing: a member cannot be loaded.
    """
    from coe.config.cascade import CascadeConfig, read_cascade
    from coe.config.open import open_cascade

    def read(path: Path) -> tuple[Mapping[str, Any], CascadeConfig]:
        content, report = read_yaml(path), Report(str(path))
        is_server = "source" not in content
        known = ("answer-local", "fail") if is_server else ("answer-local", "fail", "spool")
        config = read_cascade(Fields(content, report), path.parent, parallel=is_server, fallbacks=known)
        report.check()
        return content, config

    name = str(reference)
    if name.startswith("zoo:"):
        _, device = read(zoo.find(f"{name.removeprefix('zoo:')}/edge.yaml"))
        served, cloud = read(zoo.find(f"{name.removeprefix('zoo:')}/cloud.yaml"))
        asked, model = device.remote_tiers[0].model, served.get("model", cloud.task.name)
        behind = [tier for tier in cloud.tiers if asked in (model, f"{model}-{tier.name}")]
        config = replace(device, tiers=(*device.local_tiers, *behind))
    else:
        _, config = read(Path(name).expanduser())
    cascade = Cascade.__new__(Cascade)
    cascade._start(config.task, open_cascade(config))
    return cascade


def _listed(value: Any, name: str, expected: str) -> list[Any]:
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__"):
        raise ConfigError([f"{name}: expected {expected}, got {value!r}"], "coe.Cascade")
    found = list(value)
    if not found:
        raise ConfigError([f"{name}: expected {expected}, got an empty one"], "coe.Cascade")
    return found


def _input_settings(given: Input | None, tiers: Sequence[Ensemble | Remote]) -> Mapping[str, Any]:
    """`input:` as a config has it."""
    expected = "input: expected coe.Image(96, 96), coe.Tensor(4) or coe.Text()"
    if given is not None:
        if not isinstance(given, Image | Tensor | Text):
            raise ConfigError([f"{expected}, got {given!r}"], "coe.Cascade")
        return given.settings()
    members = [member for tier in tiers if isinstance(tier, Ensemble) for member in tier.members]
    widths = {int(member.n_features_in_) for member in members if hasattr(member, "n_features_in_")}
    if len(widths) != 1:
        got = "nothing" if not widths else f"nothing, and members that were fitted on {sorted(widths)} columns"
        raise ConfigError([f"{expected}, got {got} (say what an example is)"], "coe.Cascade")
    return Tensor(widths.pop(), dtype="float64").settings()


def _is_file(member: Any) -> bool:
    return isinstance(member, str | Path | Mapping)


def _open_tiers(
    stated: Sequence[Ensemble | Remote],
    settings: Mapping[str, Any],
    agreement: Any,
    when_unavailable: str,
    table: Calibration | None,
) -> tuple[Task, list[Tier]]:
    """Every tier, opened. What is a file or a remote tier goes through the reader of configs."""
    from coe.config.cascade import LocalTierConfig, read_cascade
    from coe.config.open import open_tier

    report = Report("coe.Cascade")
    task = read_task(Fields(settings, report))
    configs: dict[int, dict[str, Any]] = {}  # by the tier's position among all
    rules: list[DeferralRule] = []
    for place, tier in enumerate(stated):
        if isinstance(tier, Remote) or any(map(_is_file, tier.members)):
            configs[place] = tier.as_config(f"tier {place + 1}")
        rule: DeferralRule = Always()  # a remote tier's own is read with it
        if isinstance(tier, Ensemble) and table is None:
            rule = _rule_of(tier, agreement, place == len(stated) - 1, f"tiers[{place}]", report)
        rules.append(rule)
    report.check()
    if configs:
        whole = {**settings, "tiers": list(configs.values()), "when_unavailable": when_unavailable}
        config = read_cascade(Fields(whole, report), Path.cwd())
        for at, place in reversed(list(enumerate(configs))):  # findings count only the tiers that were read
            report.findings = [line.replace(f"tiers[{at}]", f"tiers[{place}]", 1) for line in report.findings]
        report.check()
    opened: list[Tier] = []
    with ExitStack() as stack:
        for place, (tier, rule) in enumerate(zip(stated, rules, strict=True)):
            files: Sequence[TierMember] = ()
            if place in configs:
                read = config.tiers[list(configs).index(place)]
                if isinstance(read, LocalTierConfig):  # its members, to be put between those that are objects
                    read = replace(read, parallel=False, early=False)
                from_config = open_tier(read, config)
                stack.callback(from_config.close)
                files = from_config.members if isinstance(from_config, LocalTier) else ()
            if isinstance(tier, Ensemble):
                opened.append(_open_ensemble(tier, f"tier {place + 1}", rule, task, files))
            else:
                opened.append(from_config)
        if table is not None:
            _take_rules(opened, table, task)
        stack.pop_all()
    return task, opened


def _take_rules(tiers: Sequence[Tier], table: Calibration, task: Task) -> None:
    """Give the tiers the table's rules. Raises ConfigError where they are not those that were calibrated."""
    members: list[list[TableMember]] = []
    for tier in tiers:
        if isinstance(tier, LocalTier):
            own = [TableMember(member.name, getattr(member, "sha256", None)) for member in tier.members]
        members += [own] if isinstance(tier, LocalTier) else [[]] * tier.n_tiers
    table.check(task.labels, members, task.fingerprint, "coe.Cascade: calibration")
    for tier, rule in zip(tiers, rules_of(table, [tier.n_tiers for tier in tiers]), strict=True):
        tier.rule = rule


def _rule_of(tier: Ensemble, agreement: Any, is_last: bool, trail: str, report: Report) -> DeferralRule:
    """An ensemble's deferral rule; findings go into the report."""
    n_members = len(tier.members)
    if not n_members:
        report.findings.append(f"{trail}: expected at least one member, got none")
    if tier.rule is not None:
        return tier.rule
    if tier.confidence is not None:
        return tier.confidence if isinstance(tier.confidence, Confidence) else Confidence(float(tier.confidence))
    if is_last:
        return Always()
    if n_members == 1:
        message = "one member always agrees with itself, so this tier would never defer"
        report.findings.append(f"{trail}: {message} (add members, or write coe.Ensemble([...], confidence=0.9))")
    value = agreement if tier.agreement is None else tier.agreement
    if isinstance(value, Agreement):
        return value
    try:
        rule, warning = parse_agreement(value, n_members)
    except ValueError as error:
        report.findings.append(f"{trail}.agreement: {error}")
        return Always()
    if warning:
        warnings.warn(f"{trail}.agreement: {warning}", stacklevel=5)
    return rule


def _open_ensemble(tier: Ensemble, name: str, rule: DeferralRule, task: Task, files: Sequence[TierMember]) -> LocalTier:
    """A tier of members in the order given: `files` stand where their paths do, objects and callables as they are."""
    name, left = tier.name or name, iter(files)
    members = [
        next(left)
        if _is_file(member)
        else PythonMember(member, f"{name}, member {position}", task.labels, task.input_spec)
        for position, member in enumerate(tier.members)
    ]
    pool = MemberPool.of(name, members, tier.threads) if tier.parallel else None
    return LocalTier(name, members, rule, early=tier.early, pool=pool)
