"""`coe-cloud certs`: a development CA, certificates of servers and devices, bearer tokens."""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import re
import secrets
import ssl
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from coe.cascade.errors import ConfigError
from coe.config import read_yaml
from coe.models.loading import import_runtime

from .config import CLOUD
from .identity import hash_of, read_tokens

LOOPBACK = ("localhost", "127.0.0.1", "::1")
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
TAKEN = ("ca", "server")  # their files are in the same folder
HEADER = "# device -> sha256 of its token; written by `coe-cloud certs token`, which does not keep comments\n"

DESCRIPTION = """Make a CA, certificates that it signs, and bearer tokens, in one folder. Keys are readable by
their owner alone and never overwritten without --force. Keep ca.key where no server and no device can read it."""


def add_parser(subparsers: Any) -> None:
    """Add the command `certs` to a program's commands."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "certs", help="make a CA, certificates and tokens", description=DESCRIPTION
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="what")
    init = actions.add_parser("init", help="a CA, and a server's certificate")
    server = actions.add_parser("server", help="a server's certificate of the CA in DIR, such as to renew it")
    device = actions.add_parser("device", help="a device's certificate")
    token = actions.add_parser("token", help="a device's bearer token: printed once, kept as a hash in tokens.yaml")
    for action in (init, server, device, token):
        action.add_argument("folder", type=Path, metavar="DIR", help="folder of the files")
        action.add_argument("--force", action="store_true", help="replace files that exist")
    for action in (device, token):
        action.add_argument("name", metavar="NAME", type=_device_name, help="name of the device")
    page_help = (
        "address of the server's page, https://HOST:PORT/device: also print a QR code that opens it with the token"
    )
    token.add_argument("--page", metavar="URL", help=page_help)
    for action in (init, server):
        action.add_argument(
            "--host",
            action="append",
            default=[],
            help="DNS name or IP address of the server, as clients call it; may be repeated. Loopback is always in",
        )
    for action in (init, server, device):
        action.add_argument("--days", type=_days, default=365, help="how long the certificate is valid; default: 365")


def run(options: argparse.Namespace) -> int:
    """Run the command; its exit code.

    Raises:
        ConfigError: a file exists already, or is missing.
        RuntimeMissing: no `cryptography`.
    """
    folder: Path = options.folder
    if options.action == "token":
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = add_token(folder / "tokens.yaml", options.name, force=options.force)
        print(made)
        note = f"the line above is its token, shown once; {folder}/tokens.yaml has its hash (security.tokens)"
        print(f"{options.name}: {note}", file=sys.stderr)
        if options.page is not None:
            from cloud.phone_address import qr_code, with_token

            url = with_token(options.page, made)
            print(qr_code(url) or f"open {url} (pip install segno draws it as a QR code)", file=sys.stderr)
        return 0
    import_runtime("cryptography", "certificates", CLOUD)
    from . import authority

    if options.action == "device":
        name: str = options.name
        device = authority.make_device(authority.read_authority(folder), name, options.days)
        device.write(folder, name, force=options.force)
        print(f"{folder}/{name}.pem, {name}.key: device {name}, until {device.certificate.not_valid_after_utc:%F}")
        print("on the device, with ca.pem beside them (in its remote tier):")
        print(f"  tls: {{ca: ca.pem, certificate: {name}.pem, key: {name}.key}}")
        return 0
    if options.action == "init":
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for taken in ("ca.key", "server.key"):
            if (folder / taken).exists() and not options.force:
                fix = "--force makes a new CA, of which every device needs a new certificate; `certs server` renews"
                raise ConfigError([f"expected no key yet, got {folder / taken} ({fix})"])
        ca = authority.make_authority(days=max(authority.CA_DAYS, options.days))
    else:
        ca = authority.read_authority(folder)
    hosts = list(dict.fromkeys([*options.host, *LOOPBACK]))
    server = authority.make_server(ca, hosts, options.days)
    if options.action == "init":
        ca.write(folder, "ca", force=options.force)
        until = ca.certificate.not_valid_after_utc
        print(f"{folder}/ca.pem, ca.key: the CA, until {until:%F} (keep ca.key to yourself)")
        print(f"a phone installs the CA from the running server, which says how: https://{hosts[0]}:PORT/ca. SHA-256:")
        print(f"  {digest_of((folder / 'ca.pem').read_bytes())}")
    server.write(folder, "server", force=options.force)
    until = server.certificate.not_valid_after_utc
    print(f"{folder}/server.pem, server.key: for {', '.join(hosts)}, until {until:%F}")
    print("in the server's config (client_ca: devices must show a certificate, too):")
    print("  security:")
    files = (("certificate", "server.pem"), ("key", "server.key"), ("client_ca", "ca.pem"))
    print(f"    tls: {{{', '.join(f'{key}: {folder.resolve() / name}' for key, name in files)}}}")
    return 0


def digest_of(pem: bytes) -> str:
    """SHA-256 of a certificate, as phones show it."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.decode("ascii"))).digest().hex(":").upper()


def add_token(path: Path, name: str, *, force: bool = False) -> str:
    """A new token for `name`; its hash goes to the file, its other settings there stay.

    Args:
        force: replace the tokens it has.
    Raises:
        ConfigError: it has one already, or the file has findings.
    """
    with ExitStack() as locked:  # one program at a time changes the folder's tokens
        opened = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        locked.callback(os.close, opened)
        fcntl.flock(opened, fcntl.LOCK_EX)
        devices: dict[str, Any] = {}
        if path.exists():
            read_tokens(path)
            devices = {str(key): value for key, value in read_yaml(path).items()}
        known = devices.get(name)
        if known is not None and not force and not (isinstance(known, Mapping) and "sha256" not in known):
            fix = "--force replaces it; a second one can be added to the file by hand"
            raise ConfigError([f'expected a device without a token, got "{name}" which has one ({fix})'], str(path))
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


def _device_name(text: str) -> str:
    if not NAME.fullmatch(text) or text in TAKEN:
        expected = f"expected letters, digits, '.', '_' and '-', at most 63 of them, and none of {', '.join(TAKEN)}"
        raise argparse.ArgumentTypeError(f"{expected}, got {text!r}")
    return text


def _days(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 36_500:
        raise argparse.ArgumentTypeError(f"expected 1 to 36500 days, got {text}")
    return int(text)
