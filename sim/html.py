"""Pages that stand alone: one style, tables and figures inside the file, nothing fetched."""

from __future__ import annotations

import html
from collections.abc import Sequence

CSS = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, sans-serif; color: #1d1d1f; background: #fff; max-width: 72rem; margin: 2.5rem auto;
       padding: 0 1.25rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin-bottom: .25rem; } h2 { font-size: 1.2rem; margin-top: 2.4rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; } p, figcaption { max-width: 56rem; }
.lead { color: #555; margin-top: 0; } .cards { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.5rem 0; }
.card { flex: 1 1 10rem; border: 1px solid #ddd; border-radius: .6rem; padding: .8rem 1rem; }
.card b { display: block; font-size: 1.6rem; line-height: 1.2; } .card span { color: #555; font-size: .9rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem; width: 100%; }
th, td { padding: .3rem .55rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e6e6e6; }
th:nth-child(-n+2), td:nth-child(-n+2), .text { text-align: left; }
th.number, td.number { text-align: right; }
th.long, td.long { text-align: left; white-space: normal; min-width: 12rem; } th { border-bottom: 2px solid #999; }
tr.cascade td { background: #eef6fb; } svg { max-width: 100%; height: auto; } figure { margin: 1rem 0; }
figcaption, .note { color: #555; font-size: .9rem; }
"""


LONG = 40  # characters: a cell with more is put in several lines


def _breakable(cell: str) -> str:
    """A line may end after a comma: a list of models has no spaces."""
    return html.escape(cell).replace(",", ",<wbr>") if len(cell) > LONG else html.escape(cell)


def document(title: str, body: str) -> str:
    """A whole page."""
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport "
        f"content='width=device-width, initial-scale=1'><title>{html.escape(title)}</title><style>{CSS}</style></head>"
        f"<body>{body}</body></html>\n"
    )


def text_html(text: str) -> str:
    return html.escape(text)


def figure_html(title: str, svg: str, caption: str, level: int = 2) -> str:
    """A titled figure from SVG text."""
    heading = f"<h{level}>{html.escape(title)}</h{level}>"
    return f"{heading}<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"


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
    return f"<div class=scroll><table><tr>{row(head, 'th')}</tr>{body}</table></div>"
