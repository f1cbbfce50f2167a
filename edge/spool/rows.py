"""One example as the spool keeps it: its payload, and the outcome it had on the device."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from coe.cascade.types import Array, Decision

from ..sinks import Outcome
from ..sources import Example

SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg"}


@dataclass(frozen=True, slots=True)
class Row:
    """An example in the spool.

    Args:
        key: names it in the sinks' records, for good: no other example, before or after, has the same.
        local: its outcome on the device; `spooled` is the key.
        answer: the outcome that corrects it, once there is one.
        mark: where the sinks' records stood before `local` was written.
        age_s: time since it was put, as the spool counts it.
        attempts: how often it was asked about without an answer that counts.
    """

    seq: int
    key: str
    kind: str
    payload: bytes
    local: Outcome
    answer: Outcome | None
    mark: str
    age_s: float
    attempts: int

    @property
    def example(self) -> Example:
        return Example(self.local.id, unpack(self.kind, self.payload), self.local.truth)


def pack(value: bytes | Array) -> tuple[str, bytes]:
    """Kind and bytes of an example's value: "captured" as it came, or "npy"."""
    if isinstance(value, bytes):
        return "captured", value
    content = io.BytesIO()
    np.save(content, value, allow_pickle=False)
    return "npy", content.getvalue()


def unpack(kind: str, payload: bytes) -> bytes | Array:
    """The value again.

    Raises:
        ValueError: it is not what `pack` made.
    """
    if kind == "captured":
        return payload
    array: Array = np.load(io.BytesIO(payload), allow_pickle=False)
    return array


def suffix_of(kind: str, payload: bytes) -> str:
    """A file's, for what is in it."""
    if kind == "npy":
        return ".npy"
    return next((suffix for start, suffix in SUFFIXES.items() if payload.startswith(start)), ".bin")


def digest_of(name: str, kind: str, payload: bytes) -> bytes:
    """The same for the same example: its id and its content."""
    digest = hashlib.sha256(f"{len(name)} {kind} ".encode())
    digest.update(name.encode("utf-8", "surrogatepass"))
    digest.update(payload)
    return digest.digest()[:16]


def to_json(outcome: Outcome) -> str:
    return json.dumps(asdict(outcome))


def from_json(text: str) -> Outcome:
    """The outcome again; what a newer agent wrote beside it is left out.

    Raises:
        ValueError, TypeError: it is not what `to_json` made.
    """
    content = json.loads(text)
    decision = content.pop("decision")
    return Outcome(
        decision=None if decision is None else Decision(**_known(Decision, decision)), **_known(Outcome, content)
    )


def _known(kind: type[Any], content: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in content.items() if name in names
    }


def as_row(columns: tuple[Any, ...], key: str, now: float) -> Row:
    """A row from its columns, checked against its digest.

    Raises:
        ValueError, TypeError, KeyError: they are not what was written.
    """
    seq, digest, kind, payload, local, answer, mark, put_at, attempts = columns
    outcome = from_json(local)
    if digest_of(outcome.id, kind, payload) != digest:
        raise ValueError("its content is not what was put")
    return Row(
        seq=seq,
        key=key,
        kind=kind,
        payload=payload,
        local=replace(outcome, spooled=key),
        answer=None if answer is None else from_json(answer),
        mark=mark,
        age_s=now - put_at,
        attempts=attempts,
    )
