"""The section `security:` of a server's config."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloud.limits import Rate
from coe.cascade.errors import ConfigError
from coe.config import Fields
from coe.config.settings import read_settings, setting
from coe.models.loading import import_runtime
from coe.protocol.credentials import is_loopback

from .identity import read_tokens

CLOUD = "pip install 'coe-cascade[cloud]'"


@dataclass(frozen=True)
class Security:
    """What is asked of callers. As it stands: nothing, which is for loopback alone."""

    certificate: Path | None = setting(
        None,
        "PEM file of the server's certificate; without it: plaintext.",
        within="tls",
        usual="none",
        example="certs/server.pem",
    )
    key: Path | None = setting(None, "PEM file of its key.", within="tls", usual="none", example="certs/server.key")
    client_ca: Path | None = setting(
        None,
        "PEM file of the CA that clients' certificates must come from.",
        within="tls",
        usual="none",
        example="certs/ca.pem",
    )
    tokens: Path | None = setting(None, "File of hashed bearer tokens.", usual="none", example="certs/tokens.yaml")
    allow: tuple[str, ...] = setting(
        (), "Patterns of the device names that may call.", usual="all known devices", example="[pi-*]"
    )
    quota: Rate | None = setting(None, "Limit of each device that has none of its own.", usual="none")
    reload_s: float = setting(30, "How often the files are looked at.", unit="s", low=0.1, high=86_400)
    insecure: bool = setting(False, "Allow plaintext beyond this machine.")

    @property
    def has_tls(self) -> bool:
        return self.certificate is not None and self.key is not None

    @property
    def asks_who(self) -> bool:
        """True if callers have to prove who they are."""
        return self.can_tell or bool(self.allow)

    @property
    def can_tell(self) -> bool:
        """True if there is a way for callers to prove who they are."""
        return self.client_ca is not None or self.tokens is not None


def read(fields: Fields, folder: Path) -> Security:
    """The section, its files opened and checked; relative paths start at `folder`.

    Raises:
        RuntimeMissing: `tls` is set and there is no `cryptography` to check its files.
    """
    files = _read_tls(fields.section("tls", {}), folder) if fields.has("tls") else {}
    quota = read_settings(Rate, fields.section("quota")) if fields.has("quota") else fields.raw("quota", None)
    tokens: Path | None = fields.path("tokens", folder) if fields.has("tokens") else fields.raw("tokens", None)
    if tokens is not None:
        try:
            read_tokens(tokens)
        except ConfigError as error:
            fields.report.findings.extend(f"{fields.trail}.tokens: {line}" for line in str(error).splitlines())
    security = read_settings(Security, fields, tokens=tokens, quota=quota, **files)
    if fields.has("allow") and not security.allow:
        fields.wrong("allow", "expected at least one pattern, got none (leave it out to allow every known device)")
    if security.allow and not security.can_tell:
        fields.wrong("allow", "expected devices with names, got none: add tls.client_ca or tokens")
    if security.quota and not security.can_tell:
        fields.warn("quota", "without tls.client_ca or tokens all callers share one quota (add one of them)")
    return security


def check_exposure(host: str, security: Security, insecure: bool) -> None:
    """Plaintext is for this machine alone, unless it is said to be meant.

    Args:
        host: where it is going to listen.
        insecure: as said on the command line; the config's own `insecure` counts as well.
    Raises:
        ConfigError: it would be served in plaintext to others, or bearer tokens would be asked for in plaintext.
    """
    if security.has_tls or is_loopback(host):
        return
    fix = "`coe-cloud certs init DIR` makes certificates for security.tls"
    message = f"expected TLS beyond this machine, got plaintext on {host}"
    if security.tokens is not None:
        raise ConfigError([f"security.tokens: {message}, where tokens can be read by others ({fix})"])
    if not (insecure or security.insecure):
        fix += "; --insecure or `security.insecure: true` serves plaintext all the same"
        raise ConfigError([f"security: {message} ({fix})"])


def need_certificates() -> None:
    """Raises RuntimeMissing: what reads certificates is not installed; every server imports it."""
    import_runtime("cryptography", "certificates", CLOUD)


def _read_tls(tls: Fields, folder: Path) -> dict[str, Any]:
    files = {name: tls.path(name, folder) for name in ("certificate", "key")}
    files["client_ca"] = tls.path("client_ca", folder) if tls.has("client_ca") else None
    tls.finish()
    if files["certificate"] is not None and files["key"] is not None:  # else a finding already
        need_certificates()
        from .tls import inspect

        _, found = inspect(**files)
        for fatal in found.fatal:
            tls.wrong(*fatal)
        for warning in found.warnings:
            tls.warn(*warning)
    return files
