"""`coe-edge explain`: what leaves this device, when and to whom, and what it keeps, read from its config alone."""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from coe.calibration import CalibratedVote
from coe.cascade.rule import Agreement, Confidence
from coe.config.cascade import LocalTierConfig, RemoteTierConfig
from coe.protocol.credentials import is_this_machine
from edge.config import AgentConfig, default_config, read_config
from edge.field.config import AuditConfig
from edge.link_budget import month_of, read_months
from edge.sinks import SinkConfig
from edge.spool.config import SpoolConfig

Topic = Literal["leaves", "beside", "stays", "kept", "open"]

HEADINGS: dict[Topic, str] = {
    "leaves": "What leaves this device",
    "beside": "What goes with it",
    "stays": "What stays here",
    "kept": "What is kept on this device's disk",
    "open": "Who can look in, on this device or from outside",
}
MAX_WIDTH = 100


@dataclass(frozen=True, slots=True)
class Statement:
    """One or a few sentences.

    Args:
        about: the setting that they follow from.
    """

    topic: Topic
    about: str
    text: str


FORMS = {  # by the kind of `send:`
    "captured": "as captured, byte for byte: a photo with everything its file holds, such as the place and the time "
    "that a camera wrote into it (EXIF); what came as numbers goes as numbers",
    "pixels": "as its decoded pixels at their own size; nothing else that its file held",
    "model-size": "as pixels, resized to the {size} that the task's models see; nothing else that its file held",
    "png": "as its pixels, encoded anew as PNG; nothing else that its file held",
    "jpeg": "as its pixels, encoded anew as JPEG at quality {quality}; nothing else that its file held",
}


def examples_sent(config: AgentConfig) -> Iterator[Statement]:
    if not config.cascade.remote_tiers:
        yield Statement("leaves", "tiers", "No example: every tier runs on this device.")
    before: LocalTierConfig | RemoteTierConfig | None = None
    for number, tier in enumerate(config.cascade.tiers):
        if isinstance(tier, RemoteTierConfig):
            yield _sent_to(config, tier, before, f"tiers[{number}]")
        before = tier
    audit = config.field.audit
    if audit is not None and audit.share > 0 and config.cascade.remote_tiers:
        yield _audited(audit)
    drift = config.field.drift
    if drift is not None and drift.on_drift in ("gate", "defer"):
        more = "every example leaves" if drift.on_drift == "defer" else "more of them leave, by stricter thresholds"
        yield Statement("leaves", "drift.on_drift", f"While the alarm of drift lasts, {more}.")
    if config.cascade.remote_tiers:
        yield from _limits(config)
    for sink in config.sinks:
        yield from _sent_by(sink, config.field.holds_back)


def _limits(config: AgentConfig) -> Iterator[Statement]:
    """What is not sent although a server would be asked, and how many examples that were in this month."""
    months = read_months(config.state / "link.json")
    counts: Mapping[str, int] = months.get(month_of(time.time(), months), Counter())
    link, scene, spool = config.link, config.field.same_scene, config.spool
    if link.max_bytes_per_month is not None:
        text = f"Calls end at {link.max_bytes_per_month / 1e6:g} MB in a calendar month (UTC); in this one they took "
        text += f"{counts['bytes'] / 1e6:.1f} MB, and {counts['cap']:,} examples were not sent for it."
        yield Statement("leaves", "link.max_mb_per_month", text)
    if link.max_examples_per_hour is not None:
        text = f"At most {link.max_examples_per_hour:,} examples are sent in an hour; in this month "
        yield Statement("leaves", "link.max_examples_per_hour", f"{text}{counts['budget']:,} were not sent for it.")
    if scene is not None:
        text = f"A picture like one of the last {scene.remember} sent in {scene.max_age_s / 60:g} minutes is not sent; "
        yield Statement("leaves", "same_scene", f"{text}in this month {counts['duplicate']:,} were not.")
    if spool is not None and spool.send_between:
        text = f"What is kept for a later answer is sent between {', '.join(spool.send_between)} alone."
        yield Statement("leaves", "spool.send_between", text)


def _sent_to(
    config: AgentConfig, tier: RemoteTierConfig, before: LocalTierConfig | RemoteTierConfig | None, about: str
) -> Statement:
    text = f"{_when(before)} It goes to {tier.address}, {_over(tier)}, {_form(config, tier)}."
    if config.cascade.task.input_spec.kind != "text":
        text += " If its metadata say that it is no coe-cloud, it is sent the numbers that they ask for."
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
    if isinstance(before.rule, CalibratedVote) and before.rule.threshold is not None:
        return (
            "An example leaves when the calibrated vote of all models asked so far gives its label a probability under "
            f"{before.rule.threshold:g} at tier {before.name}."
        )
    if isinstance(before, LocalTierConfig) and isinstance(before.rule, Agreement):
        n = len(before.members)
        needed = before.rule.needed(n)
        agree = f"all {n} models" if needed == n else f"at least {needed} of the {n} models"
        return f"An example leaves when not {agree} of tier {before.name} give it the same label."
    return f"An example leaves when the vote of tier {before.name} does not settle it."


def _over(tier: RemoteTierConfig) -> str:
    security = tier.security
    if security.is_encrypted:
        authority = f"the CA in {security.ca.name}" if security.ca else "a public CA"
        return f"encrypted (TLS), to a server whose certificate {authority} signed"
    if all(is_this_machine(address) for address in tier.addresses):
        return "in plaintext, which does not leave this machine"
    return "IN PLAINTEXT, so that everybody on the way can read and change it"


def _form(config: AgentConfig, tier: RemoteTierConfig) -> str:
    input_spec = config.cascade.task.input_spec
    if input_spec.kind == "text":
        return "as its text, word for word"
    if input_spec.kind != "image" and tier.send.kind in ("captured", "pixels"):
        return "as its numbers"
    size = " x ".join(map(str, input_spec.shape[:2]))
    return FORMS[tier.send.kind].format(size=size, quality=tier.send.quality)


def _audited(audit: AuditConfig) -> Statement:
    text = (
        f"Of the examples on which the device agreed, up to {audit.share * 100:.4g}% are drawn at "
        f"random and sent as well, to see how often agreement is wrong: at most {audit.max_per_hour:g} an hour and "
        f"{audit.max_bytes_per_day / 1e6:g} MB a day. They go to the same servers, in the same form."
    )
    return Statement("leaves", "audit", text)


def _sent_by(sink: SinkConfig, is_private: bool) -> Iterator[Statement]:
    """The records that a sink sends to other machines: not the example, but its name and its answer.

    Args:
        is_private: some examples may not leave.
    """
    record = "each decision's record: the example's id (a file's name, where it was one), label, votes, times, errors"
    if is_private:
        record += "; also of examples that may not leave: no example, but its label, and which class held it back"
    if sink.mqtt is not None:
        over = "in plaintext" if sink.mqtt.tls is None else "over TLS"
        more = "; for Home Assistant, whether the link is up, and counts" if sink.mqtt.discovery else ""
        yield Statement("leaves", "sink", f"To the broker {sink.mqtt.host}:{sink.mqtt.port}, {over}: {record}{more}.")
    if sink.webhook is not None:
        yield Statement("leaves", "sink", f"To {sink.webhook.url}: {record}.")


def metadata_sent(config: AgentConfig) -> Iterator[Statement]:
    for tier in config.cascade.remote_tiers:
        about = f"tier {tier.name}"
        text = (
            f"With each request to {tier.address}: the model's name ({tier.model}), "
            f"to a coe-cloud a fingerprint of labels and input format, "
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
    if config.cascade.remote_tiers:
        yield Statement(
            "beside",
            "tiers",
            "As the agent starts, and while a server does not answer, it asks for the model's metadata and whether it "
            "is ready. These questions hold no example.",
        )


def examples_kept_here(config: AgentConfig) -> Iterator[Statement]:
    task, field = config.cascade.task, config.field
    if config.cascade.remote_tiers:
        ids = "An example's id, its file's name, its true label where it is known, and the votes and scores of this "
        ids += "device's models are not sent to any tier."
        yield Statement("stays", "tiers", ids)
        if config.cascade.local_tiers and (field.audit is None or field.audit.share == 0):
            yield Statement("stays", "audit", "Examples that this device's models settle never leave it.")
    if field.never_send:
        names = ", ".join(task.labels[label] for label in sorted(field.never_send))
        text = f"An example that any of this device's models takes for one of these never leaves it: {names}."
        yield Statement("stays", "never_send", text)
    if field.privacy_filter:
        text = (
            f"The privacy filter {field.privacy_filter} is called for each example that would leave, and can hold it "
            "back; if it fails, "
        )
        yield Statement("stays", "privacy_filter", f"{text}the example stays.")
    text = "The models and this config stay here. The program reports to nobody else, and ONNX Runtime to nobody."
    yield Statement("stays", "", text)


NO_SECRET = "It is not encrypted: protect the disk, or the file, where that matters."


def stored_files(config: AgentConfig) -> Iterator[Statement]:
    for sink in config.sinks:
        if sink.path is not None:
            yield Statement("kept", "sink", f"{sink.path}: each decision's record, no example, {_bound_of(sink)}.")
    harvest = config.field.harvest
    if harvest is not None:
        full = "the oldest make room" if harvest.drop_oldest else "then no more are kept"
        text = (
            f"{harvest.path}: EXAMPLES that were sent, with the answers, for training: up to {harvest.max_count:,} and "
            f"{harvest.max_bytes / 1e6:g} MB; {full}. They stay until somebody removes them. {NO_SECRET}"
        )
        yield Statement("kept", "harvest", text)
    if config.spool is not None:
        yield _spooled(config.spool)
    if config.link.max_bytes_per_month or config.link.max_examples_per_hour or config.field.same_scene:
        yield Statement("kept", "link", f"{config.state / 'link.json'}: counts of what was sent, by month; no example.")
    if config.field.audit is not None:
        yield Statement("kept", "audit", f"{config.state / 'audit.json'}: counts of the audit, by label; no example.")
    if any(source.remember for source in config.source.each):
        text = (
            f"{config.state / 'folders.db'}: the names of files that were decided, as long as they are in their folder"
        )
        yield Statement("kept", "source", f"{text}; no example.")
    if all(sink.path is None for sink in config.sinks) and harvest is None:
        yield Statement("kept", "sink", "Decisions go to standard output: what is kept of them is up to who reads it.")


def _bound_of(sink: SinkConfig) -> str:
    if sink.rotation is not None:
        size = f"{sink.rotation.max_bytes / 2**20:g} MB"
        return f"up to {size} in one file and {sink.rotation.keep} older files; older ones are removed"
    if sink.max_rows is not None:
        return f"the latest {sink.max_rows:,}; older ones are removed"
    return "without bound: nothing is removed"


def _spooled(spool: SpoolConfig) -> Statement:
    text = (
        f"{spool.path}: EXAMPLES that a server should have answered and did not, as they came, until it has answered: "
        f"at most {spool.max_age_s / 3600:g} hours, {spool.max_count:,} examples and {spool.max_bytes / 1e6:g} MB; "
        f"what is too much goes, the {spool.drop} first. {NO_SECRET}"
    )
    return Statement("kept", "spool", text)


def local_access(config: AgentConfig) -> Iterator[Statement]:
    for source in config.source.each:
        if source.server is not None:
            text = f"Programs on this device can ask the cascade at {source.server.address}, unencrypted; no other "
            yield Statement("open", "source", f"{text}machine can.")
        if source.camera is not None and isinstance(source.camera.device, str) and "://" in source.camera.device:
            text = "Frames come over the network from the stream that the source names"
            plain = "" if source.camera.device.startswith(("rtsps:", "https:")) else ", unencrypted"
            yield Statement("open", "source", f"{text}{plain}.")
    watch = config.watch
    if watch is not None:
        text = f"http://{watch.host}:{watch.port}/ shows counts, recent decisions and the link, "
        but = ", but of none that may not leave" if config.field.holds_back else ""
        text += f"with small pictures of recent examples{but}, " if watch.thumbnails else "without pictures, "
        text += "to everybody who can reach that address; there is no password."
        yield Statement("open", "watch", text)
    if watch is None and not any(source.server for source in config.source.each):
        yield Statement("open", "", "Nobody: no port is open.")


def statements_of(config: AgentConfig) -> list[Statement]:
    """All statements about a config, in the order of HEADINGS."""
    return [
        *examples_sent(config),
        *metadata_sent(config),
        *examples_kept_here(config),
        *stored_files(config),
        *local_access(config),
    ]


def explain_command(arguments: Sequence[str]) -> int:
    """0: the statements are printed.

    Raises:
        ConfigError: the config cannot be read.
    """
    options = _parser().parse_args(arguments)
    path = options.config or default_config()
    statements = statements_of(read_config(path))
    if options.json:
        print(json.dumps({"config": str(path), "statements": [asdict(one) for one in statements]}, indent=2))
    else:
        print("\n".join(_lines(path, statements)))
    return 0


def _lines(path: Path, statements: Sequence[Statement]) -> list[str]:
    width = min(shutil.get_terminal_size((80, 24)).columns, MAX_WIDTH) - 1
    lines = [str(path)]
    for topic, heading in HEADINGS.items():
        chosen = [statement for statement in statements if statement.topic == topic]
        lines += ["", heading] if chosen else []
        for statement in chosen:
            source = f" [{statement.about}]" if statement.about else ""
            lines += textwrap.wrap(
                statement.text + source,
                width,
                initial_indent="  - ",
                subsequent_indent="    ",
                break_long_words=False,
                break_on_hyphens=False,
            )
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="coe-edge explain",
        description="Print what leaves this device, and what it keeps. It connects to nothing and changes nothing.",
    )
    parser.add_argument("--config", type=Path, help="YAML file; default: the bundled digits")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser
