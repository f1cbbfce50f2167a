"""The settings with which a remote tier is dialled over TLS.

- name: cloud
  address: gpu-host:8001
  tls: {ca: ca.pem, certificate: pi-1.pem, key: pi-1.key, server_name: gpu-host}   # or `tls: true`: the public CAs
  token_file: pi-1.token
"""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

from coe.cascade.errors import ConfigError
from coe.settings import Fields
from coe.wire.credentials import ClientSecurity, read_token


def read(fields: Fields, folder: Path) -> ClientSecurity:
    """`tls:` and `token_file:` of a remote tier, their files opened and checked.

    Args:
        fields: of the tier.
        folder: relative paths start here.
    """
    security = _read_tls(fields, folder)
    token_file = _file(fields, "token_file", folder)
    if token_file is None:
        return security
    try:
        read_token(token_file)
    except ConfigError as error:
        fields.wrong("token_file", str(error))
    _check_private(fields, "token_file", token_file)
    return ClientSecurity(
        tls=security.tls,
        ca=security.ca,
        certificate=security.certificate,
        key=security.key,
        token_file=token_file,
        server_name=security.server_name,
    )


def _read_tls(fields: Fields, folder: Path) -> ClientSecurity:
    if not fields.has("tls") or isinstance(fields.content["tls"], bool):
        return ClientSecurity(tls=fields.flag("tls", False))
    tls = fields.section("tls")
    security = ClientSecurity(
        tls=True,
        ca=_file(tls, "ca", folder),
        certificate=_file(tls, "certificate", folder),
        key=_file(tls, "key", folder),
        server_name=tls.text("server_name", ""),
    )
    tls.finish()
    if (security.certificate is None) != (security.key is None) and tls.has("certificate") != tls.has("key"):
        missing = "key" if tls.has("certificate") else "certificate"
        tls.wrong(missing, "expected certificate and key together, got one of them (add it)")
    _check_files(tls, security)
    return security


def _check_files(tls: Fields, security: ClientSecurity) -> None:
    """gRPC would say so only with the first call, and not what is wrong."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if security.ca is not None:
        try:
            context.load_verify_locations(security.ca)
        except (OSError, ValueError):  # ssl.SSLError is an OSError
            tls.wrong("ca", f"expected certificates in PEM, got {security.ca} which holds none")
    if security.certificate is not None and security.key is not None:
        try:
            context.load_cert_chain(security.certificate, security.key, password=lambda: "")
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            mend = "`coe-cloud certs device DIR NAME` makes both"
            message = f"expected the key of {security.certificate}, in PEM and without a password, got {security.key}"
            tls.wrong("key", f"{message}: {reason} ({mend})")
        _check_private(tls, "key", security.key)


def _file(fields: Fields, key: str, folder: Path) -> Path | None:
    """A file that is there and can be read; None where it is not set, or a finding."""
    reference = fields.text(key, "")
    if not reference:
        return None
    try:
        path = folder / Path(reference).expanduser()
        with path.open("rb"):
            return path
    except RuntimeError:
        fields.wrong(key, f'expected a path, got "{reference}" (no such user)')
    except OSError as error:
        fields.wrong(key, f"expected a readable file, got {path}: {error.strerror}")
    return None


def _check_private(fields: Fields, key: str, path: Path) -> None:
    if path.stat().st_mode & (stat.S_IRWXO | stat.S_IWGRP):
        fields.warn(key, f"{path} can be read or written by others on this machine (chmod o=,g-w {path})")
