"""The page at /device that makes a phone a device, its config, and the models and cascade it downloads."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cloud.security.certs import digest_of
from coe import __version__, zoo
from coe.calibration import CalibratedVote
from coe.calibration.table import STAGE
from coe.cascade.errors import ConfigError
from coe.cascade.rule import Agreement, Confidence, DeferralRule
from coe.config import Fields, Report, read_yaml
from coe.config.cascade import CascadeConfig, LocalTierConfig, RemoteTierConfig, read_cascade
from coe.config.manifest import Task
from coe.config.settings import read_settings, setting
from coe.models.input_spec import InputSpec
from coe.models.loading import read_verified

from .rest_messages import HttpError
from .rest_server import Page

PATH = "/device"
FOREVER = "private, max-age=31536000, immutable"
DTYPES = ("float32", "uint8")  # that the page can prepare
FALLBACKS = ("answer-local", "spool", "fail")  # of an edge config; the page queues in any case
NOT_BUILT = "it is not built (npm ci && npm run build, in web/)"
NO_CASCADE = "it is not known what a phone runs (name an edge config: `device: {config: edge.yaml}`)"
AUTHORITY_PATH = "/ca"
PLACES = (  # of the built page: in a checkout, in an installed package
    Path(__file__).parents[2] / "web" / "dist",
    Path(__file__).parent / "page",
)


@dataclass(frozen=True)
class DeviceSettings:
    """The `device:` section of a server's config."""

    enabled: bool = setting(True, "Offer `/device` on the HTTP port.")
    config: Path | None = setting(
        None, "An edge config; the page runs its local tiers.", usual="of a bundled task, its own", example="phone.yaml"
    )
    send: str = setting(
        "model-size",
        "What is sent of a picture: what the largest model takes.",
        choices=("model-size", "captured"),
    )
    page: Path | None = setting(None, "Folder of the built page.", usual="where it is found", example="web/dist")


@dataclass(frozen=True)
class DevicePage:
    """The part of the cascade that a page runs as a device.

    Args:
        cascade: local tiers, then at most one remote tier: a model of this server; None: no edge config is known.
        page: folder of the built page; None: it is not built.
        why: why no phone can run it; "": one can.
        send: the size [height, width] and fit of what it sends; None: as captured.
        example: a PNG of the task; b"": none is known.
    """

    cascade: CascadeConfig | None
    page: Path | None
    why: str = ""
    send: Mapping[str, Any] | None = None
    example: bytes = b""


def read_device_page(
    fields: Fields,
    folder: Path,
    task: Task,
    reference: object,
    models: Collection[str],
    served: Sequence[LocalTierConfig | RemoteTierConfig] = (),
) -> DevicePage | None:
    """The `device:` section of a server's config; None where it says `enabled: false`.

    Args:
        folder: relative paths start here.
        task: the server's; reference: the value of `task` in its config.
        models: of the server; the first is the whole cascade.
        served: tiers of the server.
    """
    settings = read_settings(DeviceSettings, fields, folder)
    if not settings.enabled:
        return None
    cascade: CascadeConfig | None = None
    findings = [NO_CASCADE]
    if settings.config is not None:
        cascade, findings = _read_edge(settings.config, task, models)
        for finding in findings:
            fields.wrong("config", finding)
    elif (bundled := _bundled(reference)) is not None:
        cascade, findings = _read_edge(bundled, task, ())  # a page cannot run one of texts
        if cascade is not None and _unserved(cascade, models):  # then this server's whole cascade is behind the device
            whole = next(iter(models))
            tiers = (
                replace(tier, model=whole) if isinstance(tier, RemoteTierConfig) else tier for tier in cascade.tiers
            )
            cascade = replace(cascade, tiers=tuple(tiers))
    page = settings.page
    if page is None:
        page = next((place for place in PLACES if (place / "index.html").is_file()), None)
    elif not (page / "index.html").is_file():
        fields.wrong("page", f"expected a folder with the built page, got {page} (npm ci && npm run build, in web/)")
        page = None
    if cascade is None:
        return DevicePage(None, page, "; ".join(findings))
    send = _sent([*cascade.tiers, *served]) if settings.send == "model-size" else None
    sample = None if (bundled := _bundled(reference)) is None else bundled.parent / "test" / "0000.png"
    example = sample.read_bytes() if sample is not None and sample.is_file() else b""
    return DevicePage(cascade, page, "" if page else NOT_BUILT, send, example)


def _sent(tiers: Sequence[LocalTierConfig | RemoteTierConfig]) -> Mapping[str, Any] | None:
    """The size and fit in which no model misses anything of a picture; None: models differ in what they take."""
    specs = [spec.input_spec for tier in tiers if isinstance(tier, LocalTierConfig) for spec in tier.members]
    height, width = (max(spec.shape[axis] for spec in specs) for axis in (0, 1))
    is_alike = len({(spec.fit, spec.resample, spec.crop_share) for spec in specs}) == 1
    first = specs[0]
    has_one_aspect = all(spec.shape[0] * width == spec.shape[1] * height for spec in specs)
    if not is_alike or not _is_plain(first) or (first.fit == "crop" and not has_one_aspect):
        return None
    return {"size": [height, width], "fit": first.fit}


def _is_plain(spec: InputSpec) -> bool:
    """True if the page resizes as it asks for."""
    return (spec.resample, spec.crop_share) == ("bilinear", 1.0)


class DeviceFiles:
    """What the HTTP port offers for `/device`: the page as a folder, or how to build it; and the files it fetches.

    The files are read now, and served as they were read.

    Raises:
        ModelError: a model file cannot be read, or does not fit its manifest.
    """

    def __init__(self, device: DevicePage) -> None:
        files = {} if device.cascade is None else _files(device.cascade, device.send, device.example)
        self.files: dict[str, Page] = {f"{PATH}/cascade.json": _missing(device.why)}
        self.files |= {f"{PATH}/{name}": _page(*file) for name, file in files.items()}
        self.folders: dict[str, Path] = {} if device.page is None else {PATH: device.page}
        self.pages: dict[str, Page] = {}
        if device.page is None:
            not_built = _page(_document("not_built").encode(), "text/html; charset=utf-8", "no-cache")
            self.pages = {PATH: not_built, f"{PATH}/": not_built}


def authority_pages(pem: bytes | None) -> dict[str, Page]:
    """The CA that a phone has to install, and how; none where there is none of the server's own."""
    if pem is None:
        return {}
    text = _document("ca").format(digest=digest_of(pem))
    return {
        AUTHORITY_PATH: _page(text.encode(), "text/html; charset=utf-8", "no-cache"),
        f"{AUTHORITY_PATH}.pem": _page(pem, "application/x-x509-ca-cert", "no-cache"),
    }


def _document(name: str) -> str:
    return (Path(__file__).parent / f"{name}.html").read_text(encoding="utf-8")


def _missing(why: str) -> Page:
    def page(accept: str) -> None:
        raise HttpError(404, f"no cascade for phones: {why}")

    return page


def _page(body: bytes, media_type: str, cached: str) -> Page:
    headers = {"Content-Type": media_type, "Cache-Control": cached}
    return lambda accept: (body, headers)


def _files(
    cascade: CascadeConfig, send: Mapping[str, Any] | None = None, example: bytes = b""
) -> dict[str, tuple[bytes, str, str]]:
    """`cascade.json` and the model files, by name: content, media type, how long to keep it."""
    files: dict[str, tuple[bytes, str, str]] = {}
    tiers: list[dict[str, Any]] = []
    for tier in cascade.tiers:
        if isinstance(tier, RemoteTierConfig):
            own = _rule(tier.rule) if isinstance(tier.rule, CalibratedVote) else {}
            tiers.append({"name": tier.name, "model": tier.model, "deadline_ms": tier.deadline_s * 1000, **own})
            continue
        members = []
        for spec in tier.members:
            data = read_verified(spec)
            digest = hashlib.sha256(data).hexdigest()
            file = {"file": f"models/{digest}.onnx", "sha256": digest, "n_bytes": len(data)}
            known = {name: getattr(spec, name) for name in ("name", "output", "flops", "calibration_accuracy")}
            files[f"models/{digest}.onnx"] = (data, "application/octet-stream", FOREVER)
            members.append(known | file | {"input": _input_spec(spec.input_spec)})
        tiers.append({"name": tier.name, **_rule(tier.rule), "early": tier.early, "members": members})
    described = {
        "version": __version__,
        "task": cascade.task.name,
        "labels": cascade.task.labels,
        "fingerprint": cascade.task.fingerprint,
        "input": _input_spec(cascade.task.input_spec),
        "send": send,
        "example": f"data:image/png;base64,{base64.b64encode(example).decode()}" if example else None,
        "keep_last_answer": cascade.keep_last_answer,
        "tiers": tiers,
    }
    files["cascade.json"] = (json.dumps(described).encode(), "application/json", "no-cache")
    return files


def _bundled(reference: object) -> Path | None:
    """The edge config that comes with a bundled task."""
    if not (isinstance(reference, str) and reference.startswith("zoo:")):
        return None
    try:
        path = zoo.find(reference.removeprefix("zoo:").split("/")[0]) / "edge.yaml"
    except ConfigError:
        return None
    return path if path.is_file() else None


def _read_edge(path: Path, task: Task, models: Collection[str]) -> tuple[CascadeConfig | None, list[str]]:
    """The cascade in an edge config, or why a page of this server cannot run it."""
    report = Report(str(path))
    try:
        cascade = read_cascade(Fields(read_yaml(path), report), path.parent, fallbacks=FALLBACKS)
        report.check()
    except ConfigError as error:
        return None, str(error).splitlines()
    findings = [f"{path}: {finding}" for finding in (*_unfit(cascade, task), *_unserved(cascade, models))]
    return (None if findings else cascade), findings


def _unfit(cascade: CascadeConfig, task: Task) -> list[str]:
    """Why a page cannot run it."""
    if cascade.task.fingerprint != task.fingerprint:
        return [
            f"expected the task of this server, {task.name} (fingerprint {task.fingerprint}), got {cascade.task.name} "
            f"({cascade.task.fingerprint}); labels and input of both must match"
        ]
    if task.input_spec.kind != "image":
        return [f"expected a task of images, got {task.input_spec.kind} (a page has a camera, photos and a pad)"]
    findings = []
    for number, tier in enumerate(cascade.tiers):
        where = f"tiers[{number}]"
        if isinstance(tier, RemoteTierConfig):
            if number == 0 or number < len(cascade.tiers) - 1:
                findings.append(f"{where}: expected local tiers, then at most one with an address, the last (move it)")
            continue
        for spec in tier.members:
            given = spec.input_spec
            is_plain = given.layout in ("NCHW", "NHWC") and given.channel_order == "RGB" and not spec.own_labels
            if not (is_plain and _is_plain(given)) or spec.output_name:
                findings.append(
                    f"{where}: {spec.name}: expected NCHW or NHWC in RGB, bilinear, the task's labels, since a page "
                    f"knows no `labels:` or `output_name:` of a member (export it so)"
                )
            if spec.format != "onnx" or given.dtype not in DTYPES:
                findings.append(
                    f"{where}: {spec.name}: expected ONNX that takes {' or '.join(DTYPES)}, "
                    f"got {spec.format} of {given.dtype} (export it again)"
                )
    return findings


def _unserved(cascade: CascadeConfig, models: Collection[str]) -> list[str]:
    last = cascade.tiers[-1]
    if not models or isinstance(last, LocalTierConfig) or last.model in models:
        return []
    return [f"tiers[{len(cascade.tiers) - 1}].model: expected one of {', '.join(models)}, got {last.model}"]


def _input_spec(spec: InputSpec) -> dict[str, Any]:
    height, width, channels = spec.shape
    names = ("layout", "dtype", "scale", "mean", "std", "fit", "invert")
    return {"size": [height, width], "channels": channels} | {name: getattr(spec, name) for name in names}


def _rule(rule: DeferralRule) -> Mapping[str, Any]:
    if isinstance(rule, Agreement):
        return {"agreement": f"{rule.theta.numerator}/{rule.theta.denominator}"}
    if isinstance(rule, Confidence):
        return {"confidence": rule.threshold}
    if isinstance(rule, CalibratedVote):
        return {"calibrated": calibrated_as_json(rule)}
    return {}  # the last tier's: it answers


def calibrated_as_json(rule: CalibratedVote) -> dict[str, Any]:
    """The rule as the page reads it."""
    stages = [{name: getattr(stage, name) for name in STAGE} for stage in rule.stages]
    return {"stages": stages, "n_before": rule.n_before}
