"""Makes keys and certificates: a CA, and the server and device certificates it signs; for fleets without a PKI."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from coe.cascade.errors import ConfigError

from .certs import write_private

CA_DAYS = 3650
SKEW = timedelta(hours=1)  # a device's clock may be behind
HOST = re.compile(r"(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?)(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?)*", re.I)


@dataclass(frozen=True)
class KeyPair:
    """A certificate and its private key (EC P-256)."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def write(self, folder: Path, name: str, *, force: bool) -> None:
        """`name`.key, for its owner alone, and `name`.pem.

        Raises:
            ConfigError: the key exists already, and not `force`.
        """
        key = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path = folder / f"{name}.key"
        try:
            write_private(path, key, force=force)
        except FileExistsError:
            raise ConfigError([f"expected no key yet, got {path} (--force makes a new one in its place)"]) from None
        (folder / f"{name}.pem").write_bytes(self.certificate.public_bytes(Encoding.PEM))


def read_authority(folder: Path) -> KeyPair:
    """The CA that `init` has made in `folder`.

    Raises:
        ConfigError: there is none.
    """
    try:
        certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        key = load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not PEM"
        fix = "`coe-cloud certs init DIR` makes one"
        raise ConfigError([f"expected a CA in {folder} (ca.pem, ca.key): {reason} ({fix})"]) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError([f"expected an EC key, got {folder / 'ca.key'} of another kind"])
    return KeyPair(certificate, key)


def make_authority(name: str = "coe development CA", days: int = CA_DAYS, now: datetime | None = None) -> KeyPair:
    """A CA that signs certificates, but no other CA."""
    return _make(None, name, [], days, now)


def make_server(authority: KeyPair, hosts: Sequence[str], days: int, now: datetime | None = None) -> KeyPair:
    """A server's certificate, for DNS names and IP addresses.

    Raises:
        ConfigError: one of the hosts is neither.
    """
    names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
    return _make(authority, hosts[0], [x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), names], days, now)


def make_device(authority: KeyPair, name: str, days: int, now: datetime | None = None) -> KeyPair:
    """A device's certificate; it names the device, and is not valid for a server."""
    names = x509.SubjectAlternativeName([x509.DNSName(name)])
    return _make(authority, name, [x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), names], days, now)


def _make(
    authority: KeyPair | None, name: str, extensions: list[x509.ExtensionType], days: int, now: datetime | None
) -> KeyPair:
    """A key and its certificate, signed by `authority`; where that is None, a CA's, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    start = datetime.now(UTC) if now is None else now
    end, issuer, signer, is_ca = start + timedelta(days=days), subject, key, authority is None
    others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    no = dict.fromkeys((*others, "encipher_only", "decipher_only"), False)
    if authority is not None:
        issuer, signer = authority.certificate.subject, authority.key
        end = min(end, authority.certificate.not_valid_after_utc)
        identifier = authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        extensions = [*extensions, x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - SKEW)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=0 if is_ca else None), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=not is_ca, key_cert_sign=is_ca, crl_sign=is_ca, **no), critical=True
        )
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return KeyPair(builder.sign(signer, hashes.SHA256()), key)


def _general_name(host: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    if len(host) > 253 or not HOST.fullmatch(host):
        raise ConfigError([f'--host: expected a DNS name or an IP address, got "{host}" (without scheme and port)'])
    return x509.DNSName(host)
