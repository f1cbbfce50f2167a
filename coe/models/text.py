"""Texts and multiple-choice questions as inputs: validation, and tokenization by the model's own tokenizer.

On its way an example is a text, a JSON object in UTF-8: {"context": "She walks in.", "endings": ["She sits.", ..]}. A
model reads each ending as a pair with the context, and gives one number for each.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from coe.cascade.errors import InputError, ModelError
from coe.cascade.types import Array, Batch

from .input_spec import InputSpec
from .loading import first_line, import_runtime, read_file

INSTALL = "pip install 'coe-cascade[text]'"
PADDINGS = ("longest", "max_length")
PAD_TOKENS = ("[PAD]", "<pad>")  # where a tokenizer's file does not say what it pads with
IDS, MASK, TYPES = range(3)  # the rows of a prepared text
BLANK = "blank"


@dataclass(frozen=True)
class TextInputSpec(InputSpec):
    """What a model of texts takes in; of a task, that its examples are texts.

    Args:
        tokenizer: the file, as the `tokenizers` library writes it (tokenizer.json); None: a task's own has none, and
            a model that has none takes the texts themselves.
        tokenizer_sha256: hex digest it must have; None: not checked.
        max_length: tokens, special ones included; longer texts are cut.
        padding: a batch's rows are filled up to its "longest", or each to "max_length".
    """

    kind: str = "text"
    shape: tuple[int, ...] = ()
    dtype: str = "int64"
    tokenizer: Path | None = None
    tokenizer_sha256: str | None = None
    max_length: int = 128
    padding: str = "longest"

    @cached_property
    def tokens(self) -> Tokens:
        """The tokenizer, verified and read once.

        Raises:
            ModelError: none is declared, or its file is missing, changed or none.
            RuntimeMissing: the `tokenizers` library is not installed.
        """
        if self.tokenizer is None:
            raise ModelError("expected `tokenizer:` in the model's `input:`, got none (name its tokenizer.json)")
        data = read_file(self.tokenizer, self.tokenizer_sha256, "the tokenizer file")
        return Tokens(data, self.tokenizer, self.max_length, self.padding)

    @property
    def model_shape(self) -> tuple[int, ...]:
        """(3, T) of one prepared text, (N, 3, T) of one with N endings; T is the longest there may be."""
        return *self.shape, 3, self.max_length

    def blank(self) -> Array:
        """(1,) a short text."""
        return np.array([BLANK], dtype=object)

    def trial(self, n_rows: int) -> Array:
        """(n_rows, 3, T) as a model takes them."""
        return self.prepare(np.repeat(self.blank(), n_rows))

    def takes(self, examples: InputSpec) -> bool:
        return (examples.kind, examples.shape) == ("text", self.shape)

    def sequences(self, text: str) -> Sequence[str | tuple[str, str]]:
        """What is tokenized of one example: the text itself.

        Raises:
            InputError: the text is no example of this kind; any text is one here.
        """
        return [text]

    def prepare(self, x: Array) -> Array:
        """(B, *model_shape) int64 from a batch's x, (B,) texts, all filled up to one length T; x without a tokenizer.

        The three rows are token ids, 1 where there is a token, and segments (all 0 but in pairs).

        Raises:
            InputError: x is no texts, or a text is no example of this kind.
        """
        if x.dtype != object:
            raise InputError(f"expected texts, got {x.dtype} {list(x.shape[1:])}")
        if self.tokenizer is None:
            return x
        prepared = self.tokens.of([part for text in x.tolist() for part in self.sequences(text)])
        return prepared.reshape(len(x), *self.shape, *prepared.shape[1:])


class Tokens:
    """A tokenizer: texts to token ids. Safe to call from several threads, and takes none of its own.

    Args:
        data: a tokenizer.json. Its own truncation and padding are replaced by these.
    """

    def __init__(self, data: bytes, path: Path, max_length: int, padding: str = "longest") -> None:
        library = import_runtime("tokenizers", "text", INSTALL)
        try:
            self._tokenizer: Any = library.Tokenizer.from_buffer(data)
        except Exception as error:  # noqa: BLE001 - the library raises plain Exception and ValueError
            message = f"{path}: expected a tokenizer.json, got {len(data)} bytes: {first_line(error)}"
            raise ModelError(message) from None
        self.pad = _pad_id(self._tokenizer)
        self._tokenizer.no_padding()
        special = self._tokenizer.num_special_tokens_to_add(False)
        if max_length <= special:
            raise ModelError(f"{path}: expected max_length above its {special} special tokens, got {max_length}")
        self._tokenizer.enable_truncation(max_length)
        self._least = max_length if padding == "max_length" else 1

    def of(self, texts: Sequence[str | tuple[str, str]]) -> Array:
        """(B, 3, T): T is that of the longest, or max_length; a text without any token has one of padding.

        Args:
            texts: each alone, or pairs of them.
        """
        # One by one: a batch would be spread over threads that nobody gave to this member.
        rows = [self._tokenizer.encode(*((text,) if isinstance(text, str) else text)) for text in texts]
        longest = max((len(row.ids) for row in rows), default=0)
        out = np.zeros((len(rows), 3, max(longest, self._least)), dtype=np.int64)
        out[:, IDS] = self.pad
        out[:, MASK, 0] = 1
        for place, row in enumerate(rows):
            size = len(row.ids)
            out[place, IDS, :size] = row.ids
            out[place, MASK, :size] = 1
            out[place, TYPES, :size] = row.type_ids
        return out


def _pad_id(tokenizer: Any) -> int:
    padding = tokenizer.padding
    if padding is not None:
        return int(padding["pad_id"])
    known = (tokenizer.token_to_id(token) for token in PAD_TOKENS)
    return next((number for number in known if number is not None), 0)


def read_texts(
    ids: Sequence[str], values: Any, max_bytes: int, deadline: float, input_spec: TextInputSpec | None = None
) -> Batch:
    """A batch from one text per example, as UTF-8 bytes or str; the bytes stay with it, as captured.

    Args:
        input_spec: of the task; None: any text is an example.

    Raises:
        InputError: names the first example that is no text, empty, or longer than `max_bytes`.
    """
    if isinstance(values, np.ndarray) and (values.dtype != object or values.ndim != 1):
        raise InputError(f"expected one text (BYTES) for each row, got {values.dtype} {list(values.shape[1:])}")
    x, captured = np.empty(len(ids), dtype=object), np.empty(len(ids), dtype=object)
    for row, (name, value) in enumerate(zip(ids, values, strict=True)):
        try:
            x[row], captured[row] = read_text(value, max_bytes)
            if input_spec is not None:
                input_spec.sequences(x[row])
        except InputError as error:
            raise InputError(f"example {name}: {error}") from None
    return Batch(tuple(ids), x, captured, deadline)


def read_text(value: Any, max_bytes: int) -> tuple[str, bytes]:
    """A text and its UTF-8 bytes, from either.

    Raises:
        InputError: what was expected, what came.
    """
    if not isinstance(value, bytes | str):
        raise InputError(f"expected a text, got {getattr(value, 'dtype', type(value).__name__)}")
    try:
        text, data = (value, value.encode()) if isinstance(value, str) else (value.decode(), value)
    except (UnicodeEncodeError, UnicodeDecodeError) as error:  # half a surrogate pair, or bytes of another encoding
        raise InputError(f"expected UTF-8 text, got {len(value)} that are none: {error.reason}") from None
    if len(data) > max_bytes:
        raise InputError(f"expected a text of at most {max_bytes} bytes, got {len(data)}")
    if not text.strip():
        raise InputError("expected a text, got an empty one")
    return text, data


@dataclass(frozen=True)
class ChoicesInputSpec(TextInputSpec):
    """What a model of multiple choice takes in; of a task, that its examples are contexts with endings.

    Args:
        shape: (N,) endings.
    """

    shape: tuple[int, ...] = (4,)

    @property
    def n_choices(self) -> int:
        return self.shape[0]

    def blank(self) -> Array:
        """(1,) an example of one word each."""
        return np.array([json.dumps({"context": BLANK, "endings": [BLANK] * self.n_choices})], dtype=object)

    def sequences(self, text: str) -> list[tuple[str, str]]:
        """N pairs of the context and an ending.

        Raises:
            InputError: what was expected, what came.
        """
        try:
            content = json.loads(text)
            context, endings = content["context"], content["endings"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise InputError(f"{self._expected}, got {text[:40]!r}") from None
        if not isinstance(endings, list) or len(endings) != self.n_choices:
            raise InputError(f"{self._expected}, got {len(endings) if isinstance(endings, list) else 'no list'}")
        if not all(isinstance(one, str) for one in (context, *endings)):
            raise InputError(f"{self._expected}, got something that is no text")
        return [(context, ending) for ending in endings]

    @property
    def _expected(self) -> str:
        return f'expected {{"context": "..", "endings": [..]}} with {self.n_choices} endings'
