"""What a study prints and writes: tables, figures, sections of an HTML page, JSON and progress bars."""

from __future__ import annotations

import argparse
import csv
import html
import json
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from coe import __version__
from coe.config import format_seconds
from coe.models.loading import import_runtime

from .records import DelayRow

CSS = """
:root { color-scheme: light dark; --ink: #1d1d1f; --soft: #555; --ground: #fff; --line: #ddd; --mark: #eef6fb; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececee; --soft: #adb1b7; --ground: #15171a; --line: #3b3f45; --mark: #1b2a36; }
  svg { filter: invert(1) hue-rotate(180deg); }
}
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--ground); max-width: 72rem;
       margin: 2.5rem auto; padding: 0 1.25rem; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.25; margin-bottom: .25rem; } h2 { font-size: 1.2rem; margin-top: 2.4rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; } p, figcaption, dd { max-width: 56rem; }
.lead { color: var(--soft); margin-top: 0; } .cards { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.5rem 0; }
.card { flex: 1 1 10rem; border: 1px solid var(--line); border-radius: .6rem; padding: .8rem 1rem; }
.card b { display: block; font-size: 1.6rem; line-height: 1.2; } .card span { color: var(--soft); font-size: .9rem; }
.warning { border-left: .3rem solid #d55e00; padding: .4rem .8rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem; width: 100%; }
th, td { padding: .3rem .55rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:nth-child(-n+2), td:nth-child(-n+2), .text { text-align: left; }
th.number, td.number { text-align: right; }
th.long, td.long { text-align: left; white-space: normal; min-width: 12rem; } th { border-bottom: 2px solid #999; }
tr.cascade td { background: var(--mark); } svg { width: 100%; max-width: 52rem; min-width: 34rem; height: auto; }
figure { margin: 1rem 0; } figcaption, .note, dd { color: var(--soft); font-size: .9rem; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem 1rem; }
"""

SYMBOLS = {  # what stands in a table's head or a caption, and what it means
    "reach": "an example is charged for every tier it reached, members side by side; exit: for the tier where it "
    "leaves, alone, as in the paper; reach-serial: for every member of every tier it reached",
    "theta": "the share of a tier's members that must agree before the tier answers",
    "virtual": "the mean that the virtual clock predicts from a run without a delay",
    "diff": "how far the mean is from the predicted one",
    "comm": "mean communication of an example: the injected delay and the wire; one that stayed counts 0",
    "sent/ex": "bytes of the messages sent, per example",
    "deferred": "share of the examples that left the device",
    "degraded": "share of the examples that the device answered in the end, because the cloud had not by the deadline",
    "SLO": "service level objective: the latency that is to be kept",
    "p50": "half of the examples took no longer; p95, p99: 95%, 99% of them",
    "FLOPs": "floating-point operations of one example",
    "1.00x": "times the cost of the best single model",
    "drop-in": "the cheapest system that is shown to be as accurate as the best single model",
    "IDK": "a cascade of single models, each with a threshold of its own (Wang et al., 2018)",
    "ideal rule": "a rule that keeps exactly what a tier gets right: headroom, which nobody can have",
    "Pareto set": "the systems that no other beats in both accuracy and cost",
    "k": "a thousand; M a million, G a billion",
    "us": "microseconds; ms: milliseconds",
}


def glossary(body: str) -> str:
    """What the symbols in a page's text mean; "" where it has none."""
    text = html.unescape(re.sub(r"<(style|svg).*?</\1>|<[^>]+>", " ", body, flags=re.S))
    known = {
        word: about for word, about in SYMBOLS.items() if re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text)
    }
    terms = "".join(f"<dt>{html.escape(word)}</dt><dd>{html.escape(about)}</dd>" for word, about in known.items())
    return f"<h2 id=words>What the words mean</h2><dl>{terms}</dl>" if terms else ""


LONG = 40  # characters: a cell with more is put in several lines


def _breakable(cell: str) -> str:
    """A line may end after a comma: a list of models has no spaces."""
    return html.escape(cell).replace(",", ",<wbr>") if len(cell) > LONG else html.escape(cell)


def document(title: str, body: str) -> str:
    """A whole page, light or dark as its reader has it, with what its symbols mean."""
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport "
        f"content='width=device-width, initial-scale=1'><title>{html.escape(title)}</title><style>{CSS}</style></head>"
        f"<body><main>{body}{glossary(body)}</main></body></html>\n"
    )


def figure_html(title: str, svg: str, caption: str, level: int = 2) -> str:
    """A titled figure from SVG text."""
    heading = f"<h{level}>{html.escape(title)}</h{level}>"
    named = svg.replace("<svg ", f"<svg role=img aria-label='{html.escape(title)}' ", 1)
    scrolls = f"<div class=scroll tabindex=0 role=group aria-label='{html.escape(title)}'>{named}</div>"
    return f"{heading}<figure>{scrolls}<figcaption>{html.escape(caption)}</figcaption></figure>"


def table_html(head: Sequence[str], lines: Sequence[Sequence[str]], text_columns: int = 2) -> str:
    """A table that scrolls where it is too wide; the first `text_columns` to the left, long cells in several lines."""
    kinds = ["text" if place < text_columns else "number" for place in range(len(head))]
    for place in range(len(head)):
        if any(len(line[place]) > LONG for line in lines):
            kinds[place] = "long"

    def row(cells: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag} class={kind}>{_breakable(cell)}</{tag}>" for cell, kind in zip(cells, kinds, strict=True)
        )

    body = "".join(f"<tr>{row(line, 'td')}</tr>" for line in lines)
    return scrolling(f"<tr>{row(head, 'th')}</tr>{body}")


def scrolling(rows: str) -> str:
    """A table of these rows, which scrolls where it is too wide, by the keyboard too."""
    return f"<div class=scroll tabindex=0 role=group aria-label=Table><table>{rows}</table></div>"


OURS = "cascade of ensembles"


@dataclass(frozen=True, slots=True)
class Series:
    """One method's points, by rising cost; `names` are written beside them."""

    method: str
    costs: Sequence[float]
    accuracies: Sequence[float]
    names: Sequence[str] = ()


def aligned(header: Sequence[str], lines: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """Columns padded to their widest cell; the first `text_columns` to the left, numbers to the right."""
    cells = [list(header), *(list(line) for line in lines)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    padded = [
        "  ".join(
            cell.ljust(width) if column < text_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    return "\n".join([padded[0], "  ".join("-" * width for width in widths), *padded[1:]])


def _time(name: str) -> Callable[[DelayRow], str]:
    return lambda row: format_seconds(getattr(row, name), 4)


DELAY_COLUMNS: Mapping[str, Callable[[DelayRow], str]] = {  # header -> cell; `diff`: the measured mean from `virtual`
    "delay": lambda row: format_seconds(row.delay_s),
    "system": lambda row: row.system,
    "mean": _time("latency_mean_s"),
    "p50": _time("latency_p50_s"),
    "p95": _time("latency_p95_s"),
    "p99": _time("latency_p99_s"),
    "virtual": _time("predicted_mean_s"),
    "diff": lambda row: f"{(row.latency_mean_s - row.predicted_mean_s) / row.predicted_mean_s:+.1%}",
    "comm": lambda row: format_seconds(row.communication_mean_s, 4) if row.communication_mean_s else "-",
    "sent/ex": lambda row: f"{row.bytes_sent_per_example:.0f} B",
    "deferred": lambda row: f"{row.deferral_rate:.1%}",
    "accuracy": lambda row: f"{row.accuracy:.1%}",
}


def delay_cells(row: DelayRow) -> list[str]:
    """One row under DELAY_COLUMNS."""
    return [cell(row) for cell in DELAY_COLUMNS.values()]


ACHIEVED_HEADER = ("target delay", "system", "achieved mean", "achieved p99")


def achieved_cells(rows: Sequence[DelayRow]) -> list[list[str]]:
    """The injected delay, checked: a line under ACHIEVED_HEADER of each system that asks the cloud."""
    cells = (DELAY_COLUMNS["delay"], DELAY_COLUMNS["system"], _time("achieved_delay_s"), _time("achieved_delay_p99_s"))
    return [[cell(row) for cell in cells] for row in rows if row.deferral_rate > 0]


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
        blocks = [f"<h2>{html.escape(self.title)}</h2>", *(f"<p>{html.escape(line)}</p>" for line in self.verdict)]
        for figure in figures:
            blocks.append(figure_html(figure.title, figure.svg, figure.caption, level=3))
        for table in self.tables:
            note = f"<p class=note>{html.escape(table.note)}</p>" if table.note else ""
            body = table_html(table.header, table.lines, table.text_columns)
            blocks.append(f"<h3>{html.escape(table.title)}</h3>{body}{note}")
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
    data = sorted({_order(path)[0] for path in (folder / "parts").glob("*.html")})
    title = f"{TITLE}: {', '.join(filter(None, data)) or 'the paper'}"
    lead = f"<p class=lead>{written_by()}</p>"
    path = folder / "report.html"
    path.write_text(document(title, f"<h1>{html.escape(title)}</h1>{lead}{''.join(chapters)}"), "utf-8")
    return path


def written_by() -> str:
    """Which program wrote a page, and when."""
    return f"coe-sim {__version__}, {time.strftime('%-d %B %Y')}"


def _order(path: Path) -> tuple[str, int]:
    """Trace by trace, and the studies of each in the order of ORDER."""
    trace, _, study = path.stem.rpartition("-")
    return trace, ORDER.index(study) if study in ORDER else len(ORDER)


INSTALL = "pip install 'coe-cascade[sim]'"


class Progress:
    """Steps of known length, one after another: a bar on a terminal, and a line each when it is over.

    Raises:
        RuntimeMissing: tqdm is not installed.
    """

    def __init__(self, n_steps: int, stream: TextIO | None = None) -> None:
        self._tqdm = import_runtime("tqdm", "progress", INSTALL).tqdm
        self.stream = stream or sys.stderr
        self.n_steps = n_steps
        self.step = 0
        self._total = 0
        self._title = ""
        self._started = 0.0
        self._bar: Any = None

    def start(self, title: str, total: int) -> None:
        self.step += 1
        self._title, self._total, self._started = f"[{self.step}/{self.n_steps}] {title}", total, time.perf_counter()
        self._bar = self._tqdm(total=total, desc=self._title, file=self.stream, disable=None, leave=False)

    def show(self, done: int) -> None:
        self._bar.update(done - self._bar.n)

    def end(self) -> None:
        self._bar.close()
        print(
            f"{self._title}: {self._total} in {time.perf_counter() - self._started:.1f} s", file=self.stream, flush=True
        )


def require_matplotlib(options: argparse.Namespace) -> None:
    """Where pictures will be wanted, matplotlib must be there before the work, not missing after it."""
    if options.out:
        import_runtime("matplotlib", "report", INSTALL)


def finish_parts(options: argparse.Namespace, parts: Sequence[Part], content: Mapping[str, Any]) -> int:
    """The studies on standard output, and their files in the folder asked for."""
    if options.out:
        for part in parts:
            written = save(part, options.out)
        log(f"wrote {written[-1]}, its tables as CSV and its pictures as PNG")
    return print_result(options, content, "\n\n".join(part.as_text() for part in parts))


def finish(options: argparse.Namespace, name: str, content: Mapping[str, Any], text: str) -> int:
    """The JSON as `name` in the folder asked for, then the result on standard output."""
    if options.out:
        write_json(options.out, name, content)
    return print_result(options, content, text)


def print_result(options: argparse.Namespace, content: Mapping[str, Any], text: str) -> int:
    """JSON alone, or the text, on standard output."""
    print(json.dumps(content) if options.json else text, flush=True)
    return 0


def write_json(folder: Path, name: str, content: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    log(f"wrote {path}")


def log(line: str) -> None:
    """A line on standard error, not into the result."""
    print(f"coe-sim: {line}", file=sys.stderr)
