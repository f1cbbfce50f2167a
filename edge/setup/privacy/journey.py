"""An example's way: when it leaves, to whom, over what, in which form; what goes with it; what never goes."""

from __future__ import annotations

from collections.abc import Iterator

from coe.assembly import LocalTierConfig, RemoteTierConfig
from coe.cascade.rule import Agreement, Confidence
from coe.wire.credentials import is_this_machine

from ...config import AgentConfig
from ...sinks import SinkConfig
from .statement import Statement, local_tiers, remote_tiers

FORMS = {
    "captured": "as captured, byte for byte: a photo with everything its file holds, such as the place and the time "
    "that a camera wrote into it (EXIF); what came as numbers goes as numbers",
    "pixels": "as its decoded pixels at their own size; nothing else that its file held",
    "model-size": "as pixels, resized to the {size} that the task's models see; nothing else that its file held",
    "png": "as its pixels, encoded anew as PNG; nothing else that its file held",
    "jpeg": "as its pixels, encoded anew as JPEG at quality {quality}; nothing else that its file held",
}


def leaves(config: AgentConfig) -> Iterator[Statement]:
    if not any(remote_tiers(config)):
        yield Statement("leaves", "tiers", "No example: every tier runs on this device.")
    before: LocalTierConfig | RemoteTierConfig | None = None
    for number, tier in enumerate(config.cascade.tiers):
        if isinstance(tier, RemoteTierConfig):
            yield _leaves_for(config, tier, before, f"tiers[{number}]")
        before = tier
    if config.field.audit is not None and config.field.audit.share > 0 and any(remote_tiers(config)):
        yield _audited(config)
    for sink in config.sinks:
        yield from _sent_by(sink, bool(config.field.never_send or config.field.hook))


def _leaves_for(
    config: AgentConfig, tier: RemoteTierConfig, before: LocalTierConfig | RemoteTierConfig | None, about: str
) -> Statement:
    text = f"{_when(before)} It goes to {tier.address}, {_over(tier)}, {_form(config, tier)}."
    if len(tier.addresses) > 1:
        text += " Each goes to one of these hosts; to another one, too, where the first does not answer."
    if config.spool is not None:
        text += " Where nobody answers it is kept here, and sent later."
    return Statement("leaves", about, text)


def _when(before: LocalTierConfig | RemoteTierConfig | None) -> str:
    if before is None:
        return "Every example leaves, since there is no tier before this one."
    if isinstance(before.rule, Confidence):
        return f"An example leaves when tier {before.name} is less than {before.rule.threshold:g} sure of its answer."
    if isinstance(before, LocalTierConfig) and isinstance(before.rule, Agreement):
        n = len(before.members)
        needed = before.rule.needed(n)
        agree = f"all {n} models" if needed == n else f"at least {needed} of the {n} models"
        return f"An example leaves when not {agree} of tier {before.name} give it the same label."
    return f"An example leaves when the vote of tier {before.name} does not settle it."


def _over(tier: RemoteTierConfig) -> str:
    security = tier.security
    if security.is_encrypted:
        whom = (
            f"a server whose certificate the CA in {security.ca.name} signed"
            if security.ca
            else ("a server whose certificate a public CA signed")
        )
        return f"encrypted (TLS), to {whom}"
    if all(is_this_machine(address) for address in tier.addresses):
        return "in plaintext, which does not leave this machine"
    return "IN PLAINTEXT, so that everybody on the way can read and change it"


def _form(config: AgentConfig, tier: RemoteTierConfig) -> str:
    contract = config.cascade.task.contract
    if tier.foreign:
        return "as the numbers that the server's metadata asks for, made from its pixels or values"
    if contract.kind == "text":
        return "as its text, word for word"
    if contract.kind != "image" and tier.send.kind in ("captured", "pixels"):
        return "as its numbers"
    size = " x ".join(map(str, contract.shape[:2]))
    return FORMS[tier.send.kind].format(size=size, quality=tier.send.quality)


def _audited(config: AgentConfig) -> Statement:
    audit = config.field.audit
    assert audit is not None
    text = (
        f"Of the examples on which the device agreed, up to {audit.share * 100:.4g}% are drawn at "
        f"random and sent as well, to see how often agreement is wrong: at most {audit.max_per_hour:g} an hour and "
        f"{audit.max_bytes_per_day / 1e6:g} MB a day. They go to the same servers, in the same form."
    )
    return Statement("leaves", "audit", text)


def _sent_by(sink: SinkConfig, is_private: bool) -> Iterator[Statement]:
    """Decisions that a sink sends away: not the example, but its name and its answer.

    Args:
        is_private: some examples may not leave.
    """
    record = "each decision's record: the example's id (a file's name, where it was one), label, votes, times, errors"
    if is_private:
        record += "; also of examples that may not leave: no example, but its label, and which class held it back"
    if sink.mqtt is not None:
        over = "in plaintext" if sink.mqtt.tls is None else "over TLS"
        yield Statement("leaves", "sink", f"To the broker {sink.mqtt.host}:{sink.mqtt.port}, {over}: {record}.")
    if sink.webhook is not None:
        yield Statement("leaves", "sink", f"To {sink.webhook.url}: {record}.")


def beside(config: AgentConfig) -> Iterator[Statement]:
    for tier in remote_tiers(config):
        about = f"tier {tier.name}"
        text = (
            f"With each request to {tier.address}: the model's name ({tier.model}), "
            f"{'' if tier.foreign else 'a fingerprint of labels and input format, '}"
            f"the milliseconds left for the answer, and a random trace id of the example's own (traceparent), which "
            f"this device's record of the decision holds, too. The server sees this device's network address."
        )
        if tier.stream:
            text += " Requests on the stream are numbered, from 0 with each start."
        yield Statement("beside", about, text)
        shown = []
        if tier.security.token_file is not None:
            shown.append(f"the token in {tier.security.token_file}")
        if tier.security.certificate is not None:
            shown.append(f"the name in the certificate {tier.security.certificate}")
        if shown:
            yield Statement("beside", about, f"The server knows this device by {' and '.join(shown)}.")
    if any(remote_tiers(config)):
        yield Statement(
            "beside",
            "tiers",
            "As the agent starts, and while a server does not answer, it asks for the model's metadata and whether it "
            "is ready. These questions hold no example.",
        )


def stays(config: AgentConfig) -> Iterator[Statement]:
    task, field = config.cascade.task, config.field
    if any(remote_tiers(config)):
        ids = "An example's id, its file's name, its true label where it is known, and the votes and scores of this "
        ids += "device's models are not sent to any tier."
        yield Statement("stays", "tiers", ids)
        if any(local_tiers(config)) and (field.audit is None or field.audit.share == 0):
            yield Statement("stays", "audit", "Examples that this device's models settle never leave it.")
    if field.never_send:
        names = ", ".join(task.labels[label] for label in sorted(field.never_send))
        text = f"An example that any of this device's models takes for one of these never leaves it: {names}."
        yield Statement("stays", "never_send", text)
    if field.hook:
        text = (
            f"The hook {field.hook} is asked about each example that would leave, and can hold it back; if it fails, "
        )
        yield Statement("stays", "hook", f"{text}the example stays.")
    text = "The models and this config stay here. The program reports to nobody else, and ONNX Runtime to nobody."
    yield Statement("stays", "", text)
