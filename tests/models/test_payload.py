"""What is sent of an example: each form is what it says, whatever the example came as."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from coe.cascade import Batch
from coe.models import InputDecoder, InputSpec, decode_image
from coe.models.inputs import KINDS, Payload

GREY, RGB = InputSpec("image", (8, 8, 1)), InputSpec("image", (8, 8, 3))


def picture(height, width, channels, seed=1):
    """A smooth one, as cameras take them."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, channels), dtype=np.uint8)
    big = Image.fromarray(small[..., 0] if channels == 1 else small).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(big).reshape(height, width, channels)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    return file.getvalue()


def captured(contract, *pictures):
    files = [png(pixels) for pixels in pictures]
    return InputDecoder(contract).batch([f"x{n}" for n in range(len(files))], files), files


@pytest.mark.parametrize("contract", [GREY, RGB])
def test_as_captured_is_the_very_file(contract):
    batch, files = captured(contract, picture(20, 30, contract.shape[2]))
    assert Payload().encoder(contract)(batch).tolist() == files


def test_what_was_never_a_file_is_sent_as_pixels_where_captured_is_asked_for():
    batch = InputDecoder(RGB).batch(["a"], [picture(20, 30, 3)])
    assert Payload().encoder(RGB)(batch) is batch.x


def test_pixels_are_those_decoded_at_their_own_size():
    batch, _ = captured(RGB, picture(20, 30, 3))
    sent = Payload("pixels").encoder(RGB)(batch)
    assert sent is batch.x
    assert sent.shape == (1, 20, 30, 3)


@pytest.mark.parametrize("contract", [GREY, RGB])
@pytest.mark.parametrize("sizes", [[(20, 30)], [(20, 30), (9, 5)], [(8, 8), (20, 30)], [(8, 8), (8, 8)]])
def test_at_the_models_size_the_far_side_prepares_what_this_one_would(contract, sizes):
    batch, _ = captured(contract, *(picture(*size, contract.shape[2]) for size in sizes))
    sent = Payload("model-size").encoder(contract)(batch)
    assert (sent.shape, sent.dtype) == ((len(sizes), *contract.shape), np.uint8)
    taken = InputDecoder(contract).batch(batch.ids, sent)
    assert contract.prepare(taken.x).tobytes() == contract.prepare(batch.x).tobytes()


@pytest.mark.parametrize("contract", [GREY, RGB])
def test_png_loses_nothing(contract):
    pictures = [picture(20, 30, contract.shape[2]), picture(9, 5, contract.shape[2])]
    batch, _ = captured(contract, *pictures)
    sent = Payload("png").encoder(contract)(batch)
    for file, pixels in zip(sent, pictures, strict=True):
        assert file.startswith(b"\x89PNG")
        assert decode_image(file, contract.shape[2]).tobytes() == pixels.tobytes()


@pytest.mark.parametrize("contract", [GREY, RGB])
def test_jpeg_is_smaller_and_further_off_the_lower_its_quality(contract):
    pixels = picture(64, 96, contract.shape[2])
    batch, _ = captured(contract, pixels)
    sizes, errors = [], []
    for quality in (95, 75, 30):
        (file,) = Payload("jpeg", quality).encoder(contract)(batch)
        assert file.startswith(b"\xff\xd8")
        sizes.append(len(file))
        errors.append(np.abs(decode_image(file, contract.shape[2]).astype(int) - pixels).mean())
    assert sizes[0] > sizes[1] > sizes[2]
    assert errors[0] < errors[1] < errors[2]
    assert errors[-1] < 16


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_that_are_prepared_already_go_as_they_are(kind):
    batch = InputDecoder(RGB).batch(["a"], [np.zeros((3, 8, 8), dtype=np.float32)])
    assert Payload(kind).encoder(RGB)(batch) is batch.x


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_of_a_task_without_images_go_as_they_are(kind):
    contract = InputSpec("tensor", (2,), dtype="uint8")
    batch = Batch(("a",), np.zeros((1, 2), dtype=np.uint8))
    assert Payload(kind).encoder(contract)(batch) is batch.x
