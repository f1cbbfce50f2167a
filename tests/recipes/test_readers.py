"""Readers of published data sets and exported models, on small files of their formats that the tests make."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from published import write_json, write_tokenizer

from coe.cascade import ConfigError
from coe.config.manifest import read_manifest
from coe.models import InputDecoder, load
from recipes.readers import datasets, models
from recipes.readers.__main__ import main
from recipes.readers.datasets import read_imagenet, read_swag
from recipes.readers.models import model_files, write_manifest

SYNSETS = ["n01440764", "n01443537", "n02102040"]
SWAG = """,video-id,fold-ind,startphrase,sent1,sent2,gold-source,ending0,ending1,ending2,ending3,label
0,lsmdc1052,17,"She walks in. Then, she","She walks in.","Then, she",gold,"sits, down.",flies off.,eats it.,is a lake.,0
1,anet_x,3,He turns. He,He turns.,He,gen,runs.,naps.,sings — loud.,falls.,2
"""


# Data sets


def write_swag(tmp_path: Path, text: str = SWAG) -> Path:
    path = tmp_path / "val.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_swag_rows_are_contexts_with_four_endings(tmp_path: Path):
    found = read_swag(write_swag(tmp_path))
    assert list(found.ids) == ["lsmdc1052-17", "anet_x-3"]
    assert list(found.labels) == [0, 2]
    first, second = (json.loads(value) for value in found.values)
    assert first["context"] == "She walks in."
    assert first["endings"][0] == "Then, she sits, down."
    assert second["endings"] == ["He runs.", "He naps.", "He sings — loud.", "He falls."]
    assert len(read_swag(write_swag(tmp_path), limit=1).ids) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,sent1\n1,a\n", "expected the column sent2"),
        (SWAG.replace("falls.,2", "falls.,4"), 'row 2: expected a label 0 to 3 and all columns, got the label "4"'),
        (SWAG.replace(",falls.,2", ""), "row 2: expected a label 0 to 3"),
        ("", "expected the column sent1"),
    ],
)
def test_what_is_no_swag_file_is_told(tmp_path: Path, text: str, words: str):
    with pytest.raises(ConfigError, match=words):
        read_swag(write_swag(tmp_path, text))


def picture(colour: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 6), (colour, colour, colour)).save(out, "JPEG")
    return out.getvalue()


def flat(folder: Path) -> list[str]:
    """Six images in one folder, two of each synset; the synset of each."""
    (folder / "val").mkdir(parents=True)
    of = [SYNSETS[2], SYNSETS[0], SYNSETS[1], SYNSETS[1], SYNSETS[0], SYNSETS[2]]
    for number in range(1, 7):
        (folder / "val" / f"ILSVRC2012_val_{number:08d}.JPEG").write_bytes(picture(number * 20))
    return of


def mat_element(kind: int, data: bytes) -> bytes:
    if 0 < len(data) <= 4:
        return struct.pack("<HH", kind, len(data)) + data.ljust(4, b"\0")
    return struct.pack("<II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def mat_matrix(of: int, shape: tuple[int, int], name: str, *contents: bytes) -> bytes:
    flags = mat_element(6, struct.pack("<II", of, 0))
    head = flags + mat_element(5, struct.pack("<2i", *shape)) + mat_element(1, name.encode())
    return mat_element(14, head + b"".join(contents))


def write_meta(path: Path, rows: list[tuple[int, str]], *, packed: bool = True) -> None:
    """meta.mat as the development kit has it: a struct array with a number, a text and a list in each element."""
    names = [b"ILSVRC2012_ID", b"WNID", b"children"]
    fields = mat_element(5, struct.pack("<i", 16)) + mat_element(1, b"".join(name.ljust(16, b"\0") for name in names))
    body = b""
    for number, synset in rows:
        body += mat_matrix(6, (1, 1), "", mat_element(9, struct.pack("<d", number)))
        body += mat_matrix(4, (1, len(synset)), "", mat_element(16, synset.encode()))
        body += mat_matrix(6, (1, 2), "", mat_element(9, struct.pack("<2d", 1, 2)))
    element = mat_matrix(2, (len(rows), 1), "synsets", fields, body)
    if packed:
        data = zlib.compress(element)
        element = struct.pack("<II", 15, len(data)) + data
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM" + element)


def kit(folder: Path, of: list[str]) -> None:
    """Ground truth by the development kit's own numbers, which are not in the order of the synsets."""
    numbers = {SYNSETS[0]: 3, SYNSETS[1]: 1, SYNSETS[2]: 2}
    (folder / "data").mkdir()
    write_meta(folder / "data/meta.mat", [*((number, name) for name, number in numbers.items()), (1001, "n00001740")])
    lines = "".join(f"{numbers[name]}\n" for name in of)
    (folder / "data/ILSVRC2012_validation_ground_truth.txt").write_text(lines)


def kaggle(folder: Path, of: list[str]) -> None:
    (folder / "LOC_synset_mapping.txt").write_text("".join(f"{name} some, words\n" for name in SYNSETS))
    rows = [f"ILSVRC2012_val_{place + 1:08d},{name} 1 2 3 4 {name} 5 6 7 8\n" for place, name in enumerate(of)]
    (folder / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(reversed(rows)))


@pytest.mark.parametrize("lists", [kit, kaggle])
def test_a_flat_folder_of_imagenet_has_the_labels_of_its_lists(tmp_path: Path, lists):
    of = flat(tmp_path)
    lists(tmp_path, of)
    found = read_imagenet(tmp_path)
    assert list(found.labels) == [SYNSETS.index(name) for name in of]
    assert list(found.names) == SYNSETS
    assert found.ids[0] == "ILSVRC2012_val_00000001"
    assert found.values[4] == picture(100)
    assert [len(read_imagenet(tmp_path, limit=4).values[1:3]), len(read_imagenet(tmp_path, limit=4).ids)] == [2, 4]


def test_synset_folders_give_the_same_labels(tmp_path: Path):
    of = flat(tmp_path)
    kaggle(tmp_path, of)
    expected = read_imagenet(tmp_path)
    for place, name in enumerate(of):
        image = tmp_path / "val" / f"ILSVRC2012_val_{place + 1:08d}.JPEG"
        (tmp_path / "val" / name).mkdir(exist_ok=True)
        image.rename(tmp_path / "val" / name / image.name)
    for lists in (True, False):  # with the mapping, and by the folders alone
        found = read_imagenet(tmp_path)
        assert (list(found.ids), list(found.labels)) == (list(expected.ids), list(expected.labels)), lists
        (tmp_path / "LOC_synset_mapping.txt").unlink(missing_ok=True)


def test_imagenet_without_its_lists_is_told_what_is_needed(tmp_path: Path):
    of = flat(tmp_path)
    with pytest.raises(ConfigError, match="expected a folder for each synset, or LOC_val_solution"):
        read_imagenet(tmp_path)
    kit(tmp_path, of[:5])
    with pytest.raises(ConfigError, match="expected a line for each of 6 images, got 5"):
        read_imagenet(tmp_path)
    kaggle(tmp_path, of[:5])
    with pytest.raises(ConfigError, match=r"got none of ILSVRC2012_val_00000006\.JPEG"):
        read_imagenet(tmp_path)


@pytest.mark.parametrize("packed", [True, False])
def test_a_struct_array_of_a_matlab_file_is_read(tmp_path: Path, packed: bool):
    write_meta(tmp_path / "meta.mat", [(7, "n1"), (300, "n00000002")], packed=packed)
    found = datasets.read_struct(tmp_path / "meta.mat", "synsets")
    assert found == {"ILSVRC2012_ID": [7.0, 300.0], "WNID": ["n1", "n00000002"], "children": ["", ""]}
    with pytest.raises(ValueError, match="expected the struct array other"):
        datasets.read_struct(tmp_path / "meta.mat", "other")


def test_a_file_that_scipy_writes_is_read(tmp_path: Path):
    io_of = pytest.importorskip("scipy.io")
    rows = np.array([(5, "n05"), (600, "n0600")], dtype=[("ILSVRC2012_ID", object), ("WNID", object)])
    for packed in (True, False):
        io_of.savemat(tmp_path / "s.mat", {"x": np.eye(3), "synsets": rows[:, None]}, do_compression=packed)
        found = datasets.read_struct(tmp_path / "s.mat", "synsets")
        assert found == {"ILSVRC2012_ID": [5.0, 600.0], "WNID": ["n05", "n0600"]}


@pytest.mark.parametrize("damage", [b"", b"MATLAB" * 40, None])
def test_a_damaged_matlab_file_is_refused(tmp_path: Path, damage: bytes | None):
    path = tmp_path / "meta.mat"
    write_meta(path, [(1, "n1")] * 40)
    path.write_bytes(path.read_bytes()[:200] if damage is None else damage)
    with pytest.raises(ValueError, match="expected a MATLAB 5 file"):
        datasets.read_struct(path, "synsets")


# Models


def write_image_model(path: Path, n_labels: int, size: int) -> None:
    """Mean colour, then one linear layer: logits."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).normal(size=(3, n_labels)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["pixel_values"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["logits"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", n_labels])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


IMAGE_CONFIG = {"architectures": ["ViTForImageClassification"], "id2label": {"0": "cat", "1": "crane", "2": "crane"}}
PROCESSOR = {
    "do_resize": True, "size": {"height": 8, "width": 8}, "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4],
}  # fmt: skip


def image_folder(folder: Path, processor: dict, config: dict | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    write_json(folder / "config.json", config or IMAGE_CONFIG)
    write_json(folder / "preprocessor_config.json", processor)
    return folder


def test_an_exported_image_model_becomes_a_manifest_and_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("onnxruntime")
    folder = image_folder(tmp_path / "vit", PROCESSOR)
    write_image_model(folder / "model.onnx", 3, 8)
    assert main([str(folder), "--task", "animals"]) == 0
    assert "3 labels, input image" in capsys.readouterr().out
    manifest = read_manifest(folder)
    assert (manifest.task.name, manifest.task.labels) == ("animals", ("cat", "crane", "crane (2)"))
    member = load(manifest.models["model.onnx"])
    pixels = np.full((1, 8, 8, 3), 51, dtype=np.uint8)
    batch = InputDecoder(manifest.task.input_spec).batch(["a"], pixels)
    prepared = member.prepare(batch.x)
    assert prepared[0, :, 0, 0] == pytest.approx(
        (0.2 - np.array([0.5, 0.4, 0.3])) / np.array([0.2, 0.3, 0.4]), abs=1e-5
    )
    assert member.predict(prepared).sum() == pytest.approx(1, abs=1e-5)  # logits in the file, probabilities here
    member.close()


@pytest.mark.parametrize(
    ("changes", "size", "fit", "more"),
    [
        ({}, [8, 8], "stretch", {}),
        ({"size": 16, "resample": 3}, [16, 16], "stretch", {"resample": "bicubic"}),
        ({"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}},
         [224, 224], "crop", {"crop_share": 0.875}),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3}, [224, 224], "crop",
         {"crop_share": 0.875, "resample": "bicubic"}),
    ],
)  # fmt: skip
def test_what_an_image_processor_does_is_said_our_way(tmp_path: Path, changes, size, fit, more):
    found = models.describe_huggingface(image_folder(tmp_path / "m", PROCESSOR | changes))
    assert (found.input["size"], found.input["fit"]) == (size, fit)
    assert {key: value for key, value in found.input.items() if key in ("crop_share", "resample")} == more
    assert found.notes == []


def test_scaling_that_we_do_not_have_is_noted(tmp_path: Path):
    found = models.describe_huggingface(image_folder(tmp_path / "m", PROCESSOR | {"resample": 1}))
    assert found.notes == ["Published with lanczos scaling; here it is bilinear."]
    assert "resample" not in found.input


def test_an_image_processor_that_neither_rescales_nor_normalises(tmp_path: Path):
    found = models.describe_huggingface(
        image_folder(tmp_path / "m", PROCESSOR | {"do_rescale": False, "do_normalize": False})
    )
    assert (found.input["scale"], found.input["mean"], found.input["std"]) == (1.0, [0.0] * 3, [1.0] * 3)


def test_labels_that_nobody_named_are_those_of_transformers(tmp_path: Path):
    found = models.describe_huggingface(image_folder(tmp_path / "m", PROCESSOR, {"architectures": ["X"]}))
    assert found.labels == ("LABEL_0", "LABEL_1")


TIMM = {
    "architecture": "resnet50", "num_classes": 3,
    "pretrained_cfg": {"input_size": [3, 8, 8], "interpolation": "bicubic", "crop_pct": 0.95, "crop_mode": "center",
                       "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "num_classes": 3},
}  # fmt: skip


def test_a_timm_folder_is_told_from_others_and_read(tmp_path: Path):
    pytest.importorskip("onnxruntime")
    write_json(tmp_path / "config.json", TIMM)
    write_image_model(tmp_path / "model.onnx", 3, 8)
    assert models.is_timm(tmp_path)
    assert main([str(tmp_path), "--task", "t"]) == 0
    spec = read_manifest(tmp_path).models["model.onnx"]
    assert (spec.input_spec.shape, spec.input_spec.fit, spec.input_spec.mean) == (
        (8, 8, 3),
        "crop",
        (0.485, 0.456, 0.406),
    )
    assert (spec.labels, spec.architecture, spec.output) == (("0", "1", "2"), "resnet50", "logits")
    load(spec).close()
    assert (spec.input_spec.crop_share, spec.input_spec.resample) == (0.95, "bicubic")


def test_a_manifest_begins_with_what_is_not_as_published(tmp_path: Path):
    write_json(
        tmp_path / "config.json", TIMM | {"pretrained_cfg": TIMM["pretrained_cfg"] | {"interpolation": "lanczos"}}
    )
    (tmp_path / "model.onnx").write_bytes(b"not looked at")
    assert main([str(tmp_path), "--task", "t"]) == 0
    assert (
        (tmp_path / "manifest.yaml").read_text().startswith("# Published with lanczos scaling; here it is bilinear.\n")
    )


def test_timm_labels_have_names_where_it_says_them(tmp_path: Path):
    write_json(tmp_path / "config.json", TIMM | {"label_names": ["a", "b", "c"]})
    assert models.describe_timm(tmp_path).labels == ("a", "b", "c")


class Preset:
    """What torchvision's `transforms()` gives, by its attributes; a test below has the real one where it is there."""

    crop_size, resize_size, mean, std = [224], [232], [0.5, 0.5, 0.5], [0.2, 0.2, 0.2]
    interpolation = type("Mode", (), {"value": "bilinear"})


class Weights:
    meta = {"categories": ["crane", "cat", "crane"]}  # noqa: RUF012 - as theirs is

    def transforms(self):
        return Preset()


def test_torchvision_weights_say_what_a_picture_becomes():
    found = models.describe_torchvision(Weights(), "resnet50")
    assert found.labels == ("crane", "cat", "crane (2)")
    assert (found.input["size"], found.input["fit"], found.input["std"]) == ([224, 224], "crop", [0.2] * 3)
    assert (found.input["crop_share"], found.notes) == (0.9655, [])
    with pytest.raises(ConfigError, match="expected weights of a classifier"):
        models.describe_torchvision(object(), "x")


def test_real_torchvision_weights_are_read():
    pytest.importorskip("torchvision", exc_type=ImportError)
    from models.models import ResNet50_Weights

    found = models.describe_torchvision(ResNet50_Weights.IMAGENET1K_V2, "resnet50")
    assert (len(found.labels), found.input["size"]) == (1000, [224, 224])


def test_two_exports_of_a_task_share_one_manifest(tmp_path: Path):
    folder = image_folder(tmp_path / "m", PROCESSOR)
    for name in ("model.onnx", "model_int8.onnx"):
        (folder / name).write_bytes(name.encode())
    described = models.describe_huggingface(folder)
    write_manifest(described, "animals", [folder / "model.onnx"])
    write_manifest(described, "animals", [folder / "model_int8.onnx"])
    assert list(yaml.safe_load((folder / "manifest.yaml").read_text())["models"]) == ["model.onnx", "model_int8.onnx"]
    assert [path.name for path in model_files(folder)] == ["model.onnx", "model_int8.onnx"]
    with pytest.raises(ConfigError, match="expected the task birds with 3 labels, got animals with 3"):
        write_manifest(described, "birds", [folder / "model.onnx"])


@pytest.mark.parametrize(
    ("config", "processor", "words"),
    [
        ({"id2label": ["a", "b"]}, PROCESSOR, "id2label: expected labels numbered from 0"),
        ({"id2label": {"1": "a", "2": "b"}}, PROCESSOR, "expected labels numbered from 0"),
        (IMAGE_CONFIG, {"image_mean": [0.5] * 3}, "size: expected the size of a picture"),
        (IMAGE_CONFIG, None, "expected tokenizer.json .texts. or preprocessor_config.json"),
    ],
)
def test_an_exported_folder_that_lacks_something_is_told(tmp_path: Path, config, processor, words, capsys):
    write_json(tmp_path / "config.json", config)
    if processor is not None:
        write_json(tmp_path / "preprocessor_config.json", processor)
    with pytest.raises(ConfigError, match=words):
        models.describe_huggingface(tmp_path)
    assert main([str(tmp_path), "--task", "t"]) == 2
    assert main([str(tmp_path / "nowhere"), "--task", "t"]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "settings", "longest"),
    [
        ({"model_type": "bert", "max_position_embeddings": 64}, {"model_max_length": 512}, 64),
        ({"model_type": "roberta", "max_position_embeddings": 66}, {}, 64),
        ({"model_type": "xlnet"}, {"model_max_length": 1e30}, 512),
        ({"model_type": "xlnet"}, None, 512),
    ],
)
def test_an_exported_text_model_is_read(tmp_path: Path, config, settings, longest):
    write_tokenizer(tmp_path / "tokenizer.json")
    labels = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "negative", "1": "positive"}}
    write_json(tmp_path / "config.json", config | labels)
    if settings is not None:
        write_json(tmp_path / "tokenizer_config.json", settings)
    found = models.describe_huggingface(tmp_path)
    assert found.labels == ("negative", "positive")
    assert {key: found.input[key] for key in ("kind", "tokenizer", "max_length")} == {
        "kind": "text", "tokenizer": "tokenizer.json", "max_length": longest,
    }  # fmt: skip
    (tmp_path / "model.onnx").write_bytes(b"not looked at")
    path = write_manifest(found, "sentiment", model_files(tmp_path))
    content = yaml.safe_load(path.read_text())
    assert content["input"] == {"kind": "text", "max_length": longest}
    spec = read_manifest(tmp_path).models["model.onnx"]
    assert spec.input_spec.tokenizer == tmp_path / "tokenizer.json"
    assert len(spec.input_spec.tokenizer_sha256) == 64


def test_a_share_of_the_middle_is_taken():
    from coe.models import InputSpec

    image = np.zeros((40, 60, 3), dtype=np.uint8)
    image[5:35, 15:45] = 200  # the middle 30 x 30
    input_spec = InputSpec("image", (10, 10, 3), fit="crop", crop_share=0.75)
    assert input_spec.resized(image[None]).min() > 150  # a little of what lies beside it, as where scaling comes first
    assert InputSpec("image", (10, 10, 3), fit="crop").resized(image[None]).min() < 20
    smooth, sharp = (
        InputSpec("image", (7, 7, 3), fit="crop", resample=way).resized(image[None]) for way in ("bilinear", "bicubic")
    )
    assert not np.array_equal(smooth, sharp)
