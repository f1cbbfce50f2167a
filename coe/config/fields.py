"""Reading settings with a trail, every error at once, and times with their unit.

Each reader returns a value of its type even where the setting is wrong, so that one pass finds all there is
to correct; `Report.check` then raises them together.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from coe.cascade.errors import ConfigError

UNITS_S = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}


def parse_seconds(text: str) -> float:
    """Seconds from "1us", "10ms" or "1.5s".

    Raises:
        ValueError: it is none of these.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(us|µs|ms|s)\s*", text)
    if not match:
        raise ValueError(f'expected a time with its unit, got "{text}" (write 1us, 10ms or 2s)')
    return float(match[1]) * UNITS_S[match[2]]


def format_seconds(seconds: float, digits: int = 3) -> str:
    """The shortest of "12 us", "3.4 ms", "1.2 s", to so many digits; "1234 s" in full."""
    for unit, size in (("us", 1e-6), ("ms", 1e-3), ("s", 1.0)):
        if abs(seconds) / size < 1000 - 0.5 * 10 ** (3 - digits):  # what rounds to 1000 is the next unit's
            return f"{seconds / size:.{digits}g} {unit}"
    return f"{seconds:.0f} s"


T = TypeVar("T")
MISSING: Any = object()

_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one starts ten times faster
_AMBIGUOUS = "!ambiguous"


class _Misread(yaml.MarkedYAMLError):
    """What YAML would read without a word, and not as it was meant."""

    def __init__(self, problem: str, node: yaml.Node) -> None:
        super().__init__(problem=problem, problem_mark=node.start_mark)


class _Loader(_Base):  # type: ignore[misc]
    """Plain data alone. `1e-6` is a number; a key given twice, a key such as `no`, `1:30` and `010` are errors."""

    def get_single_data(self) -> Any:
        if (root := self.get_single_node()) is not None:
            _check_keys(root)
            return self.construct_document(root)
        return None


def _check_keys(root: yaml.Node) -> None:
    waiting, seen = [root], {root}  # an alias leads to its anchor's node once more
    while waiting:
        node = waiting.pop()
        below = list(node.value) if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            lines: dict[tuple[str, str], int] = {}
            for key, value in node.value:
                below.append(value)
                if not isinstance(key, yaml.ScalarNode):
                    continue
                name = key.value
                if key.tag == "tag:yaml.org,2002:bool":
                    raise _Misread(f'YAML reads the key {name} as true or false (write "{name}" in quotes)', key)
                if line := lines.get((key.tag, name)):
                    raise _Misread(f'"{name}" is given twice, first in line {line} (leave one out)', key)
                lines[key.tag, name] = key.start_mark.line + 1
        fresh = [node for node in below if node not in seen]
        seen.update(fresh)
        waiting += fresh


def _refuse(loader: Any, node: yaml.ScalarNode) -> Any:
    number = (loader.construct_yaml_float if "." in node.value else loader.construct_yaml_int)(node)
    raise _Misread(f'YAML reads {node.value} as {number} (write "{node.value}" in quotes, or the number itself)', node)


class _Dumper(yaml.SafeDumper):
    """Writes texts in quotes where the loader would read something else."""


def _resolve(tag: str, pattern: str, *, first: bool) -> None:
    """Plain values that match have this tag; `first`: whatever else they match."""
    for yaml_class in (_Loader, _Dumper):
        yaml_class.add_implicit_resolver(tag, re.compile(pattern), list("-+0123456789"))
        if first:
            for sign in "-+0123456789":
                yaml_class.yaml_implicit_resolvers[sign].insert(0, yaml_class.yaml_implicit_resolvers[sign].pop())


_resolve(_AMBIGUOUS, r"[-+]?(0[0-7_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)$", first=True)  # octal, sexagesimal
_resolve("tag:yaml.org,2002:float", r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$", first=False)  # YAML 1.2's
_Loader.add_constructor(_AMBIGUOUS, _refuse)


def parse_yaml(text: str) -> Any:
    """What a YAML text holds, as plain data.

    Raises:
        yaml.YAMLError: it is not YAML, or YAML would misread it: a key given twice, `1:30` for a number.
        ValueError, LookupError, AttributeError, RecursionError: a date, a tag or a depth that YAML cannot do.
    """
    return yaml.load(text, Loader=_Loader)


def format_yaml(content: Any, **style: Any) -> str:
    """Plain data as a YAML text that `parse_yaml` reads back as it is, in the order of its keys."""
    return str(yaml.dump(content, Dumper=_Dumper, sort_keys=False, **style))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: no such file, not YAML, not a mapping, or what YAML would misread.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError([f"cannot be read: {reason}"], str(path)) from None
    try:
        content = parse_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        what = "" if isinstance(error, _Misread) else "not YAML: "
        raise ConfigError([f"{where}{what}{getattr(error, 'problem', error)}"], str(path)) from None
    except (ValueError, LookupError, AttributeError, RecursionError) as error:
        raise ConfigError([f"not YAML: {error}"], str(path)) from None
    if not isinstance(content, dict):
        raise ConfigError([f"expected a mapping of settings, got {_kind(content)}"], str(path))
    return content


def resolve(reference: str, folder: Path) -> Path:
    """A path in a config: `zoo:NAME/FILE` is bundled, others are relative to the config's folder.

    Raises:
        ConfigError: the zoo has no such task, or "~name" names nobody.
    """
    if reference.startswith("zoo:"):
        from coe import zoo

        return zoo.find(reference.removeprefix("zoo:"))
    try:
        return folder / Path(reference).expanduser()
    except RuntimeError:
        raise ConfigError([f'expected a path, got "{reference}" (no such user)']) from None


@dataclass(slots=True)
class Report:
    """What one reading of a file found; warnings do not stop it."""

    source: str
    findings: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raise ConfigError with every finding, if there is any."""
        if self.findings:
            raise ConfigError(self.findings, self.source)


class Fields:
    """One mapping of a settings file, read key by key."""

    def __init__(self, content: Any, report: Report, trail: str = "") -> None:
        self.report = report
        self.trail = trail
        self.known: list[str] = []
        if not isinstance(content, Mapping):
            self.wrong("", f"expected a mapping, got {_kind(content)}")
            content = {}
        self.content: Mapping[Any, Any] = content

    def has(self, key: str) -> bool:
        return key in self.content

    def wrong(self, key: str, message: str) -> None:
        self.report.findings.append(f"{self._at(key)}: {message}")

    def warn(self, key: str, message: str) -> None:
        self.report.warnings.append(f"{self._at(key)}: {message}")

    def raw(self, key: str, default: Any = MISSING, expected: str = "a value") -> Any:
        """The value as it stands; a finding where it is required and missing."""
        self.known.append(key)
        if key not in self.content or self.content[key] is None:
            if default is MISSING:
                self.wrong(key, f"expected {expected}, got nothing (add it)")
                return None
            return default
        return self.content[key]

    def text(self, key: str, default: Any = MISSING) -> str:
        return self._typed(key, default, (str,), "a text", "")

    def flag(self, key: str, default: Any = MISSING) -> bool:
        return self._typed(key, default, (bool,), "true or false", False)

    def integer(self, key: str, default: Any = MISSING, low: int = 0, high: int = 2**31) -> int:
        return self._within(key, self._typed(key, default, (int,), "a whole number", low), low, high)

    def number(self, key: str, default: Any = MISSING, low: float = 0.0, high: float = 1e12) -> float:
        value = self._within(key, self._typed(key, default, (int, float), "a number", low), low, high)
        return float(value) if isinstance(value, int) else value

    def choice(self, key: str, options: Sequence[str], default: Any = MISSING) -> str:
        value = self._typed(key, default, (str,), f"one of {', '.join(options)}", options[0])
        if value is not None and value not in options:
            self.wrong(key, f'expected one of {", ".join(options)}, got "{value}"{did_you_mean(value, options)}')
            return options[0]
        return value

    def texts(self, key: str, default: Any = MISSING) -> tuple[str, ...]:
        """A list of texts; one text alone counts as a list of one."""
        value = self.raw(key, default, "a list of texts")
        return tuple(self._list(key, [value] if isinstance(value, str) else value, (str,), "a text"))

    def numbers(self, key: str, default: Any = MISSING) -> tuple[float, ...]:
        """A list of numbers; one number alone counts as a list of one."""
        value = self.raw(key, default, "a list of numbers")
        entries = [value] if _is(value, (int, float)) else value
        good = self._list(key, entries, (int, float), "a number")
        if not all(abs(entry) <= 1e12 for entry in good):
            self.wrong(key, f"expected finite numbers, got {entries}")
            return (1.0,) * len(good)
        return tuple(float(entry) for entry in good)

    def integers(self, key: str, default: Any = MISSING) -> tuple[int, ...]:
        return tuple(self._list(key, self.raw(key, default, "a list of whole numbers"), (int,), "a whole number"))

    def path(self, key: str, folder: Path, default: Any = MISSING) -> Any:
        """A path, from `folder` where it is relative; None where there is a finding, or nothing and no default."""
        text = self.text(key, default)
        if text is default or not text:
            return None if default is MISSING else default
        try:
            return resolve(text, folder)
        except ConfigError as error:
            self.wrong(key, str(error))
            return None

    def section(self, key: str, default: Any = MISSING) -> Fields:
        value = self.raw(key, default, "a section")
        return Fields({} if value is None else value, self.report, self._at(key))

    def sections(self, key: str) -> list[Fields]:
        entries = self._list(key, self.raw(key, expected="a list of sections"), (object,), "a section")
        return [Fields(entry, self.report, f"{self._at(key)}[{i}]") for i, entry in enumerate(entries)]

    def entries(self, key: str) -> list[tuple[str, Fields]]:
        """The entries of a mapping of mappings, in file order."""
        content = self.section(key).content
        return [(str(name), Fields(each, self.report, f"{self._at(key)}.{name}")) for name, each in content.items()]

    def finish(self) -> None:
        """Every key nobody asked for is a finding, with the nearest known one."""
        for key in self.content:
            if key not in self.known:
                near = difflib.get_close_matches(str(key), self.known, 1)
                hint = f'did you mean "{near[0]}"?' if near else f"known: {', '.join(sorted(set(self.known)))}"
                self.wrong(str(key), f"unknown setting ({hint})")

    def _at(self, key: str) -> str:
        return f"{self.trail}.{key}" if self.trail and key else self.trail or key or "file"

    def _typed(self, key: str, default: Any, types: tuple[type, ...], expected: str, placeholder: T) -> T:
        value = self.raw(key, default, expected)
        if value is default or (_is(value, types) and value != ""):
            found: T = value
            return found
        if value is not None:
            self.wrong(key, f"expected {expected}, got {_kind(value)}{_quoting(value, types)}")
        return placeholder

    def _within(self, key: str, value: T, low: Any, high: Any) -> T:
        if value is not None and not low <= value <= high:
            self.wrong(key, f"expected {low} to {high}, got {value}")
            value = low
        return value

    def _list(self, key: str, value: Any, types: tuple[type, ...], expected: str) -> list[Any]:
        if not isinstance(value, list | tuple):
            if value is not None:
                self.wrong(key, f"expected a list, got {_kind(value)}")
            return []
        good = []
        for i, entry in enumerate(value):
            if _is(entry, types):
                good.append(entry)
            else:
                self.wrong(f"{key}[{i}]", f"expected {expected}, got {_kind(entry)}{_quoting(entry, types)}")
        return good


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """The end of a message about a word that is not known: the nearest one that is; "" where none is near."""
    near = difflib.get_close_matches(word, known, 1)
    return f'; did you mean "{near[0]}"?' if near else ""


def _is(value: Any, types: tuple[type, ...]) -> bool:
    if isinstance(value, bool) and bool not in types and object not in types:
        return False  # YAML's `yes` is no number
    return isinstance(value, types)


def _quoting(value: Any, types: tuple[type, ...]) -> str:
    """How to write a value that YAML took for something else than the text it was meant as."""
    if str not in types or value is None or isinstance(value, str | list | dict):
        return ""
    if isinstance(value, bool):
        return f" (write it in quotes: YAML reads {'yes and on' if value else 'no and off'} as {_kind(value)})"
    return f' (write "{value}" in quotes)'


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return f'"{value}"' if isinstance(value, str) else str(value)
