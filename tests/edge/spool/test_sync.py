"""Flushing the sinks while another thread writes costs no record."""

from __future__ import annotations

import sqlite3
import threading

from edge.sinks import Event, Sinks
from edge.sinks.jsonlines import JsonLinesFile, Rotation
from edge.sinks.sqlite import SqliteWriter


def test_a_flush_while_records_are_written_loses_none(tmp_path):
    rotated = JsonLinesFile(tmp_path / "out.jsonl", Rotation(max_bytes=2000, keep=1000))
    sinks = Sinks([rotated, SqliteWriter(tmp_path / "out.db")], ("a",))
    is_over = threading.Event()
    failures: list[BaseException] = []

    def flush() -> None:
        try:
            while not is_over.is_set():
                sinks.sync()
                sinks.mark()
        except Exception as error:  # noqa: BLE001 - the test raises it
            failures.append(error)

    flusher = threading.Thread(target=flush)
    flusher.start()
    for number in range(2000):
        sinks.write_event(Event("n", {"number": number}))
    is_over.set()
    flusher.join()
    assert failures == []
    assert [status.dropped for status in sinks.health()] == [0, 0]
    sinks.close()
    assert sum(len(part.read_text().splitlines()) for part in tmp_path.glob("out.jsonl*")) == 2000
    db = sqlite3.connect(tmp_path / "out.db")
    assert db.execute("SELECT count(*) FROM events").fetchone()[0] == 2000
    db.close()
