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


def captured(input_spec, *pictures):
    files = [png(pixels) for pixels in pictures]
    return InputDecoder(input_spec).batch([f"x{n}" for n in range(len(files))], files), files


@pytest.mark.parametrize("input_spec", [GREY, RGB])
def test_as_captured_is_the_very_file(input_spec):
    batch, files = captured(input_spec, picture(20, 30, input_spec.shape[2]))
    assert Payload().encoder(input_spec)(batch).tolist() == files


def test_what_was_never_a_file_is_sent_as_pixels_where_captured_is_asked_for():
    batch = InputDecoder(RGB).batch(["a"], [picture(20, 30, 3)])
    assert Payload().encoder(RGB)(batch) is batch.x


def test_pixels_are_those_decoded_at_their_own_size():
    batch, _ = captured(RGB, picture(20, 30, 3))
    sent = Payload("pixels").encoder(RGB)(batch)
    assert sent is batch.x
    assert sent.shape == (1, 20, 30, 3)


@pytest.mark.parametrize("input_spec", [GREY, RGB])
@pytest.mark.parametrize("sizes", [[(20, 30)], [(20, 30), (9, 5)], [(8, 8), (20, 30)], [(8, 8), (8, 8)]])
def test_at_the_models_size_the_far_side_prepares_what_this_one_would(input_spec, sizes):
    batch, _ = captured(input_spec, *(picture(*size, input_spec.shape[2]) for size in sizes))
    sent = Payload("model-size").encoder(input_spec)(batch)
    assert (sent.shape, sent.dtype) == ((len(sizes), *input_spec.shape), np.uint8)
    taken = InputDecoder(input_spec).batch(batch.ids, sent)
    assert input_spec.prepare(taken.x).tobytes() == input_spec.prepare(batch.x).tobytes()


@pytest.mark.parametrize("input_spec", [GREY, RGB])
def test_png_loses_nothing(input_spec):
    pictures = [picture(20, 30, input_spec.shape[2]), picture(9, 5, input_spec.shape[2])]
    batch, _ = captured(input_spec, *pictures)
    sent = Payload("png").encoder(input_spec)(batch)
    for file, pixels in zip(sent, pictures, strict=True):
        assert file.startswith(b"\x89PNG")
        assert decode_image(file, input_spec.shape[2]).tobytes() == pixels.tobytes()


@pytest.mark.parametrize("input_spec", [GREY, RGB])
def test_jpeg_is_smaller_and_further_off_the_lower_its_quality(input_spec):
    pixels = picture(64, 96, input_spec.shape[2])
    batch, _ = captured(input_spec, pixels)
    sizes, errors = [], []
    for quality in (95, 75, 30):
        (file,) = Payload("jpeg", quality).encoder(input_spec)(batch)
        assert file.startswith(b"\xff\xd8")
        sizes.append(len(file))
        errors.append(np.abs(decode_image(file, input_spec.shape[2]).astype(int) - pixels).mean())
    assert sizes[0] > sizes[1] > sizes[2]
    assert errors[0] < errors[1] < errors[2]
    assert errors[-1] < 16


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_that_are_prepared_already_go_as_they_are(kind):
    batch = InputDecoder(RGB).batch(["a"], [np.zeros((3, 8, 8), dtype=np.float32)])
    assert Payload(kind).encoder(RGB)(batch) is batch.x


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_of_a_task_without_images_go_as_they_are(kind):
    input_spec = InputSpec("tensor", (2,), dtype="uint8")
    batch = Batch(("a",), np.zeros((1, 2), dtype=np.uint8))
    assert Payload(kind).encoder(input_spec)(batch) is batch.x
