"""From when until when a certificate holds, read from its bytes: the standard library tells it of CAs alone."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.S)
SEQUENCE, UTC_TIME, GENERALIZED_TIME, VERSION = 0x30, 0x17, 0x18, 0xA0


def validities(path: Path) -> list[tuple[datetime, datetime]]:
    """Of every certificate in a PEM file, in its order: from, until.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds none, or one that is damaged.
    """
    found = [ssl.PEM_cert_to_DER_cert(text.decode("ascii")) for text in PEM.findall(path.read_bytes())]
    if not found:
        raise ValueError("it holds no certificate")
    return [validity(der) for der in found]


def validity(der: bytes) -> tuple[datetime, datetime]:
    """Of one certificate (X.509, RFC 5280 section 4.1).

    Raises:
        ValueError: these are not a certificate's bytes.
    """
    try:
        (_, certificate), *_ = _parts(der)
        (_, to_be_signed), *_ = _parts(certificate)
        fields = list(_parts(to_be_signed))
        at = 1 if fields[0][0] == VERSION else 0  # then: serial number, algorithm, issuer, validity
        tag, times = fields[at + 3]
        if tag != SEQUENCE:
            raise ValueError
        since, until = (_time(tag, value) for tag, value in _parts(times))
    except (IndexError, ValueError):
        raise ValueError("it is no certificate") from None
    return since, until


def _parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of the DER values that follow one another."""
    at = 0
    while at < len(data):
        tag, length = data[at], data[at + 1]
        at += 2
        if length & 0x80:
            n_digits = length & 0x7F
            length = int.from_bytes(data[at : at + n_digits], "big")
            at += n_digits
        if at + length > len(data):
            raise ValueError("it ends early")
        yield tag, data[at : at + length]
        at += length


def _time(tag: int, value: bytes) -> datetime:
    text = value.decode("ascii")
    if tag == UTC_TIME:  # two digits of the year: 1950 to 2049
        text = ("19" if int(text[:2]) >= 50 else "20") + text
    elif tag != GENERALIZED_TIME:
        raise ValueError("it is no time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
