"""A server's certificate, its key and the CA of its clients, read and checked before anything is served with them."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from coe.cascade.errors import ConfigError

SOON = timedelta(days=14)
MAKE = "`coe-cloud certs init DIR` makes one"

Key = Literal["certificate", "key", "client_ca"]


@dataclass(frozen=True)
class Remark:
    """What was found wrong with one of the files.

    Args:
        about: its setting.
        is_fatal: it cannot be served with; otherwise a warning.
    """

    about: Key
    message: str
    is_fatal: bool = True


@dataclass(frozen=True)
class Material:
    """PEM, as the TLS libraries take it."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None


def load_material(certificate: Path, key: Path, client_ca: Path | None) -> Material:
    """The three files.

    Raises:
        ConfigError: they cannot be served with.
    """
    material, remarks = inspect(certificate, key, client_ca)
    if material is None:
        raise ConfigError([f"{remark.about}: {remark.message}" for remark in remarks if remark.is_fatal])
    return material


def inspect(certificate: Path, key: Path, client_ca: Path | None) -> tuple[Material | None, list[Remark]]:
    """The three files, and everything there is to say about them; None where one of the remarks is fatal."""
    remarks: list[Remark] = []
    contents = {
        "certificate": _read(certificate, "certificate", remarks),
        "key": _read(key, "key", remarks),
        "client_ca": b"" if client_ca is None else _read(client_ca, "client_ca", remarks),
    }
    chain = _certificates(contents["certificate"], certificate, "certificate", remarks)
    if chain:
        _check_dates(chain[0], certificate, "certificate", remarks)
        _check_names(chain[0], certificate, remarks)
    _check_key(contents["key"], key, chain[0] if chain else None, remarks)
    if client_ca is not None:
        for authority in _certificates(contents["client_ca"], client_ca, "client_ca", remarks):
            _check_authority(authority, client_ca, remarks)
    if any(remark.is_fatal for remark in remarks):
        return None, remarks
    given = None if client_ca is None else contents["client_ca"]
    return Material(contents["certificate"], contents["key"], given), remarks


def _read(path: Path, about: Key, remarks: list[Remark]) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        remarks.append(Remark(about, f"expected a readable file, got {path}: {error.strerror} ({MAKE})"))
        return b""


def _certificates(pem: bytes, path: Path, about: Key, remarks: list[Remark]) -> list[x509.Certificate]:
    if not pem and any(remark.about == about for remark in remarks):
        return []  # said already: it cannot be read
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        remarks.append(Remark(about, f"expected certificates in PEM, got {path} which holds none ({MAKE})"))
        return []


def _check_dates(certificate: x509.Certificate, path: Path, about: Key, remarks: list[Remark]) -> None:
    now = datetime.now(UTC)
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if last <= now:
        remarks.append(
            Remark(about, f"expected one that is valid today, got {path} which expired {last:%F} (renew it)")
        )
    elif first > now:
        mend = "check this machine's clock"
        message = f"expected one that is valid today, got {path} which is valid from {first:%F} ({mend})"
        remarks.append(Remark(about, message))
    elif last <= now + SOON:
        remarks.append(Remark(about, f"{path} expires {last:%F} (renew it; no restart is needed)", is_fatal=False))


def _check_names(certificate: x509.Certificate, path: Path, remarks: list[Remark]) -> None:
    try:
        certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        message = f"{path} has no subject alternative names, so clients will not believe it ({MAKE} with --host)"
        remarks.append(Remark("certificate", message, is_fatal=False))
    except ValueError:
        remarks.append(Remark("certificate", f"expected extensions that can be read, got {path} ({MAKE})"))


def _check_key(pem: bytes, path: Path, certificate: x509.Certificate | None, remarks: list[Remark]) -> None:
    if not pem and any(remark.about == "key" for remark in remarks):
        return
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError:
        mend = "openssl pkey -in KEY -out NEW takes the password off"
        remarks.append(Remark("key", f"expected a key without a password, got {path} which has one ({mend})"))
        return
    except (ValueError, UnsupportedAlgorithm):
        remarks.append(Remark("key", f"expected a private key in PEM, got {path} which holds none ({MAKE})"))
        return
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        message = f"expected an EC or RSA key, got {path} of another kind, which gRPC cannot serve with ({MAKE})"
        remarks.append(Remark("key", message))
    elif certificate is not None and _public(key) != _public(certificate):
        message = f"expected the key of `certificate`, got {path} which is of another one (give the two of a pair)"
        remarks.append(Remark("key", message))
    if path.stat().st_mode & (stat.S_IRWXO | stat.S_IWGRP):
        message = f"{path} can be read or written by others on this machine (chmod o=,g-w {path})"
        remarks.append(Remark("key", message, is_fatal=False))


def _public(holder: x509.Certificate | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return holder.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _check_authority(certificate: x509.Certificate, path: Path, remarks: list[Remark]) -> None:
    try:
        is_authority = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        is_authority = False
    if not is_authority:
        name = certificate.subject.rfc4514_string()
        message = f'expected certificates of a CA (ca:true), got {path} with "{name}" which is none (give ca.pem)'
        remarks.append(Remark("client_ca", message))
    _check_dates(certificate, path, "client_ca", remarks)
