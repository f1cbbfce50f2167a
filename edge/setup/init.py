"""`coe-edge init`: the models found, and a first config for them, from a few questions or flags."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from coe.cascade.errors import ConfigError
from coe.cascade.types import Batch
from coe.config.open import open_tier
from coe.protocol.channel import fix_of_address
from edge.config import read_config

from .accuracy import EXAMPLES, as_yaml, check_examples
from .findings import CheckContext, Printer
from .found_models import FoundModel, FoundModels, find_models, fitted, read_labels

CLOUD = """  - name: cloud                   # gets what these models disagree on
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
CHECK_SCALE = "# CHECK how your models were trained: they see (pixel * scale - mean) / std; 0.00392 is 1/255."


@dataclass(frozen=True)
class InitChoices:
    """The choices that make a first config.

    Args:
        labels: of the task; empty where a manifest has them.
        cloud: host:port; "": none.
        source: the `source:` setting as YAML.
    """

    found: FoundModels
    labels: tuple[str, ...]
    cloud: str
    source: str


def first_config(choices: InitChoices, path: str) -> str:
    """The YAML text of a config, with comments; `path` is shown in its first line."""
    found = choices.found
    lines = [f"# coe-edge --config {path}", "#"]
    lines += ["# Everything that is commented out can be set; docs/configure.md says what it means.", ""]
    lines += _task(found, choices.labels)
    lines += ["", "tiers:", "  - name: device", "    members:                      # asked in this order"]
    for model in found.models:
        lines += _member(model, found)
    lines += _rule(len(found.models), found.agreement, bool(choices.cloud))
    text = "\n".join(lines) + "\n"
    text += CLOUD.format(address=_quoted(choices.cloud)) if choices.cloud else NO_CLOUD
    return f"{text}\nsource: {choices.source}\n{REST}"


def _task(found: FoundModels, labels: tuple[str, ...]) -> list[str]:
    if found.input_spec is None:
        return ["# Labels and input of the task, from the manifest of its models.", f"task: {_quoted(found.task)}"]
    return [
        "# What is decided. The cloud must have the same labels, in the same order, and the same input.",
        f"task: {_quoted(found.task)}",
        f"labels: [{', '.join(map(_quoted, labels))}]",
        f"input: {as_yaml(found.input_spec)}",
        *([CHECK_SCALE] if found.input_spec.kind == "image" and not found.is_tried else []),
    ]


def _member(model: FoundModel, found: FoundModels) -> list[str]:
    own = []
    if model.output != "probabilities":
        own.append(f"        output: {model.output}           # it ends before the softmax")
    if model.input_spec is not None and model.input_spec != found.input_spec:
        own.append(f"        input: {as_yaml(model.input_spec)}")
    if model.labels:
        own.append(f"        labels: [{', '.join(map(_quoted, model.labels))}]   # in the order of its outputs")
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
    """A text as YAML: plain where that is safe, else in quotes (each JSON string is a YAML string)."""
    plain = text.replace("/", "").replace(".", "").replace("_", "").replace("-", "")
    is_plain = plain.isalnum() and plain.isascii() and plain[0].isalpha() and text[0].isalpha()
    is_word = text.lower() in ("yes", "no", "on", "off", "true", "false", "null", "y", "n", "nan", "inf")
    return text if is_plain and not is_word else json.dumps(text, ensure_ascii=False)


SOURCES = "folder:/path, csv:/path, stdin, camera:0 or digits"

RAW_AUDIO = 4000  # numbers an example: half a second of speech at 8 kHz

T = TypeVar("T")
Ask = Callable[[str, str], str]  # question and default -> answer


def init_command(arguments: Sequence[str]) -> int:
    """0: the config is written.

    Raises:
        ConfigError: a flag is wrong, or the file is there already.
    """
    options = _parser().parse_args(arguments)
    path: Path = options.output
    if path.exists() and not options.force:
        raise ConfigError([f"--output: expected a new file, got {path} which is there (--force replaces it)"])
    if not path.parent.is_dir():
        raise ConfigError([f"--output: expected a folder that is there, got {path.parent} (mkdir -p {path.parent})"])
    asks = not options.yes and sys.stdin is not None and sys.stdin.isatty()
    choices = _choices(options, _ask if asks else None, path.parent)
    _write(path, first_config(choices, str(path)))
    _print_next_steps(path, choices)
    if options.examples is not None:
        print()
        printer = Printer(sys.stdout)
        for finding in check_examples(CheckContext(config=read_config(path), examples=options.examples)):
            printer.show(finding)
    return 0


def _choices(options: argparse.Namespace, ask: Ask | None, folder: Path) -> InitChoices:
    """The flags, completed by the user's answers, or by the defaults where `ask` is None."""
    question = "Models: a folder of .onnx or .tflite files, or zoo:digits"
    models, found = _choice(
        options.models or None, ask, question, "zoo:digits", lambda text: (text, find_models(text, folder))
    )
    if options.examples is not None and found.input_spec is not None:
        found, labels = fitted(
            found,
            options.examples,
            lambda found: _labels(options.labels, found, None),
            are_given=bool(options.labels),
        )
    else:
        labels = _labels(options.labels, found, ask)
        found = found.of_labels(labels)
    question = "Server for what they disagree on, host:port (empty: none)"
    cloud = _choice(options.cloud, ask, question, "", _cloud)
    usual = "digits" if models == "zoo:digits" else "stdin"
    source = _choice(options.source or None, ask, f"Where examples come from: {SOURCES}", usual, _source)
    return InitChoices(found, labels, cloud, source)


def _choice(flag: str | None, ask: Ask | None, question: str, default: str, read: Callable[[str], T]) -> T:
    """The flag, or else the user's answer, as `read` returns it; the question is repeated until `read` accepts it."""
    if flag is not None or ask is None:
        return read(default if flag is None else flag)
    while True:
        try:
            return read(ask(question, default))
        except ConfigError as error:
            for finding in error.findings:
                print(f"  {finding}")


def _cloud(text: str) -> str:
    if text and (fix := fix_of_address(text)):
        raise ConfigError([f'--cloud: expected host:port, got "{text}" ({fix})'])
    return text


def _labels(flag: str | None, found: FoundModels, ask: Ask | None) -> tuple[str, ...]:
    if found.input_spec is None:
        if flag:
            raise ConfigError(["--labels: expected none for models with a manifest, which has them (leave it out)"])
        return ()
    question = f"Labels, in the order of the models' {found.n_labels} outputs: a,b,c or a file"
    return _choice(flag, None if found.labels else ask, question, "", lambda text: _read_labels(text, found))


def _read_labels(text: str, found: FoundModels) -> tuple[str, ...]:
    """The labels of a list or a file; of "": those found with the models, or numbered ones."""
    if not text:
        labels = found.labels or tuple(f"label-{number}" for number in range(found.n_labels))
    elif "," not in text and Path(text).expanduser().is_file():
        labels = read_labels(Path(text).expanduser())
    else:
        labels = tuple(label.strip() for label in text.split(","))
    if len(labels) != found.n_labels or len(set(labels)) != len(labels) or not all(labels):
        got = f"{len(labels)} ({', '.join(labels[:5])}{', ...' if len(labels) > 5 else ''})"
        raise ConfigError([f"--labels: expected {found.n_labels} different labels, as the models have, got {got}"])
    return labels


def _source(text: str) -> str:
    """The `source:` setting as YAML; a folder that does not exist is created."""
    kind, _, rest = text.partition(":")
    if kind in ("stdin", "digits") and not rest:
        return f"{{kind: {kind}}}"
    if kind == "camera" and rest.isdecimal():
        return f"{{kind: camera, device: {int(rest)}}}"
    if kind == "csv" and rest:
        return f"{{kind: csv, path: {_quoted(str(Path(rest).expanduser().absolute()))}}}"
    if kind == "folder" and rest:
        folder = Path(rest).expanduser().absolute()
        folder.mkdir(parents=True, exist_ok=True)
        return f"{{kind: folder, path: {_quoted(str(folder))}, watch: true}}"
    fix = f" (write folder:{text})" if Path(text).is_dir() or ("/" in text and not rest) else ""
    raise ConfigError([f'--source: expected {SOURCES}, got "{text}"{fix}'])


def _write(path: Path, text: str) -> None:
    """Write all of the file or nothing, and only if the agent can read it, load its models and decide an example."""
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(text, encoding="utf-8")
    try:
        cascade = read_config(draft).cascade
        for tier in cascade.local_tiers:
            opened = open_tier(tier, cascade)
            try:
                opened.vote(Batch(("blank",), cascade.task.input_spec.blank()), opened.rule)
            finally:
                opened.close()
        os.replace(draft, path)
    except ConfigError as error:
        raise ConfigError(error.findings, str(path)) from None
    finally:
        draft.unlink(missing_ok=True)


def _print_next_steps(path: Path, choices: InitChoices) -> None:
    where = shlex.quote(str(path))
    print(f"wrote {path}: {len(choices.found.models)} models, {choices.found.n_labels} labels")
    if any(label.startswith("label-") for label in choices.labels):
        print(f"the model files do not name their outputs: write the labels into {path}")
    found = choices.found
    if found.input_spec is not None and found.input_spec.kind == "image" and not found.is_tried:
        print("pixels are scaled to 0..1 as it stands: CHECK `input:` against how the models were trained")
    if found.input_spec is not None and len(found.input_spec.shape) == 1 and found.input_spec.shape[0] >= RAW_AUDIO:
        print(
            f"its {found.input_spec.shape[0]} numbers look like raw audio: examples are arrays of the samples as such"
        )
    for command, what in (
        ("doctor", "is everything there?"),
        ("explain", "what would leave this device?"),
        ("", "decide"),
        ("install-service", "and from now on, always"),
    ):
        line = f"coe-edge {command} --config {where}" if command else f"coe-edge --config {where}"
        print(f"  {line.ljust(48)}  # {what}")


def _ask(question: str, default: str) -> str:
    shown = f" [{default}]" if default else ""
    try:
        return input(f"{question}{shown}: ").strip() or default
    except EOFError:
        print()
        raise KeyboardInterrupt from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="coe-edge init",
        description="Write a first config, with comments. On a terminal it asks for what the flags leave open.",
    )
    parser.add_argument("--output", type=Path, default=Path("pi.yaml"), help="default: pi.yaml")
    parser.add_argument("--models", metavar="FOLDER", help="of .onnx or .tflite files, or zoo:digits, the bundled ones")
    parser.add_argument("--labels", metavar="A,B,C", help="in the order of the models' outputs; or a file, one a line")
    parser.add_argument("--examples", type=Path, metavar="PLACE", help=EXAMPLES)
    parser.add_argument("--cloud", metavar="HOST:PORT", help="server for what the models disagree on; '' for none")
    parser.add_argument("--source", help=SOURCES)
    parser.add_argument("--yes", action="store_true", help="ask nothing: the defaults for what is left open")
    parser.add_argument("--force", action="store_true", help="replace a config that is there")
    return parser
