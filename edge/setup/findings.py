"""What a check is given, what it returns, and how a finding is printed."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TextIO

from coe.cascade.errors import CascadeError
from coe.config.cascade import LocalTierConfig, RemoteTierConfig
from edge.config import AgentConfig

from .system import System

Level = Literal["ok", "warn", "fail"]

WORDS: dict[Level, str] = {"ok": "ok", "warn": "warn", "fail": "FAIL"}  # to be read without colour, too
COLOURS: dict[Level, str] = {"ok": "\x1b[32m", "warn": "\x1b[33m", "fail": "\x1b[1;31m"}
PLAIN = "\x1b[0m"
MAX_WIDTH = 100
INDENT = 22


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check.

    Args:
        what: the thing checked, in a word or two: "clock", "tier cloud".
        message: its state.
        fix: what to do about it; "" where nothing needs to be done.
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
    """A failed finding of an error. `otherwise`: the fix, where the error has none."""
    text = " ".join(str(error).splitlines()).removeprefix(f"{what}: ")
    return fail(what, *split_fix(text, otherwise))


def split_fix(text: str, otherwise: str) -> tuple[str, str]:
    """Message and fix of an error's text, which ends with the fix in brackets; `otherwise` if it has none."""
    message, bracket, fix = text.rpartition(" (")
    return (message, fix.removesuffix(")")) if bracket else (text, otherwise)


class Printer:
    """Writes findings to a stream, in colour if that is a terminal with colours."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.is_coloured = stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self.width = max(min(shutil.get_terminal_size((80, 24)).columns, MAX_WIDTH) - 1, INDENT + 20)

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
        """At least one line. Words longer than a line, such as paths, are not split, so that they can be copied."""
        width = self.width - INDENT - less
        return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


@dataclass(frozen=True)
class CheckContext:
    """What a check looks at: a machine and, where it could be read, a config; and labelled examples, if given."""

    system: System = field(default_factory=System)
    config: AgentConfig | None = None
    examples: Path | None = None

    @property
    def the_config(self) -> AgentConfig:
        """The config, for checks that only run where there is one."""
        assert self.config is not None
        return self.config

    @property
    def local_tiers(self) -> tuple[LocalTierConfig, ...]:
        return self.config.cascade.local_tiers if self.config else ()

    @property
    def remote_tiers(self) -> tuple[RemoteTierConfig, ...]:
        return self.config.cascade.remote_tiers if self.config else ()


Check = Callable[[CheckContext], Iterator[Finding]]
