"""SQLite files of ours: locked, opened, created, checked, and renamed when damaged."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from coe.cascade.errors import ConfigError


class FileLock:
    """The lock of `path`, a file of the setting `field`, from here to `close`.

    Raises:
        ConfigError: another process holds it, or the folder cannot be written.
    """

    def __init__(self, path: Path, field: str) -> None:
        self.path = path.with_name(path.name + ".lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(
                [f"{field}: {path.parent} cannot be written: {error.strerror} (set `state:` to a folder that can)"]
            ) from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._descriptor, 20, 0).decode(errors="replace").strip()
            os.close(self._descriptor)
            who = f"coe-edge, process {holder}" if holder else "coe-edge"
            raise ConfigError(
                [f"{field}: {path} is in use by another {who} (stop it, or set `state:` to another folder)"]
            ) from None
        with contextlib.suppress(OSError):  # a full disk: it holds all the same
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


PAGE_BYTES = 4096
OURS = 0x636F6573  # application id: "coes"
BUSY_S = 5.0
INCREMENTAL = 2
DISK_FULL = "disk full"

DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


@dataclass(frozen=True)
class DatabaseFormat:
    """One kind of file: `field` of the config names it, `schema` makes it, `version` is the schema's."""

    field: str
    version: int
    schema: str


def connect(path: Path, kind: DatabaseFormat, sync: str) -> sqlite3.Connection:
    """The file at `path`, made where there is none; for one process at a time that writes, and any that read.

    Args:
        sync: "full" or "normal".
    Raises:
        ConfigError: it belongs to something else, or to a newer coe-edge.
        sqlite3.Error: it cannot be opened, or is damaged (`is_damaged`).
    """
    db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        version = _checked_version(db, path, kind)
        db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        db.execute("PRAGMA journal_mode = WAL").fetchall()
        db.execute(f"PRAGMA synchronous = {sync.upper()}")
        if db.execute("PRAGMA auto_vacuum").fetchone()[0] != INCREMENTAL:
            db.execute(f"PRAGMA auto_vacuum = {INCREMENTAL}")
            db.execute("VACUUM")
        if version == 0:
            db.executescript(
                f"BEGIN; {kind.schema} PRAGMA application_id = {OURS}; PRAGMA user_version = {kind.version}; COMMIT;"
            )
    except BaseException:
        db.close()
        raise
    return db


def connect_or_anew(path: Path, kind: DatabaseFormat, sync: str) -> tuple[sqlite3.Connection, Path | None]:
    """The same; a damaged file is set aside, and a new one made: then, where the old one is.

    Raises:
        ConfigError: as `connect`, or the file cannot be opened.
    """
    try:
        try:
            return connect(path, kind, sync), None
        except sqlite3.Error as error:
            if not is_damaged(error):
                raise
            aside = set_aside(path)
            return connect(path, kind, sync), aside
    except (sqlite3.Error, OSError) as error:
        raise ConfigError([f"{kind.field}: {path} cannot be opened: {error}"]) from None


def read_only(path: Path) -> sqlite3.Connection:
    """The file at `path`, whoever writes it meanwhile.

    Raises:
        sqlite3.Error: it cannot be opened.
    """
    place = path.absolute().as_uri()
    try:
        db = sqlite3.connect(f"{place}?mode=ro", timeout=BUSY_S, uri=True, isolation_level=None)
        db.execute("PRAGMA user_version").fetchone()
    except sqlite3.OperationalError:  # nobody writes it, and we may not make the log it is read with
        if log_of(path).exists():
            raise
        db = sqlite3.connect(f"{place}?immutable=1", uri=True, isolation_level=None)
    return db


def _checked_version(db: sqlite3.Connection, path: Path, kind: DatabaseFormat) -> int:
    """Of the schema in the file; 0 where there is none yet."""
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    if version > kind.version:
        raise ConfigError(
            [f"{kind.field}: {path} was written by a newer coe-edge (format {version}; this one knows {kind.version})"]
        )
    is_ours = db.execute("PRAGMA application_id").fetchone()[0] == OURS
    if not is_ours and db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise ConfigError([f"{kind.field}: {path} is a database of something else (set another path)"])
    return version


def set_aside(path: Path) -> Path:
    """Rename a damaged file and its log, so that a new one can be made; its new name."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    aside = path.with_name(f"{path.name}.damaged-{stamp}")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{stamp}-{number}")
    os.rename(path, aside)
    with contextlib.suppress(FileNotFoundError):
        os.rename(f"{path}-wal", f"{aside}-wal")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{path}-shm")
    return aside


def is_damaged(error: sqlite3.Error) -> bool:
    return _code(error) in DAMAGED


def is_full(error: sqlite3.Error) -> bool:
    return _code(error) == sqlite3.SQLITE_FULL


def describe_error(error: sqlite3.Error) -> str:
    return DISK_FULL if is_full(error) else str(error)


def _code(error: sqlite3.Error) -> int:
    code: int = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the extended code's first byte is the primary one
    return code


def log_of(path: Path) -> Path:
    """The file's write-ahead log."""
    return path.with_name(path.name + "-wal")


def ballast_of(path: Path) -> Path:
    """A file with nothing in it, given up when the disk is full, so that what is left to do can be done."""
    return path.with_name(path.name + ".ballast")


def size_of(path: Path) -> int:
    """Bytes of a file, its log and its ballast."""
    total = 0
    for part in (path, log_of(path), ballast_of(path)):
        with contextlib.suppress(FileNotFoundError):
            total += part.stat().st_size
    return total
