"""The file of bearer tokens: device name -> sha256 of its token, so that who reads the file cannot call.

"pi-1": 9f86d08...                                          # 64 hex digits
"pi-2": [9f86d08..., 60303ae...]                            # two tokens, while one replaces the other
"pi-3": {sha256: 9f86d08..., quota: {examples_per_s: 5, burst: 20}}
"pi-4": {quota: {examples_per_s: 5}}                        # shows a certificate; this is its quota

A plain hash is right for these tokens, and for these alone: they are random, 256 bits, and cannot be guessed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coe.cascade.errors import ConfigError
from coe.settings import Fields, Report, read_yaml

from .quota import Rate, read_rate

HASH = re.compile(r"[0-9a-fA-F]{64}")
HEADER = "# device -> sha256 of its token; written by `coe-cloud certs token`, which does not keep comments\n"


@dataclass(frozen=True)
class Known:
    """A token's hash and whose it is."""

    digest: str
    device: str


@dataclass(frozen=True)
class Tokens:
    """What the file says: tokens by their hash, and the rates of devices that have their own."""

    by_hash: Mapping[str, Known] = field(default_factory=dict)
    quotas: Mapping[str, Rate] = field(default_factory=dict)


def hash_of(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def read_tokens(path: Path) -> Tokens:
    """The file's devices.

    Raises:
        ConfigError: every entry that is wrong. What stands where a hash belongs is never told: it may be a token.
    """
    report = Report(str(path))
    by_hash: dict[str, Known] = {}
    quotas: dict[str, Rate] = {}
    for name, entry in Fields(read_yaml(path), report).content.items():
        device = Fields(entry if isinstance(entry, Mapping) else {"sha256": entry}, report, str(name))
        if device.has("quota"):
            quotas[str(name)] = read_rate(device.section("quota"))
        if device.has("sha256") or not device.has("quota"):
            for digest in _hashes(device):
                known = by_hash.setdefault(digest, Known(digest, str(name)))
                if known.device != str(name):
                    device.wrong("sha256", f"expected a token of its own, got the one of {known.device}")
        device.finish()
    report.check()
    return Tokens(by_hash, quotas)


def _hashes(device: Fields) -> list[str]:
    value = device.raw("sha256", expected="the sha256 of its token")
    entries = value if isinstance(value, list) else [] if value is None else [value]
    good = [entry.lower() for entry in entries if isinstance(entry, str) and HASH.fullmatch(entry)]
    if len(good) < len(entries):
        device.wrong("sha256", "expected 64 hex digits, got something else (`coe-cloud certs token` makes them)")
    return good


def add_token(path: Path, name: str, *, force: bool = False) -> str:
    """A new token for `name`; its hash goes to the file, its other settings there stay.

    Args:
        force: replace the tokens it has.
    Raises:
        ConfigError: it has one already, or the file has findings.
    """
    with _locked(path.parent):
        devices: dict[str, Any] = {}
        if path.exists():
            read_tokens(path)
            devices = {str(key): value for key, value in read_yaml(path).items()}
        known = devices.get(name)
        if known is not None and not force and not (isinstance(known, Mapping) and "sha256" not in known):
            mend = "--force replaces it; a second one can be added to the file by hand"
            raise ConfigError([f'expected a device without a token, got "{name}" which has one ({mend})'], str(path))
        token = secrets.token_urlsafe(32)
        digest = hash_of(token)
        devices[name] = {**known, "sha256": digest} if isinstance(known, Mapping) else digest
        lines = [f"{json.dumps(key)}: {json.dumps(value)}\n" for key, value in devices.items()]
        write_private(path, (HEADER + "".join(lines)).encode(), force=True)
    return token


def write_private(path: Path, content: bytes, *, force: bool) -> None:
    """A file that only its owner can read, from its first byte on; with `force` in place of the one that is there.

    Raises:
        FileExistsError: it is there, and not `force`.
    """
    target = path.with_name(f".{path.name}.{os.getpid()}.new") if force else path
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        with os.fdopen(os.open(target, flags, 0o600), "wb") as file:
            file.write(content)
        if force:
            os.replace(target, path)
    except BaseException as error:
        if force and not isinstance(error, FileExistsError):
            target.unlink(missing_ok=True)
        raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One program at a time, however many hand out tokens."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)
