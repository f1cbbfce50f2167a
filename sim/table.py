"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from coe.settings import format_seconds

from .records import Row


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


HEADER = ("delay", "system", "mean", "p50", "p95", "p99", "virtual", "diff", "comm", "sent/ex", "deferred", "accuracy")


def delay_table(rows: Sequence[Row]) -> str:
    """The delay study's rows. `virtual` is the prediction, `diff` how far the measured mean is from it."""
    return aligned(HEADER, [cells(row) for row in rows], text_columns=2)


def cells(row: Row) -> list[str]:
    """One row under HEADER."""
    difference = row.latency_mean_s - row.predicted_mean_s
    return [
        format_seconds(row.delay_s),
        row.system,
        format_seconds(row.latency_mean_s, 4),
        format_seconds(row.latency_p50_s, 4),
        format_seconds(row.latency_p95_s, 4),
        format_seconds(row.latency_p99_s, 4),
        format_seconds(row.predicted_mean_s, 4),
        f"{difference / row.predicted_mean_s:+.1%}",
        format_seconds(row.communication_mean_s, 4) if row.communication_mean_s else "-",
        f"{row.bytes_sent_per_example:.0f} B",
        f"{row.deferral_rate:.1%}",
        f"{row.accuracy:.1%}",
    ]


def achieved_table(rows: Sequence[Row]) -> str:
    """The injected delay, checked: target and achieved, for the systems that cross the hop."""
    lines = [
        [
            format_seconds(row.delay_s),
            row.system,
            format_seconds(row.achieved_delay_s, 4),
            format_seconds(row.achieved_delay_p99_s, 4),
        ]
        for row in rows
        if row.deferral_rate > 0
    ]
    return aligned(("target delay", "system", "achieved mean", "achieved p99"), lines, text_columns=2)
