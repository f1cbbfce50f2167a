"""`invert: when-light`: dark on light becomes light on dark as it is decoded, in whatever form it comes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from coe.models.input_spec import InputSpec
from coe.models.inputs import InputDecoder, Payload
from coe.zoo.digits import test_examples

DIGITS = InputSpec("image", (28, 28, 1), invert="when-light")


def png(pixels: np.ndarray) -> bytes:
    Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def test_a_dark_digit_on_white_is_the_same_as_a_light_one_on_black():
    dark_ground = np.zeros((28, 28), np.uint8)
    dark_ground[5:20, 13:16] = 230
    decoder = InputDecoder(DIGITS)
    as_light, as_dark = (decoder.batch(["a"], [png(one)]).x for one in (dark_ground, 255 - dark_ground))
    assert np.array_equal(as_light, as_dark)
    assert np.array_equal(as_light[0, ..., 0], dark_ground)
    both = np.stack([dark_ground, 255 - dark_ground])[..., None]  # as a server gets `send: pixels`
    assert np.array_equal(decoder.batch(["a", "b"], both).x, np.stack([dark_ground] * 2)[..., None])


def test_what_is_sent_is_inverted_once():
    paper = np.full((100, 80), 240, np.uint8)
    paper[30:60, 35:42] = 20
    batch = InputDecoder(DIGITS).batch(["a"], [png(paper)])
    sent = Payload("model-size").encoder(DIGITS)(batch)
    assert np.array_equal(InputDecoder(DIGITS).batch(["a"], sent).x, sent)
    assert sent.mean() < 127


@pytest.mark.parametrize("invert", ["never", "when-light"])
def test_the_bundled_digits_stay_as_they_are(invert: str):
    decoder = InputDecoder(InputSpec("image", (28, 28, 1), invert=invert))
    for name, one, _ in test_examples(50):
        plain = np.asarray(Image.open(io.BytesIO(one)).convert("L"))
        assert np.array_equal(decoder.batch([name], [one]).x[0, ..., 0], plain)
