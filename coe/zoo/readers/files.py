"""Labelled examples in files that are read one by one, as they are needed: a data set may not fit into memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload


class FileBytes(Sequence[bytes]):
    """The bytes of many files; each is read when it is asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, place: int) -> bytes: ...

    @overload
    def __getitem__(self, place: slice) -> "FileBytes": ...

    def __getitem__(self, place: int | slice) -> "bytes | FileBytes":
        return FileBytes(self.paths[place]) if isinstance(place, slice) else self.paths[place].read_bytes()


@dataclass(frozen=True, slots=True)
class Labelled:
    """Examples as published: encoded images, or texts in UTF-8.

    Args:
        labels: numbers from 0, in the order of `names`.
        names: of the labels.
    """

    ids: Sequence[str]
    values: Sequence[bytes]
    labels: Sequence[int]
    names: Sequence[str]
