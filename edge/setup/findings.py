"""What a check examines, what it reports, and how a finding is printed."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TextIO

from coe.cascade.errors import CascadeError
from coe.config.cascade import LocalTierConfig, RemoteTierConfig
from edge.config import AgentConfig

from .system import System

Level = Literal["ok", "warn", "fail"]

WORDS: dict[Level, str] = {"ok": "ok", "warn": "warn", "fail": "FAIL"}  # to be read without colour, too
COLOURS: dict[Level, str] = {"ok": "\x1b[32m", "warn": "\x1b[33m", "fail": "\x1b[1;31m"}
PLAIN = "\x1b[0m"
MOST_WIDTH = 100
INDENT = 22


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's.

    Args:
        what: was looked at, in a word or two: "clock", "tier cloud".
        told: what was found.
        mend: what to do about it; "" where nothing is to be done.
    """

    what: str
    level: Level
    message: str
    fix: str = ""


def ok(what: str, message: str) -> Finding:
    return Finding(what, "ok", message)


def warn(what: str, message: str, fix: str) -> Finding:
    return Finding(what, "warn", message, fix)


def fail(what: str, message: str, fix: str) -> Finding:
    return Finding(what, "fail", message, fix)


def from_error(what: str, error: CascadeError, otherwise: str) -> Finding:
    """An error as a finding: ours have the mend in brackets at their end. `otherwise`: of one that has none."""
    text = " ".join(str(error).splitlines()).removeprefix(f"{what}: ")
    message, bracket, fix = text.rpartition(" (")
    return fail(what, message, fix.removesuffix(")")) if bracket else fail(what, text, otherwise)


class Printer:
    """Writes findings as they come; in colour on a terminal that wants it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.is_coloured = stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self.width = max(min(shutil.get_terminal_size((80, 24)).columns, MOST_WIDTH) - 1, INDENT + 20)

    def show(self, finding: Finding) -> None:
        word = WORDS[finding.level].ljust(4)
        if self.is_coloured:
            word = f"{COLOURS[finding.level]}{word}{PLAIN}"
        first, *more = self._wrapped(finding.message)
        head = f"  {finding.what}".ljust(INDENT - 6)
        lines = [f"{word}{head}  {first}" if len(head) < INDENT - 5 else f"{word}{head}\n{' ' * INDENT}{first}"]
        lines += [" " * INDENT + line for line in more]
        if finding.fix:
            start, *rest = self._wrapped(finding.fix, 3)
            lines += [f"{' ' * INDENT}-> {start}", *(f"{' ' * INDENT}   {line}" for line in rest)]
        self.stream.write("\n".join(lines) + "\n")
        self.stream.flush()

    def _wrapped(self, text: str, less: int = 0) -> list[str]:
        """At least one line; words longer than a line, as paths are, stay whole: they are copied."""
        width = self.width - INDENT - less
        return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


@dataclass(frozen=True)
class CheckContext:
    system: System = field(default_factory=System)
    config: AgentConfig | None = None

    @property
    def the_config(self) -> AgentConfig:
        """For checks that are only made where there is one."""
        assert self.config is not None
        return self.config

    @property
    def local_tiers(self) -> list[LocalTierConfig]:
        tiers = self.config.cascade.tiers if self.config else ()
        return [tier for tier in tiers if isinstance(tier, LocalTierConfig)]

    @property
    def remote_tiers(self) -> list[RemoteTierConfig]:
        tiers = self.config.cascade.tiers if self.config else ()
        return [tier for tier in tiers if isinstance(tier, RemoteTierConfig)]


Check = Callable[[CheckContext], Iterator[Finding]]
