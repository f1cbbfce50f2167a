"""The text of a first config: what was answered, and beside it, commented out, what else can be set."""

from __future__ import annotations

import json
from dataclasses import dataclass

from coe.models.contract import Contract

from .found_models import Found, FoundModel

CLOUD = """  - name: cloud                   # asked about what these models disagree on
    address: {address}
    # model: digits               # as the server calls it, where that is not the task's name
    # deadline_ms: 2000           # then the device answers by itself, and says so
    # send: captured              # or png, {{jpeg: 85}}, model-size, pixels: `coe-edge bench` compares them
    # tls: {{ca: ca.pem}}           # encrypted; coe-cloud certs makes the files
    # token_file: device.token
"""
NO_CLOUD = """  # - name: cloud                 # a server to ask about what these models disagree on: coe-cloud
  #   address: gpu-host:8001
"""
REST = """
# Decisions, one JSON object a line; "-" is standard output, which a service has in its journal.
sink: {path: "-"}
# sink: {path: /var/lib/coe-edge/decisions.jsonl, max_mb: 16, keep: 5}

# when_unavailable: answer-local  # or spool: answer now, correct later; or fail
# deadline_ms: 500                # of one example in all
# max_in_flight: 16               # examples that wait for a server while others are decided here
# never_send: []                  # labels whose examples stay on this device
# grace_s: 10                     # what waiting examples have to end, when the service is stopped
# watch: {address: 127.0.0.1:9109}  # metrics and a small page
"""


@dataclass(frozen=True)
class Answers:
    """What a first config is made from.

    Args:
        labels: of the task; empty where a manifest says them.
        cloud: host:port; "": none.
        source: the `source:` setting as it is written.
    """

    found: Found
    labels: tuple[str, ...]
    cloud: str
    source: str


def first_config(answers: Answers, path: str) -> str:
    """The YAML."""
    found = answers.found
    lines = [f"# coe-edge --config {path}", "#"]
    lines += ["# Everything that is commented out can be set; docs/configure.md says what it means.", ""]
    lines += _task(found, answers.labels)
    lines += ["", "tiers:", "  - name: device", "    members:                      # asked in this order"]
    for model in found.models:
        lines += _member(model, found)
    lines += _rule(len(found.models), found.agreement, bool(answers.cloud))
    text = "\n".join(lines) + "\n"
    text += CLOUD.format(address=_quoted(answers.cloud)) if answers.cloud else NO_CLOUD
    return f"{text}\nsource: {answers.source}\n{REST}"


def _task(found: Found, labels: tuple[str, ...]) -> list[str]:
    if found.contract is None:
        return ["# Labels and input of the task, from the manifest of its models.", f"task: {_quoted(found.task)}"]
    return [
        "# What is decided. The cloud must have the same labels, in the same order, and the same input.",
        f"task: {_quoted(found.task)}",
        f"labels: [{', '.join(map(_quoted, labels))}]",
        f"input: {_input(found.contract)}",
        *_to_check(found.contract),
    ]


def _to_check(contract: Contract) -> list[str]:
    if contract.kind != "image":
        return []
    return ["# CHECK how your models were trained: they see (pixel * scale - mean) / std; 0.00392 is 1/255."]


def _input(contract: Contract) -> str:
    if contract.kind == "tensor":
        return f"{{kind: tensor, shape: [{', '.join(map(str, contract.shape))}], dtype: {contract.dtype}}}"
    height, width, channels = contract.shape
    size = f"kind: image, size: [{height}, {width}], channels: {channels}, layout: {contract.layout}"
    return f"{{{size}, dtype: {contract.dtype}, scale: {contract.scale!r}}}"


def _member(model: FoundModel, found: Found) -> list[str]:
    own = []
    if model.output != "probabilities":
        own.append(f"        output: {model.output}           # it ends before the softmax")
    if model.contract is not None and model.contract != found.contract:
        own.append(f"        input: {_input(model.contract)}")
    if not own:
        return [f"      - {_quoted(model.reference)}"]
    return [f"      - file: {_quoted(model.reference)}", *own]


def _rule(n_models: int, agreement: str, has_cloud: bool) -> list[str]:
    if not has_cloud:
        return [
            "    # agreement: unanimous        # how many must agree; without a tier beyond, the vote always decides"
        ]
    if n_models == 1:
        return ["    confidence: 0.9               # one model cannot agree with others: how sure it must be"]
    return [f"    {f'agreement: {agreement}'.ljust(29)} # or majority, 2/3: how many must agree, or the cloud is asked"]


def _quoted(text: str) -> str:
    """As YAML reads it back: plain where that is safe. JSON's strings are YAML's, too."""
    plain = text.replace("/", "").replace(".", "").replace("_", "").replace("-", "")
    is_plain = plain.isalnum() and plain.isascii() and plain[0].isalpha() and text[0].isalpha()
    is_word = text.lower() in ("yes", "no", "on", "off", "true", "false", "null", "y", "n", "nan", "inf")
    return text if is_plain and not is_word else json.dumps(text, ensure_ascii=False)
