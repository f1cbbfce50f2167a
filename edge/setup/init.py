"""`coe-edge init`: a first config, from a few questions or flags."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from coe.cascade.errors import ConfigError
from coe.wire.target import is_address

from ..config import read_config
from .first_config import Answers, first_config
from .found_models import Found, find_models, read_labels

SOURCES = "folder:/path, stdin, camera:0 or digits"

T = TypeVar("T")
Ask = Callable[[str, str], str]  # question and default -> answer


def init_command(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    path: Path = options.output
    if path.exists() and not options.force:
        raise ConfigError([f"--output: expected a new file, got {path} which is there (--force replaces it)"])
    if not path.parent.is_dir():
        raise ConfigError([f"--output: expected a folder that is there, got {path.parent} (mkdir -p {path.parent})"])
    asks = not options.yes and sys.stdin is not None and sys.stdin.isatty()
    answers = _answers(options, _ask if asks else None, path.parent)
    _write(path, first_config(answers, str(path)))
    _end(path, answers)
    return 0


def _answers(options: argparse.Namespace, ask: Ask | None, folder: Path) -> Answers:
    """From the flags, and for what they leave open, from the user or the defaults.

    Args:
        ask: None: the defaults.
    """
    question = "Models: a folder of .onnx or .tflite files, or zoo:digits"
    models, found = _given(
        options.models or None, ask, question, "zoo:digits", lambda text: (text, find_models(text, folder))
    )
    labels = _labels(options.labels, found, ask)
    question = "Server to ask about what they disagree on, host:port (empty: none)"
    cloud = _given(options.cloud, ask, question, "", _cloud)
    usual = "digits" if models == "zoo:digits" else "stdin"
    source = _given(options.source or None, ask, f"Where examples come from: {SOURCES}", usual, _source)
    return Answers(found, labels, cloud, source)


def _given(flag: str | None, ask: Ask | None, question: str, default: str, read: Callable[[str], T]) -> T:
    """What `read` makes of the flag, or else of the user's answer; who is asked again if it cannot be read."""
    if flag is not None or ask is None:
        return read(default if flag is None else flag)
    while True:
        try:
            return read(ask(question, default))
        except ConfigError as error:
            for finding in error.findings:
                print(f"  {finding}")


def _cloud(text: str) -> str:
    if text and not is_address(text):
        raise ConfigError([f'--cloud: expected host:port, got "{text}" (coe-cloud serves on port 8001)'])
    return text


def _labels(given: str | None, found: Found, ask: Ask | None) -> tuple[str, ...]:
    if found.contract is None:
        if given:
            raise ConfigError(["--labels: expected none for models with a manifest, which says them (leave it out)"])
        return ()
    question = f"Labels, in the order of the models' {found.n_labels} outputs: a,b,c or a file"
    return _given(given, None if found.labels else ask, question, "", lambda text: _read_labels(text, found))


def _read_labels(text: str, found: Found) -> tuple[str, ...]:
    """Of a list or a file; "": as the models have them, or made up."""
    if not text:
        labels = found.labels or tuple(f"label-{number}" for number in range(found.n_labels))
    elif "," not in text and Path(text).expanduser().is_file():
        labels = read_labels(Path(text).expanduser())
    else:
        labels = tuple(label.strip() for label in text.split(","))
    if len(labels) != found.n_labels or len(set(labels)) != len(labels) or not all(labels):
        told = f"{len(labels)} ({', '.join(labels[:5])}{', ...' if len(labels) > 5 else ''})"
        raise ConfigError([f"--labels: expected {found.n_labels} different labels, as the models have, got {told}"])
    return labels


def _source(text: str) -> str:
    """The `source:` setting; a folder that is not there is made."""
    kind, _, rest = text.partition(":")
    if kind in ("stdin", "digits") and not rest:
        return f"{{kind: {kind}}}"
    if kind == "camera" and rest.isdecimal():
        return f"{{kind: camera, device: {int(rest)}}}"
    if kind == "folder" and rest:
        folder = Path(rest).expanduser().absolute()
        folder.mkdir(parents=True, exist_ok=True)
        return f"{{kind: folder, path: {_yaml(str(folder))}, watch: true}}"
    mend = f" (write folder:{text})" if Path(text).is_dir() or ("/" in text and not rest) else ""
    raise ConfigError([f'--source: expected {SOURCES}, got "{text}"{mend}'])


def _yaml(path: str) -> str:
    return path if re.fullmatch(r"[/\w.-]+", path, re.ASCII) else "'" + path.replace("'", "''") + "'"


def _write(path: Path, text: str) -> None:
    """All of it or nothing, and only if the agent would take it."""
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(text, encoding="utf-8")
    try:
        read_config(draft)
        os.replace(draft, path)
    except ConfigError as error:
        raise ConfigError(error.findings, str(path)) from None
    finally:
        draft.unlink(missing_ok=True)


def _end(path: Path, answers: Answers) -> None:
    where = shlex.quote(str(path))
    print(f"wrote {path}: {len(answers.found.models)} models, {answers.found.n_labels} labels")
    if any(label.startswith("label-") for label in answers.labels):
        print(f"the models do not say what their outputs mean: name the labels in {path}")
    if answers.found.contract is not None and answers.found.contract.kind == "image":
        print("pixels are scaled to 0..1 as it stands: CHECK `input:` against how the models were trained")
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
    parser.add_argument("--cloud", metavar="HOST:PORT", help="server to ask; '' for none")
    parser.add_argument("--source", help=SOURCES)
    parser.add_argument("--yes", action="store_true", help="ask nothing: the defaults for what is left open")
    parser.add_argument("--force", action="store_true", help="replace a config that is there")
    return parser
