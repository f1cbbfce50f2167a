"""`coe-edge spool`: the state of the spool, a copy of its examples, and how to send or drop them."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

from coe.cascade.errors import ConfigError
from coe.models.inputs import suffix_of
from edge.config import AgentConfig, default_config, read_config
from edge.sinks import as_record
from edge.sqlite_file import read_only
from edge.tally import format_bytes

from .config import SpoolConfig
from .database import COLUMNS, SpoolRow, as_row
from .store import SpoolStore, read_status

LIST = "spool.jsonl"
SAFE_ID = re.compile(r"[^A-Za-z0-9._-]+")


def spool_command(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    path = options.config or default_config()
    config = read_config(path)
    spool = config.spool
    if options.state is not None and spool is not None:
        spool = replace(spool, path=options.state / "spool.db")
    if spool is None:
        raise ConfigError(["when_unavailable: expected spool, got another (without it there is no spool)"], str(path))
    if not spool.path.is_file():
        if options.what == "status" and options.json:
            print(json.dumps({"file": str(spool.path), "exists": False}))
        else:
            print(f"nothing was ever spooled: there is no {spool.path}")
        return 0
    if options.what == "status":
        return _status(spool, options.json)
    if options.what == "export":
        return _export(spool, options.folder, config.cascade.task.labels, options.json)
    if options.what == "send":
        return _send(replace(config, spool=replace(spool, send_between=()), watch=None), options.wait, options.json)
    return _clear(spool, options.yes, options.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="coe-edge spool", description="Show, copy, send or drop the examples that wait for a later answer."
    )
    commands = parser.add_subparsers(dest="what", required=True, metavar="status | export | send | clear")
    each = argparse.ArgumentParser(add_help=False)
    each.add_argument("--config", type=Path, help="YAML file; default: the bundled digits")
    each.add_argument("--state", type=Path, help="folder of the spool; default: the config's")
    each.add_argument("--json", action="store_true", help="print JSON, for programs")
    commands.add_parser("status", parents=[each], help="show how full it is, and what became of its examples")
    export = commands.add_parser("export", parents=[each], help="copy all examples that wait into a folder")
    export.add_argument("folder", type=Path, metavar="DIR", help=f"new, or empty; its {LIST} lists the examples")
    send = commands.add_parser("send", parents=[each], help="send all examples that wait; no agent may be running")
    send.add_argument("--wait", type=float, default=60.0, metavar="S", help="longest time for it; default: 60 s")
    clear = commands.add_parser("clear", parents=[each], help="drop all examples; no agent may be running")
    clear.add_argument("--yes", action="store_true", help="without this, only say how many would be dropped")
    return parser


@contextmanager
def _reading(config: SpoolConfig) -> Iterator[sqlite3.Connection]:
    """The spool's file, open to read; an error of it is a ConfigError."""
    try:
        with closing(read_only(config.path)) as db:
            yield db
    except sqlite3.Error as error:
        raise ConfigError([f"spool.path: {config.path} cannot be read: {error}"]) from None


def _status(config: SpoolConfig, as_json: bool) -> int:
    with _reading(config) as db:
        status = read_status(db, config.path)
    if as_json:
        bounds = {"max_bytes": config.max_bytes, "max_count": config.max_count}
        print(json.dumps({"file": str(config.path), "exists": True, **status.facts(), **bounds}))
        return 0
    disk = os.statvfs(config.path.parent)
    age = "" if status.oldest_s is None else f", the oldest for {_duration(status.oldest_s)}"
    dropped = ", ".join(f"{cause}: {n:,}" for cause, n in status.dropped.items())
    print(f"{config.path}")
    print(f"{status.n_waiting:,} wait for an answer{age}")
    if status.n_answered:
        print(f"{status.n_answered:,} answered, and not written to the sinks yet")
    print(
        f"{status.n_corrected:,} corrected, {status.n_refused:,} refused by the servers, of {status.n_offered:,} ever"
    )
    print(f"{status.n_dropped:,} dropped" + (f" ({dropped})" if dropped else ""))
    print(f"{format_bytes(status.n_bytes)} of {format_bytes(config.max_bytes)}; at most {config.max_count:,} examples")
    print(f"disk: {status.state}, {format_bytes(disk.f_bavail * disk.f_frsize)} free")
    if status.last_error:
        print(f"the latest call without an answer: {status.last_error}")
    return 0


def _export(config: SpoolConfig, folder: Path, labels: tuple[str, ...], as_json: bool) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_empty = not any(folder.iterdir())
    except OSError as error:
        raise ConfigError([f"{folder}: cannot be made: {error.strerror}"]) from None
    if not is_empty:
        raise ConfigError([f"{folder}: expected a new folder or an empty one (choose another)"])
    n = 0
    with (folder / LIST).open("w", encoding="utf-8") as listed:
        for row in _rows(config):
            suffix = ".npy" if row.kind == "npy" else suffix_of(row.payload)
            name = f"{row.seq:08d}-{SAFE_ID.sub('_', row.local.id)[:80].removesuffix(suffix)}{suffix}"
            (folder / name).write_bytes(row.payload)
            record = {
                "file": name,
                "key": row.key,
                "attempts": row.attempts,
                "age_s": round(row.age_s, 3),
                "local": as_record(row.local, labels),
                "answer": None if row.answer is None else as_record(row.answer, labels),
            }
            listed.write(json.dumps(record) + "\n")
            n += 1
    print(json.dumps({"exported": n, "folder": str(folder)}) if as_json else f"{n:,} examples copied to {folder}")
    return 0


def _rows(config: SpoolConfig) -> Iterator[SpoolRow]:
    """All rows that are not damaged, each read by itself: a long copy blocks nobody."""
    with _reading(config) as db:
        facts = dict(db.execute("SELECT name, value FROM facts"))
        seq = -math.inf
        query = f"SELECT {COLUMNS} FROM rows WHERE seq > ? ORDER BY seq LIMIT 1"
        while (found := db.execute(query, (seq,)).fetchone()) is not None:
            seq = found[0]
            try:
                row = as_row(found, f"{facts['id']}-{seq}", float(facts["clock"]))
            except (ValueError, TypeError, KeyError):
                continue
            yield row


def _send(config: AgentConfig, wait_s: float, as_json: bool) -> int:
    """0 if nothing waits any more."""
    from edge.session import AgentSession

    with AgentSession(config) as session:
        assert session.spool is not None
        before = session.agent.tally.n_corrected
        left = session.spool.drain(wait_s)
        n = session.agent.tally.n_corrected - before
    out = sys.stderr if any(sink.prints for sink in config.sinks) else sys.stdout
    text = json.dumps({"corrected": n, "left": left}) if as_json else f"{n:,} examples corrected, {left:,} still wait"
    print(text, file=out)
    return 1 if left else 0


def _clear(config: SpoolConfig, is_sure: bool, as_json: bool) -> int:
    store = SpoolStore(config, lambda event: None)
    try:
        status = store.status()
        n = 0 if status is None else status.n_waiting + status.n_answered
        if not is_sure:
            raise ConfigError([f"{n:,} examples would be dropped for good (add --yes)"])
        n = store.clear()
    finally:
        store.close()
    print(json.dumps({"cleared": n}) if as_json else f"{n:,} examples dropped")
    return 0


def _duration(seconds: float) -> str:
    """ "45 s", "12 min", "5.2 h", "3.4 days" that an agent ran."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
