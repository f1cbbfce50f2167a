"""What is written on this device's disk, how much of it, and for how long."""

from __future__ import annotations

from collections.abc import Iterator

from ...config import AgentConfig
from ...sinks import SinkConfig
from ...spool.config import SpoolConfig
from .statement import Statement

NO_SECRET = "It is not encrypted: protect the disk, or the file, where that matters."


def disk(config: AgentConfig) -> Iterator[Statement]:
    for sink in config.sinks:
        if sink.path is not None:
            yield Statement("kept", "sink", f"{sink.path}: each decision's record, no example, {_bound_of(sink)}.")
    harvest = config.field.harvest
    if harvest is not None:
        full = "the oldest make room" if harvest.drop_oldest else "then no more are kept"
        text = (
            f"{harvest.path}: EXAMPLES that were sent, with the answers, for training: up to {harvest.max_count:,} and "
            f"{harvest.max_bytes / 1e6:g} MB; {full}. They stay until somebody removes them. {NO_SECRET}"
        )
        yield Statement("kept", "harvest", text)
    if config.spool is not None:
        yield _spooled(config.spool)
    if config.field.audit is not None:
        yield Statement("kept", "audit", f"{config.state / 'audit.json'}: counts of the audit, by label; no example.")
    if any(source.remember for source in config.source.parts or (config.source,)):
        text = (
            f"{config.state / 'folders.db'}: the names of files that were decided, as long as they are in their folder"
        )
        yield Statement("kept", "source", f"{text}; no example.")
    if all(sink.path is None for sink in config.sinks) and harvest is None:
        yield Statement("kept", "sink", "Decisions go to standard output: what is kept of them is up to who reads it.")


def _bound_of(sink: SinkConfig) -> str:
    if sink.rotation is not None:
        size = f"{sink.rotation.max_bytes / 2**20:g} MB"
        return f"up to {size} in one file and {sink.rotation.keep} older files; older ones are removed"
    if sink.max_rows is not None:
        return f"the latest {sink.max_rows:,}; older ones are removed"
    return "without bound: nothing is removed"


def _spooled(spool: SpoolConfig) -> Statement:
    text = (
        f"{spool.path}: EXAMPLES that a server should have answered and did not, as they came, until it has answered: "
        f"at most {spool.max_age_s / 3600:g} hours, {spool.max_count:,} examples and {spool.max_bytes / 1e6:g} MB; "
        f"what is too much goes, the {spool.drop} first. {NO_SECRET}"
    )
    return Statement("kept", "spool", text)
