"""What members answer to labelled examples, and which input settings and which order of labels fit them better."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coe.cascade.errors import CascadeError, ConfigError, InputError
from coe.cascade.types import Batch, Labels
from coe.config.cascade import LocalTierConfig
from coe.config.manifest import Task
from coe.config.open import open_tier
from coe.models.input_spec import InputSpec, stack
from coe.models.inputs import InputDecoder
from coe.models.labelled import LabelledExamples, read_labelled
from coe.models.loading import ModelSpec, load
from edge.tally import answers_warnings

from .findings import CheckContext, Finding, fail, from_error, ok, warn

EXAMPLES = "labelled examples: a folder per label, or with a labels.tsv; a CSV; JSON lines with `label`"
MOST = 500  # examples that are asked about, spread evenly
CHUNK = 32
MOST_OF_SOURCE = 50  # files of the config's own folder, where no examples are named
LEAST_GAIN, LEAST_RIGHT = 0.1, 0.5  # of accuracy, before another order of labels is believed
EACH = 3  # examples a label, before one is looked for
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SCALINGS = {  # what a model sees of a pixel -> scale, mean, std
    "0 to 1": (1 / 255, (0.0,), (1.0,)),
    "0 to 255": (1.0, (0.0,), (1.0,)),
    "-1 to 1": (1 / 127.5, (1.0,), (1.0,)),
    "ImageNet's mean and deviation": (1 / 255, *IMAGENET),
    "ImageNet's mean, 0 to 255": (1.0, (123.68, 116.779, 103.939), (1.0,)),  # as Caffe has it, then in BGR
    "MNIST's mean and deviation": (1 / 255, (0.1307,), (0.3081,)),
}


def forms_of(spec: InputSpec) -> dict[str, InputSpec]:
    """The usual ways to give an image to a model, in words; the spec's own first."""
    found = {in_words(spec): spec}
    if spec.kind != "image":
        return found
    orders = ("RGB", "BGR") if spec.shape[2] == 3 else ("RGB",)
    for scale, mean, std in SCALINGS.values() if spec.dtype != "uint8" else ((spec.scale, spec.mean, spec.std),):
        if len(mean) not in (1, spec.shape[2]) or (spec.shape[2] == 3 and mean == (0.1307,)):
            continue
        for order in orders:
            own = mean[::-1] if order == "BGR" else mean
            one = replace(spec, scale=scale, mean=own, std=std[::-1] if order == "BGR" else std, channel_order=order)
            found.setdefault(in_words(one), one)
    return found


def in_words(spec: InputSpec) -> str:
    """How an image is given, such as "0 to 1 in BGR"."""
    if spec.kind != "image":
        return "as it is"
    order = " in BGR" if spec.channel_order == "BGR" else ""
    if spec.dtype == "uint8":
        return f"pixels as they are{order}"
    for words, (scale, mean, std) in SCALINGS.items():
        usual = (mean[::-1], std[::-1]) if order else (mean, std)
        if math.isclose(spec.scale, scale, rel_tol=1e-3) and usual == (spec.mean, spec.std):
            return words + order
    return f"(pixel * {spec.scale:.4g} - {list(spec.mean)}) / {list(spec.std)}{order}"


@dataclass
class MemberAnswers:
    """What one member answers to N examples in each of F forms.

    Args:
        forms: by their words; the first is the member's own.
        said: of each form, (N,) label numbers; `sure`: (N,) the probabilities of these labels.
    """

    spec: ModelSpec
    forms: dict[str, InputSpec]
    said: list[Labels] = field(default_factory=list)
    sure: list[NDArray[np.float32]] = field(default_factory=list)

    def best(self, truth: Labels) -> tuple[str, InputSpec]:
        """The form that is clearly better than the member's own, else its own.

        Clearly: more examples become right than wrong by two standard deviations, and by three examples. Labels in
        another order count as right, since the order is looked for afterwards.
        """
        words, n_labels = list(self.forms), len(self.spec.labels)
        rights = [_reordered(said, truth, n_labels)[said] == truth for said in self.said]
        chosen = 0
        for at in sorted(range(1, len(words)), key=lambda at: -int(rights[at].sum())):
            gained, lost = int((rights[at] & ~rights[0]).sum()), int((~rights[at] & rights[0]).sum())
            if gained - lost >= max(3.0, 2 * math.sqrt(gained + lost)):
                chosen = at
                break
        return words[chosen], self.forms[words[chosen]]

    def order(self, truth: Labels, form: str) -> tuple[str, ...]:
        """Labels of the outputs in the order that fits far better than the member's own; () where none does."""
        said, names = self.said[list(self.forms).index(form)], self.spec.labels
        to = _reordered(said, truth, len(names))
        now, then = float((said == truth).mean()), float((to[said] == truth).mean())
        if then < LEAST_RIGHT or then - now < LEAST_GAIN or (to == np.arange(len(names))).all():
            return ()
        own = self.spec.own_labels or names
        return tuple(names[to[names.index(name)]] if name in names else name for name in own)


def _reordered(said: Labels, truth: Labels, n_labels: int) -> Labels:
    """(L,) which label each of a member's labels most likely is; each its own, where there are too few examples."""
    same = np.arange(n_labels)
    if len(said) < EACH * n_labels:
        return same
    counts = np.zeros((n_labels, n_labels), dtype=np.int64)  # by what it said, and what was true
    np.add.at(counts, (said, truth), 1)
    to, left = np.full(n_labels, -1), counts.astype(np.float64)
    left += 0.5 * np.eye(n_labels)  # of equals, its own
    for _ in range(n_labels):
        row, column = np.unravel_index(int(left.argmax()), left.shape)
        to[row] = column
        left[row, :] = left[:, column] = -1
    return to


def ask_members(
    specs: Sequence[ModelSpec], examples: LabelledExamples, task: InputSpec, *, tries: bool
) -> tuple[list[MemberAnswers], list[int]]:
    """The members' answers, and the rows of the examples that could be read.

    Args:
        tries: ask in all the usual forms, else in each member's own.
    Raises:
        ModelError, RuntimeMissing: a member cannot be loaded. InputError: no example can be read.
    """
    answers = [MemberAnswers(spec, forms_of(spec.input_spec) if tries else {"": spec.input_spec}) for spec in specs]
    members = []
    pieces: list[list[list[NDArray[np.float32]]]] = [[[] for _ in one.forms] for one in answers]
    rows: list[int] = []
    try:
        members = [load(spec) for spec in specs]
        for at, batch in _chunks(examples, task):
            rows += at
            for member, one, parts in zip(members, answers, pieces, strict=True):
                for form, part in zip(one.forms.values(), parts, strict=True):
                    part.append(member.predict(form.prepare(batch.x)))
    finally:
        for member in members:
            member.close()
    for one, parts in zip(answers, pieces, strict=True):
        for part in parts:
            outputs = np.concatenate(part)
            one.said.append(outputs.argmax(axis=1))
            one.sure.append(outputs.max(axis=1))
    return answers, rows


def _chunks(examples: LabelledExamples, task: InputSpec) -> Iterator[tuple[list[int], Batch]]:
    """Batches of the examples that can be read, each with its rows; raises InputError where none can."""
    decoder, error, n_read = InputDecoder(task), "it is empty", 0
    for start in range(0, len(examples), CHUNK):
        found = {}
        for row in range(start, min(start + CHUNK, len(examples))):
            try:
                found[row] = decoder.batch([examples.ids[row]], [examples.values[row]]).x
            except InputError as failure:
                error = str(failure)
        n_read += len(found)
        if found:
            x = np.concatenate([*found.values()]) if task.kind == "text" else stack([one[0] for one in found.values()])
            yield [*found], Batch(tuple(examples.ids[row] for row in found), x)
    if not n_read:
        raise InputError(f"expected examples that the task takes, got none: {error}")


def read_spread(place: Path, spec: InputSpec, most: int = MOST, columns: Sequence[str] = ()) -> LabelledExamples:
    """At most so many of the examples at a place, spread evenly over all of them; raises ConfigError."""
    found = read_labelled(place, spec, columns=columns)
    at = np.linspace(0, len(found) - 1, min(most, len(found))).astype(int).tolist()
    ids, values, written = ([column[row] for row in at] for column in (found.ids, found.values, found.written))
    return LabelledExamples(ids, values, written, found.place)


def truth_of(examples: LabelledExamples, task: Task) -> Labels | None:
    """(N,) numbers of the labels; None where the examples have none. Raises ConfigError."""
    return None if all(label is None for label in examples.written) else examples.numbers(task.labels)


def check_examples(context: CheckContext) -> Iterator[Finding]:
    """Accuracy of each member and each tier on labelled examples; without labels, answers that look wrong."""
    task = context.the_config.cascade.task
    place, most = context.examples, MOST
    if place is None:  # the files in the folder of the source tell something, too
        folders = [part.path for part in context.the_config.source.each if part.kind == "folder" and part.path]
        place, most = next((folder for folder in folders if folder.is_dir()), None), MOST_OF_SOURCE
    if place is None or not context.local_tiers:
        return
    try:
        columns = next((part.columns for part in context.the_config.source.each if part.columns), ())
        examples = read_spread(place, task.input_spec, most, columns)
        truth = truth_of(examples, task)
    except ConfigError as error:
        if context.examples is not None:
            yield from_error("examples", error, "correct --examples")
        return
    for tier in context.local_tiers:
        try:
            yield from _check_tier(tier, context, examples, truth)
        except CascadeError as error:  # found by the check of the models as well, in its words
            yield from_error(f"tier {tier.name}", error, "correct `input:`, or the examples")


def _check_tier(
    tier: LocalTierConfig, context: CheckContext, examples: LabelledExamples, truth: Labels | None
) -> Iterator[Finding]:
    cascade = context.the_config.cascade
    answers, rows = ask_members(tier.members, examples, cascade.task.input_spec, tries=truth is not None)
    if len(rows) < len(examples):
        fix = "remove them, or correct `input:`"
        yield warn("examples", f"{len(examples) - len(rows)} of {len(examples)} cannot be read", fix)
    if truth is None:
        for one in answers:
            for line in answers_warnings(Counter(one.said[0].tolist()), float(one.sure[0].mean()), cascade.task.labels):
                yield warn(one.spec.name, line, "give labelled examples: coe-edge doctor --examples")
        return
    truth = truth[rows]
    for one in answers:
        yield _member_finding(one, truth)
    kept = right = 0
    opened = open_tier(tier, cascade)
    try:
        place = {row: at for at, row in enumerate(rows)}
        for at, batch in _chunks(examples, cascade.task.input_spec):
            vote = opened.vote(batch, opened.rule)
            exits = opened.rule.exits(batch, vote)
            kept += int(exits.sum())
            right += int((vote.labels == truth[[place[row] for row in at]])[exits].sum())
    finally:
        opened.close()
    share = f"; {right / kept:.1%} of them right" if kept else ""
    yield ok(f"tier {tier.name}", f"decides {kept} of {len(rows)} labelled examples{share}")


def _member_finding(one: MemberAnswers, truth: Labels) -> Finding:
    """Its accuracy, its worst confusion and its commonest answer; a warning where something fits clearly better."""
    names, said = one.spec.labels, one.said[0]
    message = f"{(said == truth).mean():.1%} of {len(truth)} right"
    wrong = said != truth
    pairs, counts = np.unique(np.stack([truth[wrong], said[wrong]]), axis=1, return_counts=True)
    if len(counts) and counts.max() >= EACH:
        actual, given = pairs[:, int(counts.argmax())]
        message += f"; {counts.max()} times {names[given]} for {names[actual]}"
    commonest = int(np.bincount(said).argmax())
    message += f"; says {names[commonest]} {np.mean(said == commonest):.0%} of the time"
    form, spec = one.best(truth)
    own_form = next(iter(one.forms))
    order = one.order(truth, form)
    if form == own_form and not order:
        right = np.mean(said == truth)
        if right < 2 / len(names) and right < LEAST_RIGHT:
            return fail(one.spec.name, message, "no usual `input:` or order of labels makes it right: see its training")
        return ok(one.spec.name, message)
    then = one.said[list(one.forms).index(form)]
    to = _reordered(then, truth, len(names)) if order else np.arange(len(names))
    fixes = [] if form == own_form else [f"`input: {as_yaml(spec)}`, which gives it {form}"]
    fixes += [f"its labels are in another order: `labels: [{', '.join(order)}]`"] if order else []
    return warn(one.spec.name, message, f"{(to[then] == truth).mean():.1%} right with {' and '.join(fixes)}")


def as_yaml(spec: InputSpec) -> str:
    """An `input:` as a config writes it; without what is usual."""
    if spec.kind == "text":
        return "{kind: text}"
    if spec.kind == "tensor":
        return f"{{kind: tensor, shape: [{', '.join(map(str, spec.shape))}], dtype: {spec.dtype}}}"
    height, width, channels = spec.shape
    text = f"{{kind: image, size: [{height}, {width}], channels: {channels}, layout: {spec.layout}"
    text += f", dtype: {spec.dtype}, scale: {spec.scale!r}"
    for name, usual in (("mean", (0.0,)), ("std", (1.0,))):
        value = getattr(spec, name)
        text += f", {name}: [{', '.join(map(repr, value))}]" if value != usual else ""
    return text + ("}" if spec.channel_order == "RGB" else f", channel_order: {spec.channel_order}}}")
