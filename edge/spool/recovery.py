"""After a crash: what the sinks have, from the marks set before it, and what they lack."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from ..sinks import Record, Sinks, Writer, as_record
from ..sinks.tail import Rereadable

if TYPE_CHECKING:
    from .store import Store


def mark(sinks: Sinks) -> str:
    """Where the records of all writers stand."""
    with sinks.still():
        return json.dumps([writer.mark() if isinstance(writer, Rereadable) else "" for writer in sinks.writers])


def sync(sinks: Sinks) -> None:
    """What was written stays, should the power fail now; where a writer knows how to see to that.

    Raises:
        OSError: the disk fails, for all of them.
    """
    writers = [writer for writer in sinks.writers if isinstance(writer, Rereadable)]
    failed: list[OSError] = []
    for writer in writers:
        try:
            try:
                writer.sync()
            except OSError:  # it may be just about to write, or to go on in another file
                with sinks.still():
                    writer.sync()
        except OSError as error:
            failed.append(error)
    if failed and len(failed) == len(writers):
        raise failed[0]


def write_what_is_missing(store: Store, sinks: Sinks) -> set[str]:
    """Write the outcomes and the corrections that a killed agent kept, and some writer lacks.

    One that cannot say what it has gets them again, under the same key.

    Returns:
        Ids of the examples whose outcome was in doubt, and is in the sinks now.
    Raises:
        OSError: no writer can be written. Where one of several cannot, the next start does it again.
    """
    unsure, answered = store.unsure(), store.answered()
    failed: list[OSError] = []
    for place, writer in enumerate(sinks.writers):
        try:
            for row in unsure:
                if not _has(writer, _mark_at(row.mark, place), row.key):
                    writer.write(as_record(row.local, sinks.labels))
            missing = set(writer.missing([row.key for row in answered])) if answered else set()
            for row in answered:
                if row.key in missing and row.answer is not None:
                    writer.write(as_record(row.answer, sinks.labels))
        except OSError as error:
            failed.append(error)
    if failed and len(failed) == len(sinks.writers):
        raise failed[0]
    if failed:
        return set()
    sync(sinks)
    for row in unsure:
        store.confirm(row.key)
    for row in answered:
        store.gone(row)
    return {row.local.id for row in unsure}


def decided(sinks: Sinks, marks: Mapping[str, str]) -> set[str]:
    """Of the ids, each with the mark set before it was taken, those with an outcome in the sinks.

    What one writer has and another lacks is copied; writers that cannot say what they have do not count.

    Raises:
        OSError: a writer cannot be written.
    """
    writers = sinks.writers
    places = [place for place, writer in enumerate(writers) if isinstance(writer, Rereadable)]
    done: set[str] = set()
    for mark in set(marks.values()):
        ids = {name for name, its in marks.items() if its == mark}
        found = [_first_records(writers[place], _mark_at(mark, place), ids) for place in places]
        for name in sorted(ids):
            record = next((records[name] for records in found if name in records), None)
            if record is None:
                continue
            for place, records in zip(places, found, strict=True):
                if name not in records:
                    writers[place].write(record)
            done.add(name)
    return done


def _has(writer: Writer, mark: str, key: str) -> bool:
    """Whether the outcome of the row with that key is among its records."""
    return isinstance(writer, Rereadable) and any(record.get("spooled") == key for record in writer.since(mark))


def _first_records(writer: Writer, mark: str, ids: Iterable[str]) -> dict[str, Record]:
    """The first outcome of each id from a mark on: what corrects one comes later."""
    wanted = set(ids)
    found: dict[str, Record] = {}
    assert isinstance(writer, Rereadable)
    for record in writer.since(mark):
        name = record.get("id")
        if name in wanted and name not in found and "corrects" not in record:
            found[str(name)] = record
    return found


def _mark_at(mark: str, place: int) -> str:
    """One writer's part of a mark; "" for a writer that was not there then."""
    try:
        return str(json.loads(mark)[place])
    except (ValueError, LookupError, TypeError):
        return ""
