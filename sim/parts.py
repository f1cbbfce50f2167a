"""What a study comes to, before it is printed or written: sentences, tables, figures."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coe import __version__

from .html import document, figure_html, table_html, text_html
from .table import aligned

TITLE = "Studies of cascades"
ORDER = ("replay", "pareto", "errors", "exits", "parallel")  # of a trace's chapters


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as texts, numbers to the right from column `text_columns` on; `name` is its CSV's."""

    name: str
    title: str
    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    note: str = ""
    text_columns: int = 1

    def as_text(self) -> str:
        body = aligned(self.header, self.lines, self.text_columns)
        return "\n".join([f"{self.title}:", "", body, *([self.note] if self.note else [])])


@dataclass(frozen=True, slots=True)
class Figure:
    """One picture, in both forms; `name` is its PNG's."""

    name: str
    title: str
    svg: str
    png: bytes
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """One study's chapter.

    Args:
        name: of its files.
        verdict: sentences, first the one that matters most.
        content: what `--json` prints.
        data: rows for a CSV of their own, too many to print.
        draw: its pictures; needs matplotlib, so it is called only where they are wanted.
    """

    name: str
    title: str
    verdict: Sequence[str]
    tables: Sequence[Table] = ()
    content: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Sequence[Sequence[object]]] = field(default_factory=dict)
    draw: Callable[[], Sequence[Figure]] = tuple

    def as_text(self) -> str:
        return "\n\n".join([*(table.as_text() for table in self.tables), "\n".join(self.verdict)])

    def as_html(self, figures: Sequence[Figure]) -> str:
        blocks = [f"<h2>{text_html(self.title)}</h2>", *(f"<p>{text_html(line)}</p>" for line in self.verdict)]
        for figure in figures:
            blocks.append(figure_html(figure.title, figure.svg, figure.caption, level=3))
        for table in self.tables:
            note = f"<p class=note>{text_html(table.note)}</p>" if table.note else ""
            body = table_html(table.header, table.lines, table.text_columns)
            blocks.append(f"<h3>{text_html(table.title)}</h3>{body}{note}")
        return "".join(blocks)


def save(part: Part, folder: Path) -> list[Path]:
    """The part's pictures as PNG, its tables as CSV, its content as JSON, and its chapter of the folder's page.

    The page holds the chapters of every study that wrote into the folder, and opens offline as one file.
    """
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    figures = part.draw()
    written = []
    for figure in figures:
        written.append(folder / f"{part.name}-{figure.name}.png")
        written[-1].write_bytes(figure.png)
    rows = {table.name: [table.header, *table.lines] for table in part.tables} | dict(part.data)
    for name, lines in rows.items():
        written.append(folder / f"{part.name}-{name}.csv")
        with written[-1].open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(lines)
    written.append(folder / f"{part.name}.json")
    written[-1].write_text(json.dumps(part.content, indent=1) + "\n", encoding="utf-8")
    (folder / "parts" / f"{part.name}.html").write_text(part.as_html(figures), encoding="utf-8")
    written.append(_write_page(folder))
    return written


def _write_page(folder: Path) -> Path:
    chapters = [path.read_text(encoding="utf-8") for path in sorted((folder / "parts").glob("*.html"), key=_order)]
    lead = f"<p class=lead>coe-sim {__version__}</p>"
    path = folder / "report.html"
    path.write_text(document(TITLE, f"<h1>{TITLE}</h1>{lead}{''.join(chapters)}"), "utf-8")
    return path


def _order(path: Path) -> tuple[str, int]:
    """Trace by trace, and the studies of each in the order of ORDER."""
    trace, _, study = path.stem.rpartition("-")
    return trace, ORDER.index(study) if study in ORDER else len(ORDER)
