"""Files that are verified as they are read."""

from __future__ import annotations

import hashlib
from pathlib import Path

from coe.cascade.errors import ModelError


def read_file(path: Path, sha256: str | None, what: str, made_by: str | None = None) -> bytes:
    """The bytes of a file, which are then what is loaded: nothing can change in between.

    Args:
        sha256: hex digest it must have; None: not checked.
        what: what it is, for errors.
        made_by: the command that makes it, where it is not there to begin with.
    Raises:
        ModelError: missing, unreadable, or another checksum than declared.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        mend = "" if made_by is None else f" (it is not bundled; {made_by} makes it)"
        raise ModelError(f"{path}: {what} cannot be read: {error.strerror}{mend}") from None
    if sha256 is not None:
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise ModelError(
                f"{path}: expected sha256 {sha256[:16]}.., got {found[:16]}.. "
                f"(the file changed: fetch it again, or declare its new checksum)"
            )
    return data
