"""The reader of CIFAR-10, on tiny files of both forms that the tests make."""

from __future__ import annotations

import io
import os
import pickle
import struct

import numpy as np
import pytest
from PIL import Image

from recipes.cifar10 import data


def jpeg_of(image):
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=90)
    return out.getvalue()


def write_npz(path, n_examples, seed=0):
    rng = np.random.default_rng(seed)
    files = [jpeg_of(np.full((32, 32, 3), rng.integers(0, 256), dtype=np.uint8)) for _ in range(n_examples)]
    offsets = np.cumsum([0, *map(len, files)])
    labels = (np.arange(n_examples) % 10).astype(np.uint8)
    np.savez(path, jpeg=np.frombuffer(b"".join(files), dtype=np.uint8), offsets=offsets, labels=labels)
    return files, labels


def python_2_pickle(rows, labels):
    """A batch as Python 2 and the NumPy of its day wrote it, opcode by opcode."""
    shape = b"(M" + struct.pack("<H", rows.shape[0]) + b"M" + struct.pack("<H", rows.shape[1]) + b"t"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    array += b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<i", rows.nbytes) + rows.tobytes() + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels" + numbers + b"U\x0bbatch_labelU\x07a batchu."


def write_batch(path, n_examples, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 256, (n_examples, 3072), dtype=np.uint8)
    labels = [int(label) for label in rng.integers(0, 10, n_examples)]
    path.write_bytes(python_2_pickle(rows, labels))
    return rows, labels


@pytest.fixture
def npz_folder(tmp_path):
    write_npz(tmp_path / data.TRAIN_NPZ, 20)
    write_npz(tmp_path / data.TEST_NPZ, 7, seed=1)
    return tmp_path


@pytest.fixture
def batches_folder(tmp_path):
    folder = tmp_path / data.BATCHES
    folder.mkdir()
    for seed, name in enumerate((*data.TRAIN_BATCHES, *data.TEST_BATCHES)):
        write_batch(folder / name, 4, seed)
    return tmp_path


def test_npz_pictures_are_those_of_their_jpeg_files(tmp_path):
    files, labels = write_npz(tmp_path / data.TEST_NPZ, 7)
    test = data.load_test(tmp_path)
    assert test.pixels.shape == (7, 32, 32, 3)
    assert test.labels.tolist() == labels.tolist()
    assert test.payload_bytes.tolist() == [len(file) for file in files]
    assert test.ids[3] == "test-00003"
    assert np.array_equal(test.pixels[3], np.asarray(Image.open(io.BytesIO(files[3])).convert("RGB")))


def test_original_batches_are_laid_out_plane_by_plane(tmp_path):
    rows, labels = write_batch(tmp_path / "test_batch", 5)
    test = data.load_test(tmp_path)  # the batches may also lie in the folder itself
    assert test.labels.tolist() == labels
    assert test.pixels[2, 1, 7].tolist() == [rows[2, plane * 1024 + 32 + 7] for plane in range(3)]


def test_test_examples_are_the_jpeg_files_of_the_npz_as_they_are(npz_folder):
    files, labels = write_npz(npz_folder / data.TEST_NPZ, 7, seed=1)
    found = data.test_examples(npz_folder, 5)
    assert [value for _, value, _ in found] == files[:5]
    assert [label for _, _, label in found] == labels[:5].tolist()
    assert [name for name, _, _ in found] == list(data.load_test(npz_folder).ids[:5])


def test_test_examples_of_the_original_batches_are_png_files_of_their_pixels(batches_folder):
    test = data.load_test(batches_folder)
    found = data.test_examples(batches_folder)
    assert len(found) == len(test)
    for row, (name, value, label) in enumerate(found):
        assert (name, label, len(value)) == (test.ids[row], test.labels[row], test.payload_bytes[row])
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(value))), test.pixels[row])


@pytest.mark.parametrize("folder", ["npz_folder", "batches_folder"])
def test_a_tenth_is_held_back_for_calibration_and_the_split_is_the_same_each_time(folder, request):
    path = request.getfixturevalue(folder)
    first, second = data.load_learning(path), data.load_learning(path)
    assert (len(first.train), len(first.calibration)) == (18, 2)
    assert first.calibration.ids == second.calibration.ids
    assert set(first.train.ids).isdisjoint(first.calibration.ids)
    assert {len(set(split.ids)) for split in (first.train, first.calibration)} == {18, 2}


def test_models_take_what_the_manifest_s_contract_makes_of_the_pixels():
    from coe.models import InputSpec
    from recipes.cifar10.data import MEAN, STD

    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    input_spec = InputSpec("image", (32, 32, 3), "NCHW", "float32", 1 / 255, MEAN, STD)
    assert np.allclose(data.normalised(pixels), input_spec.prepare(pixels), atol=1e-5)


class Hostile:
    def __reduce__(self):
        return os.system, ("echo this must never run",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_run_code_is_refused(tmp_path, protocol, capfd):
    (tmp_path / "test_batch").write_bytes(pickle.dumps([Hostile()], protocol=protocol))
    with pytest.raises(pickle.UnpicklingError, match=r"asks for (posix|nt)\.system"):
        data.load_test(tmp_path)
    assert "never" not in capfd.readouterr().out


def test_an_array_as_today_s_numpy_pickles_it_is_read_too(tmp_path):
    rows = np.zeros((2, 3072), dtype=np.uint8)
    batch = {b"data": rows, b"labels": [3, 9]}
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch, protocol=4))
    assert data.load_test(tmp_path).labels.tolist() == [3, 9]


def test_an_empty_folder_is_told_what_was_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cifar10_test\.npz, or cifar-10-batches-py/test_batch"):
        data.load_test(tmp_path)


def test_an_npz_without_its_arrays_is_refused(tmp_path):
    np.savez(tmp_path / data.TEST_NPZ, jpeg=np.zeros(3, dtype=np.uint8))
    with pytest.raises(ValueError, match="labels, offsets missing"):
        data.load_test(tmp_path)


def test_an_npz_with_an_object_array_is_refused(tmp_path):
    np.savez(tmp_path / data.TEST_NPZ, jpeg=np.array([Hostile()], dtype=object), offsets=[0], labels=[1])
    with pytest.raises(ValueError, match="allow_pickle"):
        data.load_test(tmp_path)


def test_offsets_that_do_not_fit_are_refused(tmp_path):
    np.savez(tmp_path / data.TEST_NPZ, jpeg=np.zeros(9, dtype=np.uint8), offsets=[0, 4], labels=[1, 2])
    with pytest.raises(ValueError, match="expected 3 offsets"):
        data.load_test(tmp_path)


def test_labels_out_of_range_are_refused(tmp_path):
    rows = np.zeros((2, 3072), dtype=np.uint8)
    (tmp_path / "test_batch").write_bytes(python_2_pickle(rows, [3, 10]))
    with pytest.raises(ValueError, match="labels from 0 to 9"):
        data.load_test(tmp_path)


def test_a_batch_of_something_else_is_refused(tmp_path):
    (tmp_path / "test_batch").write_bytes(pickle.dumps([1, 2, 3]))
    with pytest.raises(ValueError, match="as in the original files"):
        data.load_test(tmp_path)
