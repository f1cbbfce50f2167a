"""A setting is written once: as a field of a dataclass with its unit, its range, its default and one sentence.

@dataclass(frozen=True)
class LinkConfig:
    failures: int = setting(3, "Failures in a row after which calls stop.", low=1, high=1000)
    reserve_s: float = setting(5, "Kept of an example's deadline.", unit="ms", high=60_000)     # written `reserve_ms`

`read_settings` reads the dataclass from a section. `.ci/settings` makes the tables of docs/configure.md and the samples
in configs/ of the same fields.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from .fields import MISSING, Fields

REQUIRED = MISSING
SETTING = "setting"  # the key of a field's metadata

UNITS: dict[str, tuple[str, str, Callable[[Any], Any]]] = {  # as written: how the attribute ends, the key, the value
    "ms": ("_s", "_ms", lambda value: value / 1000),
    "s": ("_s", "_s", lambda value: value),
    "seconds": ("_s", "_seconds", lambda value: value),
    "h": ("_s", "_h", lambda value: value * 3600),
    "MB": ("_bytes", "_mb", lambda value: int(value * 1e6)),
    "MiB": ("_bytes", "_mb", lambda value: int(value * 2**20)),
}
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Setting:
    """What a file may say for one attribute; `default`, `low` and `high` are as they are written there.

    Args:
        about: one sentence.
        default: REQUIRED: there is none; None: `usual` says in words what happens without it.
        unit: one of UNITS; the key ends with it, and the attribute is in seconds or bytes.
        choices: the words it may be.
        key: where it is not the attribute's name.
        within: the section around it, in that of the dataclass.
        example: a value to show where there is no default.
    """

    about: str
    default: Any
    usual: str = ""
    unit: str = ""
    low: float = 0
    high: float | None = None
    choices: Sequence[str] = ()
    key: str = ""
    within: str = ""
    example: str = ""

    def read(self, fields: Fields, key: str, kind: str, folder: Path, default: Any) -> Any:
        """The attribute's value, of a kind such as "int"; findings go to the report of `fields`."""
        if self.choices:
            return fields.choice(key, self.choices, default)
        if kind in ("int", "float"):
            bounds: dict[str, Any] = {"low": self.low} | ({} if self.high is None else {"high": self.high})
            is_whole = kind == "int" and UNITS.get(self.unit, ("",))[0] != "_bytes"
            return self.inside((fields.integer if is_whole else fields.number)(key, default, **bounds))
        if kind == "Path":
            return fields.path(key, folder, default)
        plain = {"bool": fields.flag, "str": fields.text, "tuple[str, ...]": fields.texts}
        plain |= {"tuple[float, ...]": fields.numbers}
        return plain[kind](key, default)

    def inside(self, value: Any) -> Any:
        """A value in the attribute's unit, from one as it is written."""
        if value is None or not self.unit:
            return value
        convert = UNITS[self.unit][2]
        return tuple(map(convert, value)) if isinstance(value, tuple) else convert(value)


def setting(default: Any, about: str, **more: Any) -> Any:
    """A field of a dataclass that a settings file may set. `more`: the other attributes of its `Setting`."""
    spec = Setting(about, default, **more)
    if default is MISSING:
        return field(metadata={SETTING: spec})
    return field(default=spec.inside(default), metadata={SETTING: spec})


def settings_of(cls: type) -> dict[str, tuple[dataclasses.Field[Any], Setting]]:
    """The settings of a dataclass, by the key that is written for each."""
    found = {}
    for each in dataclasses.fields(cls):
        if spec := each.metadata.get(SETTING):
            ending, written, _ = UNITS.get(spec.unit, ("", "", None))
            found[spec.key or each.name.removesuffix(ending) + written] = (each, spec)
    return found


def read_settings(
    cls: type[T],
    fields: Fields,
    folder: Path = Path(),
    /,
    *,
    only: Collection[str] | None = None,
    defaults: Mapping[str, Any] = MappingProxyType({}),
    finish: bool = True,
    **given: Any,
) -> T:
    """A dataclass as a section of a file says it; findings go to the report of `fields`.

    Args:
        folder: relative paths start here.
        only: attributes that may be said here; None: all.
        defaults: by attribute, as they are written: those that depend on something else.
        finish: False: other keys of the section are others' to read; or each of them is a finding.
        given: attributes that were read otherwise, or are no settings.
    """
    values = dict(given)
    places = {"": fields}
    for key, (each, spec) in settings_of(cls).items():
        if each.name in given or (only is not None and each.name not in only):
            continue
        if spec.within not in places:
            places[spec.within] = fields.section(spec.within, {})
        place, kind = places[spec.within], str(each.type).removesuffix(" | None")
        inner = vars(sys.modules[cls.__module__]).get(kind)  # a dataclass, where it is a section
        if not isinstance(inner, type) or kind == "Path":
            values[each.name] = spec.read(place, key, kind, folder, defaults.get(each.name, spec.default))
        else:
            is_off = spec.default is None and place.raw(key, None) is None
            values[each.name] = None if is_off else read_settings(inner, place.section(key, {}), folder)
    for name, place in places.items():
        if name or finish:
            place.finish()
    return cls(**values)
