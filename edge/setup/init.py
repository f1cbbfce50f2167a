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

from coe import zoo
from coe.cascade.errors import CascadeError, ConfigError, ModelError
from coe.config import read_yaml
from coe.config.manifest import NAME, read_manifest
from coe.models.input_spec import InputSpec
from coe.models.loading import ModelSignature, ModelSpec, TensorInfo, format_of, load, read_signature
from coe.protocol.channel import fix_of_address
from edge.config import read_config

SUFFIXES = (".onnx", ".tflite")  # where a model is there in both, the first
FLOATS = ("float32", "float16", "int8")  # int8 models take floats, and are given them quantised
IMAGE_SCALE = 1 / 255


@dataclass(frozen=True)
class FoundModel:
    """One model file.

    Args:
        reference: its path as a config writes it.
        output: "probabilities" or "logits".
        input_spec: of its input; None: a manifest has it.
    """

    reference: str
    output: str = "probabilities"
    input_spec: InputSpec | None = None


@dataclass(frozen=True)
class FoundModels:
    """Models that make one ensemble.

    Args:
        task: its name; with a manifest, the path of that.
        labels: of a manifest or a labels file; empty where there is neither.
        n_labels: size of the models' outputs.
        input_spec: of the task; None: the manifest has it.
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
        folder: of the config to be written; paths in it are relative to this folder.
    Raises:
        ConfigError: there are none, or they do not fit each other.
        RuntimeMissing: the package that runs them is not installed.
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
    """Models and rule of the task's bundled config."""
    name = reference.removeprefix("zoo:")
    path = zoo.find(name) / "edge.yaml"
    config = read_config(path)
    tier = config.cascade.local_tiers[0]
    models = tuple(FoundModel(f"zoo:{name}/{spec.path.name}") for spec in tier.members)
    written = read_yaml(path)["tiers"][config.cascade.tiers.index(tier)]
    labels = config.cascade.task.labels
    return FoundModels(reference, models, labels, len(labels), agreement=str(written.get("agreement", "unanimous")))


def _from_manifest(place: Path, folder: Path) -> FoundModels:
    manifest = read_manifest(place)
    files = _one_format_each([spec.path for spec in manifest.models.values()])
    if not files:
        raise ConfigError(["expected the models of this folder in it, got none"], str(place / NAME))
    models = tuple(FoundModel(_reference(path, folder)) for path in files)
    return FoundModels(_reference(place / NAME, folder), models, manifest.task.labels, len(manifest.task.labels))


def _from_files(place: Path, folder: Path) -> FoundModels:
    """Models without a manifest: the files hold their shapes, not what their outputs mean or how pixels are scaled."""
    files = _one_format_each([path for path in sorted(place.iterdir()) if path.suffix in SUFFIXES])
    if not files:
        raise ConfigError([f"expected .onnx or .tflite files, got none in {place} (copy them there)"])
    inputs, counts = {}, {}
    for path in files:
        signature = _signature(path)
        counts[path.name] = _n_labels(path, signature)
        inputs[path] = input_spec_of(path, signature.inputs[0])
    n_labels = next(iter(counts.values()))
    if set(counts.values()) != {n_labels}:
        listed = ", ".join(f"{name} {n}" for name, n in counts.items())
        raise ConfigError(
            [f"expected models with one number of labels, got {listed} (move the others elsewhere)"], str(place)
        )
    models = [
        FoundModel(_reference(path, folder), _output_of(path, input_spec, n_labels), input_spec)
        for path, input_spec in inputs.items()
    ]
    labels_file = place / "labels.txt"
    labels = read_labels(labels_file) if labels_file.is_file() else ()
    return FoundModels(place.resolve().name, tuple(models), labels, n_labels, models[0].input_spec)


def _signature(path: Path) -> ModelSignature:
    try:
        return read_signature(path)
    except ModelError as error:
        kind = "an onnx" if path.suffix == ".onnx" else f"a {format_of(path)}"
        reason = str(error).removeprefix(f"{path}: ")
        raise ConfigError([f"expected {kind} model, got something else ({reason})"], str(path)) from None


def input_spec_of(path: Path, tensor: TensorInfo) -> InputSpec:
    """The input spec that follows from a model's input: an image where that has 1 or 3 channels.

    Raises:
        ConfigError: another dimension than the batch's is free, or no member takes its dtype.
    """
    dims = tensor.dims[1:]
    if not dims or None in dims:
        shown = ", ".join("free" if dim is None else str(dim) for dim in tensor.dims)
        raise ConfigError([f"expected an input of one size but for the batch, got [{shown}] (export it so)"], str(path))
    shape = tuple(dim for dim in dims if dim is not None)
    if tensor.dtype not in (*FLOATS, "uint8", "int32", "int64"):
        raise ConfigError([f"expected an input of floats, uint8 or integers, got {tensor.dtype}"], str(path))
    dtype = "float32" if tensor.dtype == "int8" else tensor.dtype
    if len(shape) != 3 or dtype in ("int32", "int64") or not {shape[0], shape[2]} & {1, 3}:
        return InputSpec("tensor", shape, "NHWC", dtype)
    layout = "NCHW" if shape[0] in (1, 3) else "NHWC"
    height, width, channels = (shape[1], shape[2], shape[0]) if layout == "NCHW" else shape
    scale = 1.0 if dtype == "uint8" else IMAGE_SCALE
    return InputSpec("image", (height, width, channels), layout, dtype, scale)


def _n_labels(path: Path, signature: ModelSignature) -> int:
    if len(signature.inputs) != 1:
        fix = "models of texts need a manifest: docs/own-models.md"
        raise ConfigError([f"expected one input, got {len(signature.inputs)} ({fix})"], str(path))
    n_labels = next((tensor.dims[1] or 0 for tensor in signature.outputs if len(tensor.dims) == 2), 0)
    if n_labels < 2:
        raise ConfigError(["expected an output [batch, labels] with two labels or more (export it so)"], str(path))
    return n_labels


def _output_of(path: Path, input_spec: InputSpec, n_labels: int) -> str:
    """ "probabilities" or "logits", from a trial run; "probabilities" where the model cannot be loaded."""
    spec = ModelSpec(path.name, path, format_of(path), tuple(map(str, range(n_labels))), input_spec)
    try:
        load(spec).close()
    except CascadeError as error:
        return "logits" if "output: logits" in str(error) else "probabilities"
    return "probabilities"


def read_labels(path: Path) -> tuple[str, ...]:
    """The labels of a file with one on each line, in the order of the models' outputs."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"cannot be read: {getattr(error, 'strerror', None) or error}"], str(path)) from None
    return tuple(line.strip() for line in lines if line.strip())


def _one_format_each(paths: list[Path]) -> list[Path]:
    """Each model once, in the first of SUFFIXES that it has a file of; smallest files first."""
    chosen: dict[str, Path] = {}
    for suffix in SUFFIXES:
        for path in paths:
            if path.suffix == suffix:
                chosen.setdefault(path.name.split(".")[0], path)
    return sorted(chosen.values(), key=lambda path: (path.stat().st_size if path.is_file() else 0, path.name))


def _reference(path: Path, folder: Path) -> str:
    """The path relative to the config's folder where it is below that, else absolute."""
    whole = path.resolve()
    return str(whole.relative_to(folder.resolve())) if whole.is_relative_to(folder.resolve()) else str(whole)


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
        f"input: {_input(found.input_spec)}",
        *([CHECK_SCALE] if found.input_spec.kind == "image" else []),
    ]


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
    """A text as YAML: plain where that is safe, else in quotes (each JSON string is a YAML string)."""
    plain = text.replace("/", "").replace(".", "").replace("_", "").replace("-", "")
    is_plain = plain.isalnum() and plain.isascii() and plain[0].isalpha() and text[0].isalpha()
    is_word = text.lower() in ("yes", "no", "on", "off", "true", "false", "null", "y", "n", "nan", "inf")
    return text if is_plain and not is_word else json.dumps(text, ensure_ascii=False)


SOURCES = "folder:/path, stdin, camera:0 or digits"

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
    return 0


def _choices(options: argparse.Namespace, ask: Ask | None, folder: Path) -> InitChoices:
    """The flags, completed by the user's answers, or by the defaults where `ask` is None."""
    question = "Models: a folder of .onnx or .tflite files, or zoo:digits"
    models, found = _choice(
        options.models or None, ask, question, "zoo:digits", lambda text: (text, find_models(text, folder))
    )
    labels = _labels(options.labels, found, ask)
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
    if kind == "folder" and rest:
        folder = Path(rest).expanduser().absolute()
        folder.mkdir(parents=True, exist_ok=True)
        return f"{{kind: folder, path: {_quoted(str(folder))}, watch: true}}"
    fix = f" (write folder:{text})" if Path(text).is_dir() or ("/" in text and not rest) else ""
    raise ConfigError([f'--source: expected {SOURCES}, got "{text}"{fix}'])


def _write(path: Path, text: str) -> None:
    """Write all of the file or nothing, and only if the agent can read it as its config."""
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(text, encoding="utf-8")
    try:
        read_config(draft)
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
    if choices.found.input_spec is not None and choices.found.input_spec.kind == "image":
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
    parser.add_argument("--cloud", metavar="HOST:PORT", help="server for what the models disagree on; '' for none")
    parser.add_argument("--source", help=SOURCES)
    parser.add_argument("--yes", action="store_true", help="ask nothing: the defaults for what is left open")
    parser.add_argument("--force", action="store_true", help="replace a config that is there")
    return parser
