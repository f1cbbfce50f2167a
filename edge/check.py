"""`coe-edge --dry-run`: would it run? Config and models are loaded for real, the cloud is asked who it is."""

from __future__ import annotations

import time

from coe.assembly import open_cascade
from coe.cascade.errors import TierError
from coe.settings import format_seconds
from coe.wire.remote import remote_of

from .config import AgentConfig
from .sources import open_source


def check(config: AgentConfig) -> int:
    """0 if all is well, 1 if a server cannot be reached.

    Raises:
        ConfigError, ModelError, RuntimeMissing: what has to be mended first.
    """
    task = config.cascade.task
    print(f"task {task.name}: {len(task.labels)} labels, fingerprint {task.fingerprint}")
    open_source(config.source, once=True)
    cascade = open_cascade(config.cascade, print)
    code = 0
    try:
        for tier in cascade.tiers:
            remote = remote_of(tier)
            if remote is None:
                continue
            started = time.perf_counter()
            try:
                told = remote.metadata()
            except TierError as error:
                print(f"tier {tier.name}: FAILED {error}")
                code = 1
                continue
            took = format_seconds(time.perf_counter() - started)
            print(f"tier {tier.name}: answers in {took}: {told.name} on {told.platform or 'an unnamed platform'}")
    finally:
        cascade.close()
    print("ready" if code == 0 else "not all tiers can be reached; the device would answer by itself")
    return code
