"""`coe-edge init`: the models found, and a first config for them, from a few questions or flags."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from coe import zoo
from coe.cascade.errors import CascadeError, ConfigError, ModelError
from coe.config import read_yaml
from coe.config.cascade import LocalTierConfig
from coe.config.manifest import NAME, read_manifest
from coe.models.input_spec import InputSpec
from coe.models.loading import ModelSpec, load
from coe.protocol.channel import fix_of_address
from edge.config import read_config

from .shapes import Shape, Tensor, shape_of

SUFFIXES = (".onnx", ".tflite")  # where a model is there in both, the first
FLOATS = ("float32", "float16", "int8")  # int8 models take floats, and are given them quantised
IMAGE_SCALE = 1 / 255


@dataclass(frozen=True)
class FoundModel:
    """One model file.

    Args:
        reference: as a config writes it.
        output: "probabilities" or "logits".
        input_spec: what it takes; None: a manifest says it.
    """

    reference: str
    output: str = "probabilities"
    input_spec: InputSpec | None = None


@dataclass(frozen=True)
class FoundModels:
    """Models that make one ensemble.

    Args:
        task: its name; or, with a manifest, where that is.
        labels: as far as known: those of a manifest or of a labels file.
        n_labels: of the models' outputs.
        input_spec: of the task; None: the manifest says it.
        agreement: as a config writes it.
    """

    task: str
    models: tuple[FoundModel, ...]
    labels: tuple[str, ...]
    n_labels: int
    input_spec: InputSpec | None = None
    agreement: str = "unanimous"


def find_models(reference: str, folder: Path) -> FoundModels:
    """The models at `zoo:TASK`, or in a folder.

    Args:
        folder: of the config that is written; its paths start there.
    Raises:
        ConfigError: there are none, or they do not fit each other.
    """
    if reference.startswith("zoo:"):
        return _from_zoo(reference)
    place = Path(reference).expanduser()
    if not place.is_dir():
        raise ConfigError([f"--models: expected a folder of .onnx or .tflite files or zoo:digits, got {reference}"])
    if (place / NAME).is_file():
        return _from_manifest(place, folder)
    return _from_files(place, folder)


def _from_zoo(reference: str) -> FoundModels:
    """The bundled config of that task names its models and their order."""
    name = reference.removeprefix("zoo:")
    path = zoo.find(name) / "edge.yaml"
    config = read_config(path)
    tier = next(tier for tier in config.cascade.tiers if isinstance(tier, LocalTierConfig))
    models = tuple(FoundModel(f"zoo:{name}/{spec.path.name}") for spec in tier.members)
    said = read_yaml(path)["tiers"][config.cascade.tiers.index(tier)]
    labels = config.cascade.task.labels
    return FoundModels(reference, models, labels, len(labels), agreement=str(said.get("agreement", "unanimous")))


def _from_manifest(place: Path, folder: Path) -> FoundModels:
    manifest = read_manifest(place)
    files = _one_format_each([spec.path for spec in manifest.models.values()])
    if not files:
        raise ConfigError(["expected the models of this folder in it, got none"], str(place / NAME))
    models = tuple(FoundModel(_reference(path, folder)) for path in files)
    return FoundModels(_reference(place / NAME, folder), models, manifest.task.labels, len(manifest.task.labels))


def _from_files(place: Path, folder: Path) -> FoundModels:
    """No manifest: the files say what they take, but not what their outputs mean, nor how pixels are scaled."""
    files = _one_format_each([path for path in sorted(place.iterdir()) if path.suffix in SUFFIXES])
    if not files:
        raise ConfigError([f"expected .onnx or .tflite files, got none in {place} (copy them there)"])
    shapes = [(path, shape_of(path)) for path in files]
    counts = {path.name: _n_labels(path, shape) for path, shape in shapes}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {n}" for name, n in counts.items())
        raise ConfigError(
            [f"expected models with one number of labels, got {told} (move the others elsewhere)"], str(place)
        )
    n_labels = next(iter(counts.values()))
    labels = _labels_in(place)
    models = []
    for path, shape in shapes:
        input_spec = input_spec_of(path, shape.inputs[0])
        models.append(FoundModel(_reference(path, folder), _output_of(path, input_spec, n_labels), input_spec))
    return FoundModels(place.resolve().name, tuple(models), labels, n_labels, models[0].input_spec)


def input_spec_of(path: Path, taken: Tensor) -> InputSpec:
    """What an example is, as far as a model's input tells: an image where it has 1 or 3 channels.

    Raises:
        ConfigError: its input has another free dimension than the batch, or a type that no member takes.
    """
    dims = taken.dims[1:]
    if not dims or None in dims:
        shown = ", ".join("free" if dim is None else str(dim) for dim in taken.dims)
        raise ConfigError([f"expected an input of one size but for the batch, got [{shown}] (export it so)"], str(path))
    shape = tuple(dim for dim in dims if dim is not None)
    if taken.dtype not in (*FLOATS, "uint8", "int32", "int64"):
        raise ConfigError([f"expected an input of floats, uint8 or integers, got {taken.dtype}"], str(path))
    dtype = "float32" if taken.dtype == "int8" else taken.dtype
    if len(shape) != 3 or dtype in ("int32", "int64") or not {shape[0], shape[2]} & {1, 3}:
        return InputSpec("tensor", shape, "NHWC", dtype)
    layout = "NCHW" if shape[0] in (1, 3) else "NHWC"
    height, width, channels = (shape[1], shape[2], shape[0]) if layout == "NCHW" else shape
    scale = 1.0 if dtype == "uint8" else IMAGE_SCALE
    return InputSpec("image", (height, width, channels), layout, dtype, scale)


def _n_labels(path: Path, shape: Shape) -> int:
    if len(shape.inputs) != 1:
        fix = "models of texts need a manifest: docs/own-models.md"
        raise ConfigError([f"expected one input, got {len(shape.inputs)} ({fix})"], str(path))
    sizes = [tensor.dims[1] for tensor in shape.outputs if len(tensor.dims) == 2 and tensor.dims[1]]
    if not sizes or (sizes[0] or 0) < 2:
        raise ConfigError(["expected an output [batch, labels] with two labels or more (export it so)"], str(path))
    return sizes[0] or 0


def _output_of(path: Path, input_spec: InputSpec, n_labels: int) -> str:
    """Whether it ends in probabilities, tried; taken for so where it cannot be loaded here."""
    kind = "tflite" if path.suffix == ".tflite" else "onnx"
    spec = ModelSpec(path.name, path, kind, tuple(map(str, range(n_labels))), input_spec)
    try:
        load(spec).close()
    except ModelError as error:
        return "logits" if "output: logits" in str(error) else "probabilities"
    except CascadeError:
        return "probabilities"
    return "probabilities"


def _labels_in(place: Path) -> tuple[str, ...]:
    path = place / "labels.txt"
    return read_labels(path) if path.is_file() else ()


def read_labels(path: Path) -> tuple[str, ...]:
    """One label a line, in the order of the models' outputs."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"cannot be read: {getattr(error, 'strerror', None) or error}"], str(path)) from None
    return tuple(line.strip() for line in lines if line.strip())


def _one_format_each(paths: list[Path]) -> list[Path]:
    """Each model once, where it is there in several formats."""
    chosen: dict[str, Path] = {}
    for suffix in SUFFIXES:
        for path in paths:
            if path.suffix == suffix:
                chosen.setdefault(path.name.split(".")[0], path)
    return sorted(chosen.values(), key=lambda path: (path.stat().st_size if path.is_file() else 0, path.name))


def _reference(path: Path, folder: Path) -> str:
    """Relative to the config's folder where it is below that."""
    whole = path.resolve()
    return str(whole.relative_to(folder.resolve())) if whole.is_relative_to(folder.resolve()) else str(whole)


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
class InitChoices:
    """What a first config is made from.

    Args:
        labels: of the task; empty where a manifest says them.
        cloud: host:port; "": none.
        source: the `source:` setting as it is written.
    """

    found: FoundModels
    labels: tuple[str, ...]
    cloud: str
    source: str


def first_config(answers: InitChoices, path: str) -> str:
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


def _task(found: FoundModels, labels: tuple[str, ...]) -> list[str]:
    if found.input_spec is None:
        return ["# Labels and input of the task, from the manifest of its models.", f"task: {_quoted(found.task)}"]
    return [
        "# What is decided. The cloud must have the same labels, in the same order, and the same input.",
        f"task: {_quoted(found.task)}",
        f"labels: [{', '.join(map(_quoted, labels))}]",
        f"input: {_input(found.input_spec)}",
        *_to_check(found.input_spec),
    ]


def _to_check(input_spec: InputSpec) -> list[str]:
    if input_spec.kind != "image":
        return []
    return ["# CHECK how your models were trained: they see (pixel * scale - mean) / std; 0.00392 is 1/255."]


def _input(input_spec: InputSpec) -> str:
    if input_spec.kind == "tensor":
        return f"{{kind: tensor, shape: [{', '.join(map(str, input_spec.shape))}], dtype: {input_spec.dtype}}}"
    height, width, channels = input_spec.shape
    size = f"kind: image, size: [{height}, {width}], channels: {channels}, layout: {input_spec.layout}"
    return f"{{{size}, dtype: {input_spec.dtype}, scale: {input_spec.scale!r}}}"


def _member(model: FoundModel, found: FoundModels) -> list[str]:
    own = []
    if model.output != "probabilities":
        own.append(f"        output: {model.output}           # it ends before the softmax")
    if model.input_spec is not None and model.input_spec != found.input_spec:
        own.append(f"        input: {_input(model.input_spec)}")
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
    _print_next_steps(path, answers)
    return 0


def _answers(options: argparse.Namespace, ask: Ask | None, folder: Path) -> InitChoices:
    """From the flags, and for what they leave open, from the user or the defaults.

    Args:
        ask: None: the defaults.
    """
    question = "Models: a folder of .onnx or .tflite files, or zoo:digits"
    models, found = _choice(
        options.models or None, ask, question, "zoo:digits", lambda text: (text, find_models(text, folder))
    )
    labels = _labels(options.labels, found, ask)
    question = "Server to ask about what they disagree on, host:port (empty: none)"
    cloud = _choice(options.cloud, ask, question, "", _cloud)
    usual = "digits" if models == "zoo:digits" else "stdin"
    source = _choice(options.source or None, ask, f"Where examples come from: {SOURCES}", usual, _source)
    return InitChoices(found, labels, cloud, source)


def _choice(flag: str | None, ask: Ask | None, question: str, default: str, read: Callable[[str], T]) -> T:
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
    if text and (fix := fix_of_address(text)):
        raise ConfigError([f'--cloud: expected host:port, got "{text}" ({fix})'])
    return text


def _labels(given: str | None, found: FoundModels, ask: Ask | None) -> tuple[str, ...]:
    if found.input_spec is None:
        if given:
            raise ConfigError(["--labels: expected none for models with a manifest, which says them (leave it out)"])
        return ()
    question = f"Labels, in the order of the models' {found.n_labels} outputs: a,b,c or a file"
    return _choice(given, None if found.labels else ask, question, "", lambda text: _read_labels(text, found))


def _read_labels(text: str, found: FoundModels) -> tuple[str, ...]:
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
    fix = f" (write folder:{text})" if Path(text).is_dir() or ("/" in text and not rest) else ""
    raise ConfigError([f'--source: expected {SOURCES}, got "{text}"{fix}'])


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


def _print_next_steps(path: Path, answers: InitChoices) -> None:
    where = shlex.quote(str(path))
    print(f"wrote {path}: {len(answers.found.models)} models, {answers.found.n_labels} labels")
    if any(label.startswith("label-") for label in answers.labels):
        print(f"the models do not say what their outputs mean: name the labels in {path}")
    if answers.found.input_spec is not None and answers.found.input_spec.kind == "image":
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
