"""Changing single settings in a YAML file, and leaving everything else in it as it was, comments too."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from .fields import parse_yaml

Scalar = bool | int | str


class CannotEdit(Exception):
    """The text has a form in which single settings cannot be changed safely; says which."""


def with_values(text: str, place: Sequence[str | int], values: Mapping[str, Scalar]) -> str:
    """The text of a YAML file with `values` set in the mapping at `place`.

    Args:
        place: keys and positions from the top, such as ("tiers", 0).
        values: plain ones: flags, whole numbers, words.
    Raises:
        CannotEdit: anchors, a value over several lines, or any text that would not read as meant afterwards.
    """
    try:
        wanted = parse_yaml(text)
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise CannotEdit("it uses YAML anchors, so one text may stand for several settings")
        at: Any = wanted
        for step in place:
            at = at[step]
        at.update(values)
        for key, value in values.items():
            text = _with_value(text, _mapping_at(text, place), key, value)
        found = parse_yaml(text)
    except (yaml.YAMLError, LookupError, TypeError, AttributeError) as error:
        raise CannotEdit(f"its text could not be followed ({error})") from None
    if found != wanted:
        raise CannotEdit("its text would not read as meant afterwards")
    return text


def replace_file(path: Path, text: str, check: Callable[[Path], object]) -> None:
    """Put a text in place of a file, once `check` has passed a copy beside it: either all of it is new, or nothing.

    Raises:
        OSError: the folder cannot be written.
        whatever `check` raises.
    """
    path = path.resolve()  # a link stays one
    number, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    try:
        with os.fdopen(number, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, path.stat().st_mode & 0o7777)
        check(Path(name))
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def _mapping_at(text: str, place: Sequence[str | int]) -> yaml.MappingNode:
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    for step in place:
        if isinstance(node, yaml.MappingNode):
            node = next(value for key, value in node.value if key.value == step)
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            node = node.value[step]
    if not isinstance(node, yaml.MappingNode) or not node.value:
        raise CannotEdit("the settings are not where they were expected")
    return node


def _with_value(text: str, mapping: yaml.MappingNode, key: str, value: Scalar) -> str:
    written = str(value).lower() if isinstance(value, bool) else str(value)
    known = [node for name, node in mapping.value if name.value == key]
    if known:
        if not isinstance(known[0], yaml.ScalarNode) or not _is_on_one_line(known[0]):
            raise CannotEdit(f'its "{key}" is not one plain value on one line')
        start, end = known[0].start_mark.index, known[0].end_mark.index
        return f"{text[:start]}{' ' * (start == end)}{written}{text[end:]}"  # none is written right after the colon
    if mapping.flow_style:
        end = mapping.value[-1][1].end_mark.index
        return f"{text[:end]}, {key}: {written}{text[end:]}"
    newline = "\r\n" if "\r\n" in text else "\n"
    first = mapping.value[0][0].start_mark
    indent = " " * first.column
    for _, node in mapping.value:
        if isinstance(node, yaml.ScalarNode) and _is_on_one_line(node):  # a line of its own below it
            end = text.find("\n", node.end_mark.index)
            if end < 0:
                return f"{text}{newline}{indent}{key}: {written}{newline}"
            return f"{text[: end + 1]}{indent}{key}: {written}{newline}{text[end + 1 :]}"
    return f"{text[: first.index]}{key}: {written}{newline}{indent}{text[first.index :]}"


def _is_on_one_line(node: yaml.ScalarNode) -> bool:
    return bool(node.start_mark.line == node.end_mark.line and node.style not in ("|", ">"))
