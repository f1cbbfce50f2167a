"""The cascade part of a config file, as edge and cloud both read it (docs/configure.md, with examples)."""

from __future__ import annotations

import re
import ssl
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coe.calibration import CalibratedVote, Calibration, TableMember, rules_of
from coe.cascade.errors import ConfigError, TaskNotInstalled
from coe.cascade.rule import Agreement, Always, Confidence, DeferralRule, parse_agreement
from coe.link import Delay, Link
from coe.models.input_spec import InputSpec
from coe.models.inputs import KINDS, Payload
from coe.models.loading import ModelSpec, RunOptions
from coe.protocol.channel import fix_of_address
from coe.protocol.credentials import PLAINTEXT, ClientSecurity, read_token

from .fields import Fields, resolve
from .link import read_link
from .manifest import NAME, ModelSettings, Task, read_manifest, read_model, read_task
from .settings import REQUIRED, read_settings, setting, settings_of


def read_credentials(fields: Fields, folder: Path) -> ClientSecurity:
    """`tls:` and `token_file:` of a remote tier, their files opened and checked."""
    security = _read_tls(fields, folder)
    token_file = _file(fields, "token_file", folder, is_private=True)
    if token_file is not None:
        try:
            read_token(token_file)
        except ConfigError as error:
            fields.wrong("token_file", str(error))
    return replace(security, token_file=token_file)


def _read_tls(fields: Fields, folder: Path) -> ClientSecurity:
    if not fields.has("tls") or isinstance(fields.content["tls"], bool):
        return ClientSecurity(tls=fields.flag("tls", False))
    tls = fields.section("tls")
    ca, certificate = (_file(tls, name, folder, is_private=False) for name in ("ca", "certificate"))
    key = _file(tls, "key", folder, is_private=True)
    server_name = tls.text("server_name", "")
    tls.finish()
    if (certificate is None) != (key is None) and tls.has("certificate") != tls.has("key"):
        missing = "key" if tls.has("certificate") else "certificate"
        tls.wrong(missing, "expected certificate and key together, got one of them (add it)")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca is not None:
        try:  # gRPC would fail only with the first call, and not say why
            context.load_verify_locations(ca)
        except (OSError, ValueError):  # ssl.SSLError is an OSError
            tls.wrong("ca", f"expected certificates in PEM, got {ca} which holds none")
    if certificate is not None and key is not None:
        try:
            context.load_cert_chain(certificate, key, password=lambda: "")
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            fix = "`coe-cloud certs device DIR NAME` makes both"
            message = f"expected the key of {certificate}, in PEM and without a password, got {key}"
            tls.wrong("key", f"{message}: {reason} ({fix})")
    return ClientSecurity(tls=True, ca=ca, certificate=certificate, key=key, server_name=server_name)


def _file(fields: Fields, key: str, folder: Path, *, is_private: bool) -> Path | None:
    """A file that is there and can be read; None where it is not set, or a finding."""
    path: Path | None = fields.path(key, folder, None)
    try:
        if path is not None:
            path.open("rb").close()
            if is_private and path.stat().st_mode & (stat.S_IRWXO | stat.S_IWGRP):
                fields.warn(key, f"{path} can be read or written by others on this machine (chmod o=,g-w {path})")
    except OSError as error:
        fields.wrong(key, f"expected a readable file, got {path}: {error.strerror}")
        path = None
    return path


UNKNOWN = Task("unknown", ("0", "1"), InputSpec("tensor", (1,)))  # stands in where `task` has findings


@dataclass(frozen=True, kw_only=True)
class _TierSettings:
    """What tiers here and on other machines have in common."""

    name: str = setting(REQUIRED, "Name of the tier.", usual="`tier`; with an address, `cloud`", example="device")
    rule: DeferralRule = setting(
        REQUIRED, "How many members must vote for a label before the tier answers.", key="agreement", usual="unanimous"
    )
    confidence: float | None = setting(
        None,
        "In place of `agreement`: the probability from which the tier answers.",
        usual="none",
        high=1,
        example="0.9",
    )
    delay_s: float | None = setting(
        None, "For studies: delay each call by so much.", usual="none", unit="ms", high=600_000, example="100"
    )
    delay_one_way: bool = setting(False, "Delay each direction, not the round trip once.")

    @property
    def delay(self) -> Delay | None:
        """The injected delay."""
        return None if self.delay_s is None else Delay(self.delay_s, self.delay_one_way)


@dataclass(frozen=True, kw_only=True)
class LocalTierConfig(_TierSettings):
    """A tier whose members run here. `threads` are the whole tier's; `options.threads`, of one member, follow."""

    members: tuple[ModelSpec, ...] = setting(REQUIRED, "Model files, or sections with `file:`.", example="[a.onnx]")
    order: str = setting("fixed", "Order of members: as listed, or by measured cost.", choices=("fixed", "measured"))
    threads: int = setting(
        REQUIRED, "Threads of the whole tier.", usual="1; side by side, one a member", low=1, high=256, example="1"
    )
    parallel: bool = setting(
        REQUIRED,
        "Members run side by side, or in turn.",
        usual="`false` on a device, `true` in the cloud",
        example="false",
    )
    early: bool = setting(True, "Stop as soon as the vote is settled.")
    member_timeout_s: float | None = setting(
        None,
        "Longest time of a member side by side; over it, it does not vote.",
        usual="none",
        unit="ms",
        low=1,
        high=600_000,
        example="500",
    )
    providers: tuple[str, ...] = setting(
        ("cpu",), "ONNX Runtime's providers, by preference: `tensorrt`, `cuda`, `cpu`."
    )
    device: str = setting("cpu", "Where torch members run, such as `cuda:0`.")

    @property
    def options(self) -> RunOptions:
        return RunOptions(providers=self.providers, device=self.device)


@dataclass(frozen=True, kw_only=True)
class RemoteTierConfig(_TierSettings):
    """A tier on other machines."""

    addresses: tuple[str, ...] = setting(
        REQUIRED, "`host:port` where coe-cloud serves, or a list of them.", key="address", example="127.0.0.1:8001"
    )
    model: str = setting(REQUIRED, "Name of the model on the server.", usual="the task's name", example="digits")
    output: str = setting("", "Of a server that is not coe-cloud: the output to ask for.", usual="the one that fits")
    deadline_s: float = setting(
        2000, "Longest wait for an answer; then the tier before has the last word.", unit="ms", low=1, high=600_000
    )
    send: Payload = setting(
        REQUIRED,
        "Form in which an example is sent; also `png`, `{jpeg: 85}`, `pixels`, `model-size`.",
        usual="captured",
    )
    proxy: str = setting(
        "auto", "HTTP proxy: a URL, `none`, or `auto`: the environment's, but never for private hosts.", example="none"
    )
    stream: bool = setting(False, "Send calls on one persistent stream.")
    link_model: Link | None = setting(
        None, "For studies: calls wait as behind this link; its settings, or a file.", usual="none", example="lte.up"
    )
    n_tiers: int = setting(
        1, "Number of tiers behind the address; it matters before the last.", key="tiers", low=1, high=64
    )
    security: ClientSecurity = setting(
        PLAINTEXT,
        "TLS: `true` (public CAs) or PEM files, `{ca, certificate, key, server_name}`.",
        key="tls",
        usual="`false`",
    )
    token_file: Path | None = setting(None, "File with a bearer token.", usual="none", example="pi-1.token")

    @property
    def address(self) -> str:
        """Its address, or all of them, for people."""
        return ", ".join(self.addresses)


TierConfig = LocalTierConfig | RemoteTierConfig


@dataclass(frozen=True)
class CascadeConfig:
    """A cascade as configured; `coe.config.open.open_cascade` makes it run."""

    task: Task
    tiers: tuple[TierConfig, ...]
    when_unavailable: str = setting(
        REQUIRED,
        "What becomes of an example whose tier gives no answer.",
        usual="answer-local",
        choices=("answer-local", "spool", "fail"),
    )
    calibration: Path | None = setting(
        None, "Fitted table, in place of `agreement` and `confidence`.", usual="none", example="calibration.json"
    )
    table: Calibration | None = None

    @property
    def keep_last_answer(self) -> bool:
        """True if the tier before has the last word where one gives no answer."""
        return self.when_unavailable != "fail"

    @property
    def local_tiers(self) -> tuple[LocalTierConfig, ...]:
        return tuple(tier for tier in self.tiers if isinstance(tier, LocalTierConfig))

    @property
    def remote_tiers(self) -> tuple[RemoteTierConfig, ...]:
        return tuple(tier for tier in self.tiers if isinstance(tier, RemoteTierConfig))


def rule_in_words(tier: TierConfig, *, is_last: bool) -> str:
    """When a tier answers, such as "answers when 2 of 3 members agree"."""
    rule = tier.rule
    if isinstance(rule, CalibratedVote):
        by = "the calibrated vote of all members asked so far"
        return f"answers by {by}" + ("" if rule.threshold is None else f" where its label has p >= {rule.threshold:g}")
    if is_last:
        return "always answers"
    if isinstance(rule, Agreement):
        share = f"{rule.theta} of the"
        if rule.theta == 1:
            share = "all"
        elif isinstance(tier, LocalTierConfig):
            share = f"{rule.needed(len(tier.members))} of {len(tier.members)}"
        return f"answers when {share} members agree"
    if isinstance(rule, Confidence):
        return f"answers when its confidence is at least {rule.threshold:g}"
    return "always answers"


def read_cascade(
    fields: Fields, folder: Path, *, parallel: bool = False, fallbacks: Sequence[str] = ("answer-local", "fail")
) -> CascadeConfig:
    """`task`, `tiers` and `when_unavailable` of a config file, whose relative paths start at `folder`.

    Args:
        parallel: the default of a tier's own `parallel:`.
        fallbacks: what a program can do where a tier gives no answer; the first is the default.
    """
    task = _read_task(fields, folder)
    entries = fields.sections("tiers")
    if not entries and fields.has("tiers"):
        fields.wrong("tiers", "expected at least one tier, got none")
    table_file = fields.path("calibration", folder, None)
    reader = _TierReader(task, folder, parallel, is_calibrated=table_file is not None)
    tiers = tuple(reader.read(entry, is_last=entry is entries[-1]) for entry in entries)
    names = [tier.name for tier in tiers]
    for name in sorted({name for name in names if names.count(name) > 1}):
        fields.wrong("tiers", f'expected each tier to have its own name, got "{name}" twice')
    config = CascadeConfig(task, tiers, fields.choice("when_unavailable", fallbacks, fallbacks[0]), table_file)
    return config if table_file is None else _calibrated(config, table_file, fields)


def _calibrated(config: CascadeConfig, file: Path, fields: Fields) -> CascadeConfig:
    """The cascade with the table's rules, where the table is one of this cascade."""
    try:
        table = Calibration.read(file)
        if config.task is UNKNOWN or len(fields.report.findings):
            return config
        tiers: list[list[TableMember]] = []
        for tier in config.tiers:
            if isinstance(tier, RemoteTierConfig):
                tiers += [[]] * tier.n_tiers
            else:
                tiers.append([TableMember(spec.name, spec.digest()) for spec in tier.members])
        table.check(config.task.labels, tiers, config.task.fingerprint, str(file))
    except ConfigError as error:
        fields.report.findings.extend(f"calibration: {line}" for line in str(error).splitlines())
        return config
    n_tiers = [tier.n_tiers if isinstance(tier, RemoteTierConfig) else 1 for tier in config.tiers]
    rules = rules_of(table, n_tiers)
    tiers_by_table = tuple(replace(tier, rule=rule) for tier, rule in zip(config.tiers, rules, strict=True))
    return replace(config, tiers=tiers_by_table, table=table)


def _read_task(fields: Fields, folder: Path) -> Task:
    if fields.has("labels") or fields.has("input"):
        return read_task(fields)
    reference = fields.text("task")
    try:
        return read_manifest(resolve(reference, folder)).task
    except TaskNotInstalled as error:  # the one finding: nothing that needs the task's files can be checked
        raise ConfigError([f"task: {error}"], fields.report.source) from None
    except ConfigError as error:
        if reference:
            fields.report.findings.extend(f"task: {line}" for line in str(error).splitlines())
        return UNKNOWN


class _TierReader:
    def __init__(self, task: Task, folder: Path, parallel: bool, *, is_calibrated: bool) -> None:
        self.task = task
        self.folder = folder
        self.parallel = parallel
        self.is_calibrated = is_calibrated
        self.models: dict[Path, Mapping[str, ModelSpec]] = {}  # by the manifest that describes them

    def read(self, entry: Fields, is_last: bool) -> TierConfig:
        if entry.has("members") == entry.has("address"):
            entry.wrong("", "expected `members:` (a local tier) or `address:` (a remote one), got both or neither")
        return self._remote(entry, is_last) if entry.has("address") else self._local(entry, is_last)

    def _local(self, entry: Fields, is_last: bool) -> LocalTierConfig:
        entries = entry.raw("members", expected="a list of model files")
        entries = entries if isinstance(entries, list) else [] if entries is None else [entries]
        members = tuple(self._member(entry, f"members[{i}]", member) for i, member in enumerate(entries))
        n_members = max(len(members), 1)
        if not members:
            entry.wrong("members", "expected at least one model file, got none")
        parallel = entry.flag("parallel", self.parallel)
        tier = read_settings(
            LocalTierConfig,
            entry,
            defaults={"name": "tier", "threads": n_members if parallel else 1},
            members=members,
            rule=self._rule(entry, n_members, is_last),
            parallel=parallel,
        )
        if parallel and tier.threads == 1 and n_members > 1 and entry.has("parallel"):
            entry.warn("parallel", f"one thread runs one member at a time (threads: {n_members} runs all side by side)")
        if tier.member_timeout_s is not None and not parallel:
            entry.warn("member_timeout_ms", "members in turn are waited for as long as they take (set parallel: true)")
        if tier.order == "measured" and self.is_calibrated:
            entry.wrong("order", "expected fixed with `calibration:`, whose numbers are in this order, got measured")
        elif tier.order == "measured" and (parallel or not tier.early):
            fix = "it matters only where members are asked in turn and the vote stops early (leave it out)"
            entry.warn("order", fix)
        return tier

    def _remote(self, entry: Fields, is_last: bool) -> RemoteTierConfig:
        security = read_credentials(entry, self.folder)
        tier = read_settings(
            RemoteTierConfig,
            entry,
            defaults={"name": "cloud", "model": self.task.name},
            addresses=_read_addresses(entry),
            rule=self._rule(entry, None, is_last),
            send=_read_payload(entry, self.task),
            security=security,
            token_file=security.token_file,
            link_model=read_link(entry, "link_model", self.folder),
        )
        if tier.proxy not in ("auto", "none") and not re.fullmatch(r"http://[^\s/]+:\d+/?", tier.proxy):
            entry.wrong("proxy", f'expected auto, none or http://HOST:PORT, got "{tier.proxy}"')
        if tier.stream and len(tier.addresses) > 1:
            entry.warn("stream", "a stream keeps to one host, so calls are not spread over the list (leave it out)")
        return tier

    def _rule(self, entry: Fields, n_members: int | None, is_last: bool) -> DeferralRule:
        if not self.is_calibrated:
            return _read_rule(entry, n_members, is_last)
        for key in ("agreement", "confidence"):
            if entry.raw(key, None) is not None:
                entry.wrong(key, f"expected calibration or {key}, got both (leave one out)")
        return Always()

    def _member(self, entry: Fields, key: str, value: Any) -> ModelSpec:
        """A member: a path, or a section with `file:` and what the manifest would say of it."""
        own = Fields({"file": value} if isinstance(value, str) else value, entry.report, f"{entry.trail}.{key}")
        try:
            path = resolve(own.text("file"), self.folder)
        except TaskNotInstalled as error:
            raise ConfigError([f"{own.trail}: {error}"], own.report.source) from None
        except ConfigError as error:
            own.wrong("file", str(error))
            path = self.folder
        spec = self._from_manifest(own, path)
        if spec is None:
            spec = read_model(own, path, self.task, pinned=True)
        elif not isinstance(value, str):  # what the config states itself goes before the manifest's word
            stated = read_model(own, path, self.task, pinned=True, known_format=spec.format)
            names = {key: each.name for key, (each, _) in settings_of(ModelSettings).items()} | {"input": "input_spec"}
            changed = {name: getattr(stated, name) for key, name in names.items() if own.has(key)}
            spec = replace(spec, **changed, pinned=spec.pinned or own.has("sha256"))
        own.finish()
        task, takes, given = self.task, spec.input_spec, self.task.input_spec
        if task is not UNKNOWN and spec.labels != task.labels:
            own.wrong("file", f"its manifest has other labels ({len(spec.labels)}) than the task ({len(task.labels)})")
        if task is not UNKNOWN and not takes.takes(given):
            fix = "an image's size may differ, its channels may not"
            message = f"it takes {takes.kind} {list(takes.shape)}, the task's examples are {given.kind}"
            own.wrong("file", f"{message} {list(given.shape)} ({fix})")
        return spec

    def _from_manifest(self, own: Fields, path: Path) -> ModelSpec | None:
        """What the manifest in the file's folder says of it, if it does."""
        here = path.parent / NAME
        if here not in self.models:
            self.models[here] = {}
            try:
                self.models[here] = read_manifest(here).models if here.is_file() else {}
            except ConfigError as error:
                own.report.findings.extend(f"{own.trail}: {line}" for line in str(error).splitlines())
        return self.models[here].get(path.name)


def _read_addresses(entry: Fields) -> tuple[str, ...]:
    """One "host:port", or a list of them, each of which must be good."""
    given: Any = entry.content.get("address")
    is_list = isinstance(given, list)
    addresses = entry.texts("address") if is_list else (entry.text("address"),)
    for number, address in enumerate(given if is_list else addresses):
        key = f"address[{number}]" if is_list else "address"
        if isinstance(address, str) and address and (fix := fix_of_address(address)):
            entry.wrong(key, f'expected host:port, got "{address}" ({fix})')
        elif is_list and address in given[:number]:
            entry.wrong(key, f'expected each host once, got "{address}" twice')
    if given == []:
        entry.wrong("address", "expected at least one host:port, got an empty list")
    return addresses


def _read_payload(entry: Fields, task: Task) -> Payload:
    """`send: png`, or `send: {jpeg: 85}`."""
    if isinstance(entry.content.get("send"), dict):
        own = entry.section("send")
        payload = Payload("jpeg", own.integer("jpeg", low=1, high=100))
        own.finish()
    else:
        payload = Payload(entry.choice("send", KINDS, "captured"))
    fits = {"image": KINDS, "tensor": ("captured", "pixels")}.get(task.input_spec.kind, ("captured",))
    if payload.kind not in fits and task is not UNKNOWN:
        kind = task.input_spec.kind
        entry.wrong("send", f"expected {' or '.join(fits)} for a task whose examples are of kind {kind}, got {payload}")
    return payload


def _read_rule(entry: Fields, n_members: int | None, is_last: bool) -> DeferralRule:
    """`agreement:` or `confidence:`; unanimity where neither is said; the last tier needs neither."""
    if entry.has("confidence"):
        if entry.raw("agreement", None) is not None:
            entry.wrong("agreement", "expected agreement or confidence, got both (leave one out)")
        share = entry.content["confidence"]  # whatever else it is, is found with the tier's other settings
        is_share = isinstance(share, float | int) and not isinstance(share, bool) and 0 <= share <= 1
        return Confidence(float(share)) if is_share else Always()
    value = entry.raw("agreement", None)
    if is_last:
        if value is not None:
            entry.warn("agreement", "the last tier always answers, so this has no effect (leave it out)")
        return Always()
    if n_members == 1:
        fix = "add members, or set `confidence:`"
        entry.wrong("agreement", f"one member always agrees with itself, so this tier would never defer ({fix})")
    try:
        rule, warning = parse_agreement("unanimous" if value is None else value, n_members)
    except ValueError as error:
        entry.wrong("agreement", str(error))
        return Always()
    if warning:
        entry.warn("agreement", warning)
    return rule
