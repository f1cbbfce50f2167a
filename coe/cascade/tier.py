"""Everything that can answer is a tier; the cascade does not know where one runs."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, ModelError, describe_failure
from .rule import Always, DeferralRule, fuses
from .types import NO_LABEL, Array, Batch, Labels, Vote
from .vote import is_settled, leaders, leaders_of_one, plurality, plurality_of_one
from .vote import pool as pooled

log = logging.getLogger(__name__)

Prepare = Callable[[Array], Array]
Settles = Callable[[Sequence[Array], int], bool]  # of a rule: whether these outputs (1, L), of so many, decide
Plan = tuple[DeferralRule | None, int | None, Settles | None, bool]


class Member(Protocol):
    """One model of a tier. `prepare` turns a batch's x (B, *S) into what `predict` takes."""

    @property
    def name(self) -> str: ...
    @property
    def n_labels(self) -> int: ...
    @property
    def prepare(self) -> Prepare: ...

    def predict(self, x: Array) -> Array:
        """(B, L) float probabilities."""
        ...

    def close(self) -> None: ...


class MemberRunner(Protocol):
    """Makes the members' calls side by side; `coe.models.pool.MemberPool` is one."""

    def run(
        self,
        calls: Mapping[int, Callable[[], Array]],
        is_enough: Callable[[Mapping[int, Array]], bool] | None,
        late: Callable[[int, str], Array],
    ) -> dict[int, Array]:
        """Outputs by member index: all, or those that were back when `is_enough` accepted them. `late` gives that of
        a member which takes too long, from its index and the words for it.
        """
        ...

    def close(self) -> None: ...


class Tier(Protocol):
    """What the cascade asks of a tier.

    `n_tiers` is 1, or more where the tier is a whole cascade (a server that holds several).
    `waits`: a vote waits for somebody else (a server) rather than computing here.
    """

    name: str
    rule: DeferralRule

    @property
    def n_tiers(self) -> int: ...
    @property
    def waits(self) -> bool: ...

    def vote(self, batch: Batch, rule: DeferralRule) -> Vote:
        """The tier's say on every row, as far as `rule` needs it.

        Raises:
            TierError: no answer; the cascade decides what then.
        """
        ...

    def complete(self, batch: Batch, vote: Vote) -> Vote:
        """The same vote with every member asked: for rows whose local answer is to stand after all."""
        ...

    def close(self) -> None: ...


class LocalTier:
    """An ensemble of members in this process.

    Members vote one after another, or side by side on threads of their own (`pool`), and stop as soon as the
    outcome is settled (`early`): in turn, row by row; side by side, once every row of the batch is settled by the
    members that are through, without waiting for the others (stragglers).

    Either way the decision is that of asking everybody, and so is the label wherever the tier answers. With `early`,
    `asked`, `count` and `score` are over the members that were asked; side by side these are the first that came
    back, so the three may differ from one time to the next, and the label of a row that goes on may too.

    A member that raises, or whose output is not (B, L) finite numbers, does not vote on the rows concerned: it is
    asked about the rows of a batch one by one to find them. It was asked, and agrees with nobody; labels and scores
    are those of the members that voted. `failures` counts it.

    Args:
        early: stop when the outcome is settled; False: every member is asked.
        pool: runs members side by side (`coe.models.pool.MemberPool`); None: one after another. Closed with the tier.
    """

    n_tiers = 1
    waits = False

    def __init__(
        self,
        name: str,
        members: Sequence[Member],
        rule: DeferralRule,
        *,
        early: bool = True,
        pool: MemberRunner | None = None,
    ) -> None:
        if not members:
            raise ValueError(f"tier {name}: expected at least one member, got none")
        if len({member.n_labels for member in members}) > 1:
            sizes = ", ".join(f"{member.name} {member.n_labels}" for member in members)
            raise ModelError(f"tier {name}: expected members with one set of labels, got sizes {sizes}")
        self.name = name
        self.rule = rule
        self.members = tuple(members)
        self.early = early
        self.failures = MemberFailures(name, [member.name for member in members])
        # The last rule, the votes it needs, how else it settles one example, whether it gives label and score itself
        self._plan: Plan = (None, None, None, False)
        self._numbers: Labels = np.arange(max(len(members), members[0].n_labels) + 1, dtype=np.int64)  # of votes on one
        self._numbers.flags.writeable = False
        self._shape_of_one = (1, members[0].n_labels)
        self._is_short = members[0].n_labels <= SHORT
        self._pool = pool

    def vote(self, batch: Batch, rule: DeferralRule) -> Vote:
        known, needed, settles, is_fused = self._plan
        if known is not rule:
            stops = self.early and not rule.pools_scores
            needed = rule.needed(len(self.members)) if stops else None
            settles = getattr(rule, "settles", None) if stops else None
            is_fused = fuses(rule)
            self._plan = (rule, needed, settles, is_fused)
        if batch.asks_members:
            needed = settles = None
        if self._pool is not None:
            return self._vote_side_by_side(self._pool, batch.x, needed, rule.pools_scores)
        if len(batch.ids) == 1 and not rule.pools_scores:
            return self._vote_on_one(batch.x, needed, settles, is_fused)
        return self._vote_in_turn(batch.x, needed, rule.pools_scores)

    def complete(self, batch: Batch, vote: Vote) -> Vote:
        short = np.flatnonzero(vote.asked < len(self.members))
        if not short.size:
            return vote
        shape = (len(self.members), len(short), self.members[0].n_labels)
        probabilities = np.zeros(shape, dtype=np.float32)  # (M, S, L)
        missing: dict[int, NDArray[np.intp]] = dict.fromkeys(range(len(self.members)), np.arange(len(short)))
        indices = range(len(self.members)) if vote.member_indices is None else vote.member_indices
        for place, (index, known) in enumerate(zip(indices, vote.probabilities, strict=False)):  # let go: ask anew
            probabilities[index] = known[short]
            missing[index] = np.flatnonzero(vote.asked[short] <= place)
        reasons = dict(vote.failures or {})
        calls = {
            index: partial(self._ask, index, _Inputs(batch.x[short[missing[index]]]), reasons)
            for index in range(len(self.members))
            if missing[index].size
        }
        if self._pool is not None:
            sizes = {index: missing[index].size for index in calls}
            outputs = self._pool.run(
                calls, None, lambda index, words: self._silent(index, ModelError(words), reasons, sizes[index])
            )
        else:
            outputs = {index: call() for index, call in calls.items()}
        for index, output in outputs.items():
            probabilities[index, missing[index]] = output
        whole = vote.replaced(short, self._tally(probabilities, None, pools_scores=False))
        whole.failures = reasons or None
        return whole

    def warm_up(self, example: Array, sizes: Iterable[int]) -> None:
        """Ask every member about that many copies of an example, where it would be asked: a runtime plans and
        allocates for each batch size anew. Takes the memory of one such batch at a time.

        Args:
            example: (1, *S), as a caller sends it.
        """
        for n_rows in sizes:
            x = np.repeat(example, n_rows, axis=0)
            self.vote(Batch(("",) * n_rows, x), Always(self.rule.pools_scores, asks_all=True))

    def close(self) -> None:
        """Wait for stragglers, then let the members go."""
        if self._pool is not None:
            self._pool.close()
        for member in self.members:
            member.close()

    def _vote_on_one(self, x: Array, needed: int | None, settles: Settles | None, is_fused: bool) -> Vote:
        """`_vote_in_turn` for one example, on plain integers: the device's hot path.

        Args:
            is_fused: the rule will replace label, count and score: the first ballot stands, and the score is not known.
        """
        ballots: list[int] = []  # cast
        outputs: list[Array] = []  # of the members asked
        reasons: dict[int, str] | None = None
        left, shape, is_short = len(self.members), self._shape_of_one, self._is_short
        prepare, ready = None, x
        for member in self.members:
            own = member.prepare
            try:
                if own != prepare:  # members with one input spec share the prepared input
                    ready = own(x)
                    prepare = own
                output = member.predict(ready)  # (1, L)
                if output.shape != shape:
                    raise self._wrong_shape(output, 1)
                if is_short:
                    row = output.tolist()[0]
                    if not math.isfinite(sum(row)):
                        raise _not_finite()
                    ballot = row.index(max(row))
                else:
                    ballot = int(output.argmax())
                    if not (math.isfinite(output.item(ballot)) and math.isfinite(output.item(output.argmin()))):
                        raise _not_finite()
            except FAILURES as error:
                if own != prepare and isinstance(error, InputError):
                    raise
                reasons = reasons or {}
                outputs.append(self._silent(len(outputs), error, reasons))
            else:
                outputs.append(output)
                ballots.append(ballot)
            left -= 1
            if not left:
                break
            if needed is not None and is_settled(*leaders_of_one(ballots), left, needed):
                break
            if settles is not None and settles(outputs, len(self.members)):
                break
        voted = outputs
        if reasons is not None:
            voted = [output for index, output in enumerate(outputs) if index not in reasons]
        if self.failures.reasons:
            self.failures.count_votes(len(outputs), reasons or ())
        if is_fused and ballots:
            label, score = ballots[0], math.nan
            top = ballots.count(label)
        else:
            top, _ = leaders_of_one(ballots)
            label, score = plurality_of_one(ballots, top, voted)
        numbers = self._numbers
        return Vote(
            labels=numbers[label : label + 1] if ballots else np.array((NO_LABEL,), dtype=np.int64),
            count=numbers[top : top + 1],
            asked=numbers[len(outputs) : len(outputs) + 1],
            n_members=len(self.members),
            score=np.array((score,), dtype=np.float32),
            probabilities=outputs,
            failures=reasons,
        )

    def _vote_in_turn(self, x: Array, needed: int | None, pools_scores: bool) -> Vote:
        """Members one after another; rows leave as they are settled."""
        n_members = len(self.members)
        ballots = np.full((n_members, len(x)), NO_LABEL, dtype=np.int64)
        asked = np.zeros(len(x), dtype=np.int64)
        probabilities = np.zeros((n_members, len(x), self.members[0].n_labels), dtype=np.float32)
        active: NDArray[np.intp] = np.arange(len(x))
        inputs = _Inputs(x)
        reasons: dict[int, str] = {}
        for index in range(n_members):
            output = self._ask(index, inputs, reasons)  # (A, L)
            probabilities[index, active] = output
            ballots[index, active] = _ballots(output)
            asked[active] = index + 1
            if needed is not None:
                top, runner_up = leaders(ballots[: index + 1, active])
                stays = ~np.asarray(is_settled(top, runner_up, n_members - index - 1, needed))
                if not stays.any():
                    break
                if not stays.all():
                    active = active[stays]
                    inputs = inputs.take(np.flatnonzero(stays))
        vote = self._tally(probabilities, asked, pools_scores)
        vote.failures = reasons or None
        return vote

    def _vote_side_by_side(self, pool: MemberRunner, x: Array, needed: int | None, pools_scores: bool) -> Vote:
        inputs, n_members = _Inputs(x), len(self.members)
        reasons: dict[int, str] = {}

        def is_enough(outputs: Mapping[int, Array]) -> bool:
            assert needed is not None
            left = n_members - len(outputs)
            if len(x) == 1:
                ballots = [int(output.argmax()) for output in outputs.values() if not math.isnan(output.item(0))]
                return bool(is_settled(*leaders_of_one(ballots), left, needed))
            top, runner_up = leaders(np.stack([_ballots(output) for output in outputs.values()]))
            return bool(np.all(is_settled(top, runner_up, left, needed)))

        calls = {index: partial(self._ask, index, inputs, reasons) for index in range(n_members)}
        outputs = pool.run(
            calls,
            None if needed is None else is_enough,
            lambda index, words: self._silent(index, ModelError(words), reasons, len(x)),
        )
        indices = sorted(outputs)
        vote = self._tally(np.stack([outputs[index] for index in indices]), None, pools_scores)
        vote.failures = {index: reasons[index] for index in indices if index in reasons} or None
        if len(indices) < n_members:
            vote.member_indices = indices
        return vote

    def _ask(self, index: int, inputs: _Inputs, reasons: dict[int, str]) -> Array:
        """(B, L) from one member: NaN throughout in the rows on which it does not vote, and in `reasons` why.

        Raises:
            InputError: an example is none of this task, so that it cannot be prepared.
        """
        member, ready = self.members[index], None
        try:
            ready = inputs.prepared_by(member)
            output = member.predict(ready)
            if output.shape != (len(inputs), self.members[0].n_labels):
                raise self._wrong_shape(output, len(inputs))
            votes = np.asarray(np.isfinite(output).all(axis=1))  # (B,)
        except FAILURES as error:
            if ready is None and isinstance(error, InputError):
                raise
            if len(inputs) > 1:
                one_by_one = [self._ask(index, inputs.take(np.array([row])), reasons) for row in range(len(inputs))]
                return np.concatenate(one_by_one)
            return self._silent(index, error, reasons)
        n_votes = int(np.count_nonzero(votes))
        if n_votes < len(votes):
            reasons[index] = self.failures.count(index, _not_finite(), len(votes) - n_votes)
            output = np.where(votes[:, None], output, np.nan)
        elif self.failures.reasons:
            self.failures.count_vote(index)
        return output

    def _silent(self, index: int, error: BaseException, reasons: dict[int, str], n_rows: int = 1) -> Array:
        """The output (B, L) of a member that does not vote, counted, and in `reasons` why."""
        reasons[index] = self.failures.count(index, error, n_rows)
        return np.full((n_rows, self.members[0].n_labels), np.nan, dtype=np.float32)

    def _tally(self, probabilities: Array, asked: Labels | None, pools_scores: bool) -> Vote:
        """The vote over outputs (M, B, L), of which the first `asked` (B,) of each row count (None: all)."""
        n_asked, n_rows = probabilities.shape[:2]
        ballots = _ballots(probabilities)  # (M, B)
        if asked is None:
            asked = np.full(n_rows, n_asked, dtype=np.int64)
        else:
            ballots[np.arange(n_asked)[:, None] >= asked] = NO_LABEL
        if pools_scores:
            labels, score = pooled(probabilities, ballots)
            count = ((ballots == labels) & (labels != NO_LABEL)).sum(axis=0)
        else:
            labels, count, score = plurality(ballots, probabilities)
        return Vote(labels, count, asked, len(self.members), score, tuple(probabilities))

    def _wrong_shape(self, output: Array, n_rows: int) -> ModelError:
        expected = [n_rows, self.members[0].n_labels]
        return ModelError(f"expected an output of shape {expected}, got {list(output.shape)}")


FAILURES = (Exception, SystemExit)  # of a member: whatever it raises but what stops the program (KeyboardInterrupt)
SHORT = 64  # labels up to which a row's highest score is found sooner in a list than in an array


def _not_finite() -> ModelError:
    return ModelError("its output is not a number (NaN or infinity)")


def _ballots(outputs: Array) -> Labels:
    """(.., B) labels of outputs (.., B, L) as `_ask` gives them; NO_LABEL where they are NaN."""
    ballots: Labels = outputs.argmax(axis=-1)
    silent = np.isnan(outputs[..., 0])
    if silent.any():
        ballots[silent] = NO_LABEL
    return ballots


class MemberFailures:
    """Counts the votes that a tier's members did not cast, and logs a member that begins to fail and works again.

    `n_failed[index]` counts the rows on which that member did not vote, `reasons` has the last reason of those that
    fail now. Thread-safe.
    """

    def __init__(self, tier: str, names: Sequence[str]) -> None:
        self.tier = tier
        self.names = tuple(names)
        self.n_failed = [0] * len(names)
        self.reasons: dict[int, str] = {}
        self._n_good: dict[int, int] = {}  # votes in a row since, of those that fail now
        self._n_before: dict[int, int] = {}  # `n_failed` as they began
        self._lock = threading.Lock()

    def count(self, index: int, error: BaseException, n_rows: int = 1) -> str:
        """Count rows on which a member did not vote. Returns which member and why."""
        reason = describe_failure(error)
        with self._lock:
            is_new = index not in self.reasons
            if is_new:
                self._n_before[index] = self.n_failed[index]
            self.n_failed[index] += n_rows
            self.reasons[index] = reason
            self._n_good[index] = 0
        words = f"member {self.names[index]}: {reason}"
        if is_new:
            log.warning(
                "tier %s: %s; it does not vote where it fails, which is logged once and counted", self.tier, words
            )
        return words

    def count_vote(self, index: int) -> None:
        """Count a vote of a member; after RECOVERED of them in a row one that failed works again."""
        with self._lock:
            if index not in self.reasons:
                return
            self._n_good[index] += 1
            if self._n_good[index] < RECOVERED:
                return
            del self.reasons[index], self._n_good[index]
            n_missed = self.n_failed[index] - self._n_before.pop(index)
        log.warning("tier %s: member %s votes again; it missed %d examples", self.tier, self.names[index], n_missed)

    def each(self) -> Iterator[tuple[str, int, str | None]]:
        """Of each member its name, the rows on which it did not vote, and why, if it fails now."""
        return zip(self.names, self.n_failed, map(self.reasons.get, range(len(self.names))), strict=True)

    def count_votes(self, n_asked: int, failed: Container[int]) -> None:
        """`count_vote` for the first `n_asked` members but those that failed."""
        for index in range(n_asked):
            if index not in failed:
                self.count_vote(index)


RECOVERED = 20  # votes in a row


class _Inputs:
    """A batch's x as each input spec prepares it: once, for all members that share the spec. Thread-safe."""

    def __init__(self, x: Array) -> None:
        self._x = x
        self._lock = threading.Lock()  # over the two below
        self._turns: dict[Prepare, threading.Lock] = {}
        self._ready: dict[Prepare, Array] = {}

    def __len__(self) -> int:
        return len(self._x)

    def take(self, rows: NDArray[np.intp]) -> _Inputs:
        """The examples at `rows` (A,) alone."""
        taken = _Inputs(self._x[rows])
        with self._lock:
            known = list(self._ready.items())
        taken._ready = {prepare: ready[rows] for prepare, ready in known}
        return taken

    def prepared_by(self, member: Member) -> Array:
        """What `member.predict` takes. A member that shares its input spec with one that is preparing waits for it."""
        prepare = member.prepare
        with self._lock:
            turn = self._turns.setdefault(prepare, threading.Lock())
        with turn:
            if prepare not in self._ready:
                self._ready[prepare] = prepare(self._x)
            return self._ready[prepare]
