"""Writes `web/vectors/`: what the Python implementation answers, case by case, for the TypeScript one to answer too.

    python tests/web/conformance.py

Nothing here is random in a way that differs from one version to another: the same files come out each time, and
`test_conformance.py` fails where they are not what is committed.
"""

from __future__ import annotations

import base64
import itertools
import json
import random
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[1:1] = [str(ROOT), str(ROOT / "tests")]  # where it is run by itself

from strategies import Broken, members_of  # noqa: E402

from cloud.transports.device_page import calibrated_as_json  # noqa: E402
from cloud.transports.rest_messages import OutputFormats, write_answer  # noqa: E402
from coe.calibration import CalibratedVote, StageVote  # noqa: E402
from coe.cascade import (  # noqa: E402
    Agreement,
    Always,
    Batch,
    Cascade,
    Confidence,
    DeferralRule,
    LocalTier,
    Tier,
    TierError,
    TierOverloaded,
    TierRejected,
    TierTimeout,
    TierUnavailable,
    Vote,
)
from coe.cascade.rule import parse_agreement  # noqa: E402
from coe.cascade.types import Array  # noqa: E402
from coe.cascade.vote import is_settled  # noqa: E402
from coe.models.inputs import InputSpec, decode_image  # noqa: E402
from coe.protocol.core import USUAL, Answer, Decided, ResponseEncoder, ServedModel  # noqa: E402
from coe.protocol.remote import read_answer  # noqa: E402

FOLDER = ROOT / "web" / "vectors"
ERRORS: dict[str, Callable[[str, str], TierError]] = {
    "unavailable": TierUnavailable,
    "timeout": TierTimeout,
    "overloaded": TierOverloaded,
    "rejected": TierRejected,
}
MOST_MEMBERS = 6
TEXTS = (
    *("unanimous", "majority", " Unanimous ", "MAJORITY", "1", "1.0", "0.5", ".5", "1.", "0.66", "0.67", "0.666"),
    *("0.33", "0.75", "0.76", "0.8", "0.81", "1/2", "2/3", "3/4", "4/6", "5/6", "1/3", "+1/2", "1e-1", "66e-2", "0.2"),
    *("0.6000000000000000000000001", "1 of 2", "2 of 3", "3 of 3", "2  of  4", "3 of 5", "6 of 6", "0.17", "0.5001"),
    *("", "0", "0/3", "0 of 3", "-1/2", "1.01", "4/3", "2/0", "two thirds", "2 of", "4 of 3", "half", "1//2", "0x1"),
    *("0.34", "e1", "nan", "inf", "1/2/3", ".", "2 / 3 x"),
)


def rule_vectors() -> dict[str, Any]:
    """Settled votes, agreements, votes of one tier, and whole cascades."""
    rng = random.Random(20_240_701)
    return {
        "settled": _settled(),
        "agreements": [_agreement(text, n) for text in TEXTS for n in range(1, MOST_MEMBERS + 1)],
        "votes": [_vote(rng) for _ in range(2000)],
        "cascades": [_cascade(rng) for _ in range(700)],
        "calibrated": [_calibrated(random.Random(number)) for number in range(400)],
    }


def _stage(rng: random.Random, n_members: int, n_labels: int, *, is_last: bool) -> StageVote:
    """Mostly eighths, so that utilities tie often."""
    is_exact = rng.random() < 0.5

    def numbers(n: int) -> tuple[float, ...]:
        return tuple(rng.randrange(-16, 17) / 8 if is_exact else rng.uniform(-3, 3) for _ in range(n))

    grids = tuple(tuple(sorted(rng.randrange(9) / 8 for _ in range(rng.choice((0, 2, 5))))) for _ in range(n_members))
    threshold = None if is_last else rng.choice((0.3, 0.5, 0.7, 0.9))
    d = numbers(n_labels) if rng.random() < 0.5 else ()
    return StageVote(
        numbers(n_members), numbers(n_members), numbers(n_members), numbers(1)[0], d, grids, n_labels, threshold
    )


def _calibrated(rng: random.Random) -> dict[str, Any]:
    """A cascade by calibrated votes: its tiers' outputs and stages, and what it decides."""
    n_labels, before = rng.randrange(2, 5), 0
    tiers: list[Tier] = []
    told: list[dict[str, Any]] = []
    n_tiers = rng.randrange(1, 4)
    for number in range(n_tiers):
        n_members = rng.randrange(1, 4)
        outputs = _outputs(rng, n_members, n_labels)
        stage = _stage(rng, before + n_members, n_labels, is_last=number == n_tiers - 1)
        rule = CalibratedVote((stage,), before)
        tiers.append(_local(f"tier-{number}", outputs, rule, early=False))
        told.append({"outputs": _packed(outputs), "calibrated": calibrated_as_json(rule)})
        before += n_members
    if n_tiers > 1 and rng.random() < 0.2:
        tiers[-1] = Broken(TierTimeout("cloud", "it is away"))
        told[-1] = {"broken": ["timeout", "it is away"]}
    decision = Cascade(tiers).decide(_batch())[0]
    return {
        "labels": n_labels,
        "tiers": told,
        "decision": [decision.label, decision.exit_tier, decision.vote, decision.score],
        "tier_votes": list(decision.tier_votes),
        "degraded": decision.degraded,
    }


def _settled() -> dict[str, Any]:
    """Every case of up to MOST_MEMBERS members, as bits in the order of the loops."""
    cases = settled_cases()
    return {"most": MOST_MEMBERS, "bits": "".join(str(int(is_settled(*case))) for case in cases)}


def settled_cases() -> list[tuple[int, int, int, int]]:
    """top, runner_up, left, needed."""
    numbers = range(MOST_MEMBERS + 1)
    return [case for case in itertools.product(numbers, repeat=4) if case[1] <= case[0]]


def _agreement(text: str, n_members: int) -> list[Any]:
    """The text, the members, and numerator, denominator, votes needed, whether it warns; or None: it is refused."""
    try:
        rule, warning = parse_agreement(text, n_members)
    except ValueError:
        return [text, n_members, None]
    theta = rule.theta
    exact = [str(theta.numerator), str(theta.denominator)]
    return [text, n_members, [*exact, rule.needed(n_members), warning is not None]]


def _outputs(rng: random.Random, n_members: int, n_labels: int) -> list[list[float]]:
    """One row (L) a member. Mostly eighths, so that votes and scores tie often."""
    kind = rng.choice(("eighths", "eighths", "few", "many"))
    if kind == "eighths":
        return [[rng.randrange(9) / 8 for _ in range(n_labels)] for _ in range(n_members)]
    if kind == "few":  # certain of a label: ties go by the label alone
        tops = [rng.randrange(n_labels) for _ in range(n_members)]
        return [[float(label == top) for label in range(n_labels)] for top in tops]
    rows = []
    for _ in range(n_members):
        weights = [rng.randrange(1, 2**20) ** 2 for _ in range(n_labels)]
        rows.append([float(np.float32(weight / sum(weights))) for weight in weights])
    return rows


def _rule(rng: random.Random, n_members: int, strict: float = 0.0) -> tuple[DeferralRule, dict[str, Any]]:
    """A rule, and how it is spelled; unanimity with probability `strict`."""
    if rng.random() < strict:
        return Agreement(Fraction(1)), {"agreement": "1/1"}
    if rng.random() < 0.15:
        threshold = rng.choice((0.5, 0.625, 0.7, 0.9, rng.randrange(1, 1000) / 1000))
        return Confidence(threshold), {"confidence": threshold}
    if rng.random() < 0.7:
        theta = Fraction(rng.randrange(1, n_members + 1), n_members)
    else:
        theta = Fraction(rng.randrange(1, 101), 100)
    return Agreement(theta), {"agreement": f"{theta.numerator}/{theta.denominator}"}


def _packed(outputs: list[list[float]]) -> Any:
    """Eighths as whole numbers; else single precision, little-endian, in base64."""
    if all((value * 8).is_integer() for row in outputs for value in row):
        return [[int(value * 8) for value in row] for row in outputs]
    return base64.b64encode(np.array(outputs, dtype="<f4").tobytes()).decode()


def _local(name: str, outputs: list[list[float]], rule: DeferralRule, early: bool) -> LocalTier:
    tables = [np.array([row], dtype=np.float32) for row in outputs]
    return LocalTier(name, members_of(tables), rule, early=early)


def _batch() -> Batch:
    return Batch(("x",), np.zeros((1, 1), dtype=np.int64))


def _vote(rng: random.Random) -> dict[str, Any]:
    n_members, n_labels = rng.randrange(1, MOST_MEMBERS + 1), rng.randrange(2, 5)
    outputs = _outputs(rng, n_members, n_labels)
    rule, told = _rule(rng, n_members)
    early, is_last = rng.random() < 0.8, rng.random() < 0.15
    tier = _local("tier", outputs, rule, early)
    asked_by = Always(pools_scores=rule.pools_scores) if is_last else rule
    vote = tier.vote(_batch(), asked_by)
    whole = tier.complete(_batch(), vote)
    return {
        "labels": n_labels,
        "outputs": _packed(outputs),
        "rule": told,
        "early": early,
        "last": is_last,
        "vote": [*_row(vote), bool(asked_by.exits(_batch(), vote)[0])],
        "whole": _row(whole),
    }


def _row(vote: Vote) -> list[Any]:
    """label, count, asked, members, score."""
    return [int(vote.labels[0]), int(vote.count[0]), int(vote.asked[0]), vote.n_members, float(vote.score[0])]


class _Server(Broken):
    """A remote tier that answers as told."""

    def __init__(self, told: dict[str, Any]) -> None:
        super().__init__(TierUnavailable("server", ""), Always())
        self.told = told

    @property
    def n_tiers(self) -> int:  # type: ignore[override]
        return len(self.told["tier_votes"])

    def vote(self, batch: Batch, rule: DeferralRule) -> Vote:
        told = self.told
        votes = [np.nan if vote is None else vote for vote in told["tier_votes"]]
        return Vote(
            labels=np.array([told["label"]]),
            count=np.array([told["count"]]),
            asked=np.array([told["asked"]]),
            n_members=told["members"],
            score=np.array([told["score"]], dtype=np.float32),
            exit_tier=np.array([told["exit_tier"]]),
            tier_votes=np.array([votes], dtype=np.float32),
            degraded=None if told["degraded"] is None else (told["degraded"],),
        )


def _server(rng: random.Random, n_labels: int) -> dict[str, Any]:
    members, n_tiers = rng.randrange(1, 4), rng.randrange(1, 4)
    asked = rng.randrange(1, members + 1)
    count, exit_tier = rng.randrange(1, asked + 1), rng.randrange(1, n_tiers + 1)
    visited = [float(np.float32(rng.randrange(1, 4) / 3)) for _ in range(exit_tier - 1)]
    return {
        "label": rng.randrange(n_labels),
        "count": count,
        "asked": asked,
        "members": members,
        "score": rng.randrange(9) / 8,
        "exit_tier": exit_tier,
        "tier_votes": [*visited, float(np.float32(count / asked)), *([None] * (n_tiers - exit_tier))],
        "degraded": "timeout: tier next: too late" if rng.random() < 0.2 else None,
    }


def _cascade(rng: random.Random) -> dict[str, Any]:
    n_labels = rng.randrange(2, 5)
    tiers: list[Tier] = []
    told: list[dict[str, Any]] = []
    n_local, end = rng.randrange(1, 4), rng.choice(("none", "server", "server", "broken", "broken"))
    for number in range(n_local):
        n_members = rng.randrange(1 if number else 2, 5)
        outputs = _outputs(rng, n_members, n_labels)
        rule, spelled = _rule(rng, n_members, strict=0.6)
        if end == "none" and number == n_local - 1 and rng.random() < 0.5:  # the last tier pools its scores
            rule, spelled = Confidence(0.5), {"confidence": 0.5}
        early = rng.random() < 0.8
        tiers.append(_local(f"tier-{number}", outputs, rule, early))
        told.append({"outputs": _packed(outputs), "rule": spelled, "early": early})
    if end == "server":
        answer = _server(rng, n_labels)
        tiers.append(_Server(answer))
        told.append({"server": answer})
    elif end == "broken":
        reason = rng.choice(sorted(ERRORS))
        tiers.append(Broken(ERRORS[reason]("cloud", "it is away")))
        told.append({"broken": [reason, "it is away"]})
    keeps = rng.random() < 0.9
    case: dict[str, Any] = {"labels": n_labels, "tiers": told, "keep_last_answer": keeps}
    try:
        decision = Cascade(tiers, keep_last_answer=keeps).decide(_batch())[0]
    except TierError as error:
        return case | {"error": f"{error.reason}: {error}"}
    return case | {
        "decision": [decision.label, decision.exit_tier, decision.vote, decision.score],
        "members": [decision.asked, decision.n_members],
        "tier_votes": list(decision.tier_votes),
        "degraded": decision.degraded,
    }


def pixel_vectors() -> dict[str, Any]:
    """Images as models take them, whatever their size; and colours as greys."""
    rng = random.Random(19_940_131)
    return {"prepared": [_prepared(rng) for _ in range(120)], "greys": _greys(rng)}


def _prepared(rng: random.Random) -> dict[str, Any]:
    channels = rng.choice((1, 3))
    size = (rng.randrange(1, 13), rng.randrange(1, 13))
    height, width = size if rng.random() < 0.1 else (rng.randrange(1, 26), rng.randrange(1, 26))
    dtype = rng.choice(("float32", "float32", "uint8"))
    input_spec = InputSpec(
        "image",
        (*size, channels),
        rng.choice(("NCHW", "NHWC")),
        dtype,
        rng.choice((1.0, 1 / 255, 2 / 255)),
        tuple(rng.randrange(0, 100) / 100 for _ in range(rng.choice((1, channels)))),
        tuple(rng.randrange(1, 100) / 100 for _ in range(rng.choice((1, channels)))),
        rng.choice(("stretch", "crop")),
    )
    data = bytes(rng.randrange(256) for _ in range(height * width * channels))
    pixels = np.frombuffer(data, dtype=np.uint8).reshape(1, height, width, channels)
    ready = input_spec.prepare(pixels)
    return {
        "input": _input_spec(input_spec),
        "size": [height, width],
        "data": base64.b64encode(data).decode(),
        "ready": base64.b64encode(np.ascontiguousarray(ready.astype(ready.dtype.newbyteorder("<"))).tobytes()).decode(),
    }


def _input_spec(input_spec: InputSpec) -> dict[str, Any]:
    return {
        "size": list(input_spec.shape[:2]),
        "channels": input_spec.shape[2],
        "layout": input_spec.layout,
        "dtype": input_spec.dtype,
        "scale": input_spec.scale,
        "mean": list(input_spec.mean),
        "std": list(input_spec.std),
        "fit": input_spec.fit,
    }


def _greys(rng: random.Random) -> dict[str, str]:
    from io import BytesIO

    from PIL import Image

    colours = bytes(rng.randrange(256) for _ in range(3 * 256)) + bytes(value for value in range(256) for _ in range(3))
    image, png = Image.frombytes("RGB", (len(colours) // 3, 1), colours), BytesIO()
    image.save(png, "PNG")
    greys = decode_image(png.getvalue(), 1).tobytes()
    return {"colours": base64.b64encode(colours).decode(), "greys": base64.b64encode(greys).decode()}


def protocol_vectors() -> dict[str, Any]:
    """Questions byte for byte, and the REST door's own answers with the vote that is in them."""
    rng = random.Random(8001)
    return {"questions": [_question(rng) for _ in range(12)], "answers": [_answer(rng) for _ in range(60)]}


def _question(rng: random.Random) -> dict[str, Any]:
    captured = bytes(rng.randrange(256) for _ in range(rng.choice((0, 1, 5, 300))))
    name = rng.choice(("a", "digit-0001", 'a "quoted" one', "küche/3", "一", ""))
    parameters = {"binary_data_size": 4 + len(captured)}
    tensor = {"name": "input", "datatype": "BYTES", "shape": [1], "parameters": parameters}
    head = json.dumps({"id": name, "inputs": [tensor]}, separators=(",", ":"), ensure_ascii=False).encode()
    body = head + len(captured).to_bytes(4, "little") + captured
    return {
        "id": name,
        "captured": base64.b64encode(captured).decode(),
        "body": base64.b64encode(body).decode(),
        "header_length": len(head),
    }


def _answer(rng: random.Random) -> dict[str, Any]:
    n_labels = 4
    tiers: list[Tier] = []
    for number in range(rng.randrange(1, 3)):
        n_members = rng.randrange(2, 5)
        rule, _ = _rule(rng, n_members)
        tiers.append(_local(f"tier-{number}", _outputs(rng, n_members, n_labels), rule, early=True))
    if rng.random() < 0.3:
        tiers.append(Broken(TierTimeout("next", "too late")))
    cascade = Cascade(tiers, last_rule=Always(asks_all=True))
    decisions = cascade.decide(_batch())
    names = [*USUAL, *(["tier_votes"] if len(tiers) > 1 else []), *(["degraded"] if decisions.is_degraded else [])]
    served = ServedModel("table", "v", tuple("abcd"), ("BYTES", (-1,)), None, None, cascade.n_tiers)  # type: ignore[arg-type]
    columns = {name: Decided(decisions).column(name, served) for name in names}
    answer = Answer(served, "x", columns, {"server_s": rng.randrange(1, 100) / 8000})
    text, _ = write_answer(answer, OutputFormats())
    vote = read_answer(ResponseEncoder().fill(answer), 1, n_labels)
    return {
        "text": text.decode(),
        "vote": _row(vote),
        "exit_tier": int(1 if vote.exit_tier is None else vote.exit_tier[0]),
        "tier_votes": None if vote.tier_votes is None else _or_null(vote.tier_votes[0]),
        "degraded": None if vote.degraded is None else vote.degraded[0],
        "server_s": vote.call.server_s,
    }


def _or_null(values: Array) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


FILES: dict[str, Callable[[], dict[str, Any]]] = {
    "rule.json": rule_vectors,
    "pixels.json": pixel_vectors,
    "protocol.json": protocol_vectors,
}


def _one_case_a_line(vectors: dict[str, Any]) -> str:
    parts = []
    for key, value in vectors.items():
        cases = value if isinstance(value, list) else [value]
        lines = ",\n".join(json.dumps(case, separators=(",", ":"), ensure_ascii=False) for case in cases)
        parts.append(f'"{key}": [\n{lines}\n]' if isinstance(value, list) else f'"{key}": {lines}')
    return "{" + ",\n".join(parts) + "}\n"


def main(arguments: Sequence[str]) -> int:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, make in FILES.items():
        (FOLDER / name).write_text(_one_case_a_line(make()), encoding="utf-8")
        print(f"{FOLDER / name}: {(FOLDER / name).stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
