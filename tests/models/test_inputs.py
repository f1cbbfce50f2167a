"""Examples at the door: images as captured, pixels, floats; and how each becomes a model's input."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from coe.cascade import InputError
from coe.models import InputDecoder, InputSpec, decode_image
from coe.models.inputs import suffix_of

GREY = InputSpec("image", (8, 6, 1))
RGB = InputSpec("image", (8, 6, 3))


def encoded(pixels, kind="PNG", **options):
    buffer = io.BytesIO()
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(width, height, extra=b""):
    """A PNG whose header claims this size, with next to nothing behind it."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(b"\x00")) + chunk(b"IEND", b"")


# --- encoded images -------------------------------------------------------------------------------------------


def test_a_grey_png_is_decoded_pixel_for_pixel():
    pixels = noise(8, 6)
    assert decode_image(encoded(pixels), 1).tolist() == pixels[..., None].tolist()


def test_a_colour_png_is_decoded_pixel_for_pixel():
    pixels = noise(8, 6, 3)
    assert decode_image(encoded(pixels), 3).tolist() == pixels.tolist()


def test_a_jpeg_is_decoded_nearly_so():
    pixels = np.full((16, 16, 3), (200, 100, 50), dtype=np.uint8)
    assert np.abs(decode_image(encoded(pixels, "JPEG", quality=95), 3).astype(int) - pixels).max() <= 4


def test_colour_becomes_grey_and_grey_becomes_colour_as_the_task_has_it():
    grey = noise(8, 6)
    assert decode_image(encoded(grey), 3).tolist() == np.repeat(grey[..., None], 3, axis=2).tolist()
    colour = np.full((4, 4, 3), (100, 100, 100), dtype=np.uint8)
    assert decode_image(encoded(colour), 1).tolist() == np.full((4, 4, 1), 100).tolist()


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "L"])
def test_every_kind_of_png_comes_out_as_grey_or_colour(mode):
    picture = Image.fromarray(np.full((5, 7), 255, dtype=np.uint8)).convert(mode)
    assert decode_image(encoded(picture), 1).tolist() == np.full((5, 7, 1), 255).tolist()
    assert decode_image(encoded(picture), 3).tolist() == np.full((5, 7, 3), 255).tolist()


def test_sixteen_bits_of_grey_are_scaled_to_eight_and_not_clipped_to_white():
    deep = np.array([[0, 0x0100], [0x8000, 0xFFFF]], dtype=np.uint16)
    assert decode_image(encoded(deep), 1)[..., 0].tolist() == [[0, 1], [128, 255]]
    assert decode_image(encoded(deep), 3)[..., 2].tolist() == [[0, 1], [128, 255]]


@pytest.mark.parametrize(
    ("size", "decoded"),
    [((63, 200), (63, 200)), ((64, 64), (32, 32)), ((200, 300), (50, 75)), ((300, 400), (38, 50)), ((5, 5), (5, 5))],
)
def test_a_large_jpeg_is_decoded_at_a_part_of_its_size_and_at_least_twice_the_tasks(size, decoded):
    height, width = size
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 7], axis=2).astype(np.uint8)
    input_spec = InputSpec("image", (12, 16, 3))  # twice its longer side is 32
    data = encoded(pixels, "JPEG", quality=95)
    batch = InputDecoder(input_spec).batch(["a"], [data])
    assert batch.x.shape == (1, *decoded, 3)
    assert batch.captured[0] == data  # what is sent is the file as it came
    whole = decode_image(data, 3)
    assert whole.shape == (height, width, 3)
    if min(size) > 16:
        difference = input_spec.resized(batch.x).astype(int) - input_spec.resized(whole[None])
        assert np.abs(difference).max() <= 6


def test_a_png_and_pixels_keep_their_size():
    pixels = np.zeros((100, 100, 3), np.uint8)
    decoder = InputDecoder(InputSpec("image", (8, 8, 3)))
    assert decoder.batch(["a"], [encoded(pixels)]).x.shape == (1, 100, 100, 3)
    assert decoder.batch(["a"], [pixels]).x.shape == (1, 100, 100, 3)


def test_a_cmyk_jpeg_is_decoded():
    picture = Image.new("CMYK", (6, 8), (0, 0, 0, 0))
    assert decode_image(encoded(picture, "JPEG"), 3).min() > 250


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (-1, -1)), (6, (0, -1)), (8, (-1, 0))])
def test_a_jpeg_is_turned_upright_as_its_exif_says(orientation, corner):
    pixels = np.zeros((16, 32), dtype=np.uint8)
    pixels[:8, :8] = 255  # white at the top left of what the sensor saw
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = decode_image(encoded(pixels, "JPEG", exif=exif, quality=95), 1)
    assert upright.shape == ((16, 32, 1) if orientation in (1, 3) else (32, 16, 1))
    assert upright[corner] > 200
    assert upright.mean() < 100


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a" + bytes(20)])
def test_what_is_no_image_says_what_it_begins_with(data):
    with pytest.raises(InputError, match=f"expected a PNG or JPEG image, got {len(data)} bytes") as caught:
        decode_image(data, 1)
    assert (data[:8].hex(" ") or "nothing") in str(caught.value)
    assert " at 0x" not in str(caught.value)  # the text is the same in each record


@pytest.mark.parametrize("kind", ["PPM", "ICO", "TGA", "PCX"])
def test_other_kinds_of_image_are_not_opened(kind):
    with pytest.raises(InputError, match="expected a PNG or JPEG image"):
        decode_image(encoded(Image.new("RGB", (16, 16)), kind), 1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_truncated_image_is_refused_not_filled_up(kind, part):
    data = encoded(noise(64, 64, 3), kind)
    with pytest.raises(InputError, match="expected a PNG or JPEG image"):
        decode_image(data[: int(len(data) * part)], 3)


@pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (2**31 - 1, 2**31 - 1), (100_000, 501)])
def test_a_header_that_claims_too_many_pixels_is_refused_before_decoding(width, height, monkeypatch):
    from PIL import ImageFile

    def decoding(*args):
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decoding)
    with pytest.raises(InputError, match=r"at most 50000000 pixels|decompression bomb|exceeds limit") as caught:
        decode_image(png(width, height), 1)
    assert "decoded" not in str(caught.value)


def test_the_limit_on_pixels_is_the_doors():
    decoder = InputDecoder(GREY, max_pixels=47)
    with pytest.raises(InputError, match="expected at most 47 pixels, got 6 x 8"):
        decoder.row(encoded(noise(8, 6)))
    with pytest.raises(InputError):
        decoder.row(noise(8, 6, 1))


def test_a_flood_of_compressed_text_is_refused():
    text = struct.pack(">I", 0)
    body = b"k\x00\x00" + zlib.compress(bytes(80_000_000), 9)
    kind = b"zTXt"
    text = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    with pytest.raises(InputError):
        decode_image(png(4, 4, text), 1)


@given(st.binary(max_size=64))
def test_random_bytes_are_refused_and_nothing_else_happens(data):
    with pytest.raises(InputError):
        decode_image(data, 1)


@given(
    st.sampled_from(["PNG", "JPEG"]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
    st.integers(0, 40),
)
def test_a_damaged_image_is_decoded_or_refused(kind, damage, cut):
    data = bytearray(encoded(noise(12, 9, 3), kind))
    for place, byte in damage:
        data[int(place * len(data))] = byte
    try:
        pixels = decode_image(bytes(data[: len(data) - cut]), 3, max_pixels=10_000)
    except InputError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3


# --- batches at the door ------------------------------------------------------------------------------------


def test_encoded_images_keep_what_was_captured_beside_their_pixels():
    files = [encoded(noise(8, 6, seed=seed)) for seed in range(3)]
    batch = InputDecoder(GREY).batch(["a", "b", "c"], files, deadline=4.0)
    assert batch.ids == ("a", "b", "c")
    assert batch.x.shape == (3, 8, 6, 1)
    assert batch.captured.tolist() == files
    assert batch.deadline == 4.0


def test_images_of_several_sizes_are_a_ragged_batch_that_every_member_can_prepare():
    files = [encoded(noise(8, 6)), encoded(noise(20, 30)), encoded(noise(4, 3))]
    batch = InputDecoder(GREY).batch(["a", "b", "c"], files)
    assert batch.x.dtype == object
    assert [image.shape for image in batch.x] == [(8, 6, 1), (20, 30, 1), (4, 3, 1)]
    assert GREY.prepare(batch.x).shape == (3, 1, 8, 6)
    taken = batch.take(np.array([1]))
    assert taken.captured.tolist() == [files[1]]
    assert GREY.prepare(taken.x)[0].tobytes() == GREY.prepare(batch.x)[1].tobytes()


def test_pixels_and_floats_and_files_in_one_batch_are_prepared_alike():
    pixels = noise(8, 6, 1)
    ready = GREY.prepare(pixels[None])[0]
    batch = InputDecoder(GREY).batch(list("abcd"), [pixels, ready, encoded(pixels[..., 0]), ready.astype(np.float64)])
    assert batch.captured is None
    assert [row.tolist() for row in GREY.prepare(batch.x)] == [ready.tolist()] * 4


def test_an_array_of_pixels_is_a_batch_as_it_stands():
    pixels = noise(5, 8, 6, 3)
    batch = InputDecoder(RGB).batch(list("abcde"), pixels)
    assert batch.x is pixels
    assert batch.captured is None


def test_an_image_without_a_channel_axis_is_grey():
    assert InputDecoder(GREY).row(noise(9, 7)).shape == (9, 7, 1)


def test_one_bad_example_is_named():
    with pytest.raises(InputError, match=r"^example b: expected a PNG or JPEG image"):
        InputDecoder(GREY).batch(["a", "b"], [encoded(noise(8, 6)), b"junk"])


@pytest.mark.parametrize(
    ("input_spec", "value", "message"),
    [
        (GREY, noise(8, 6, 3), "expected uint8 pixels [height, width, 1], got shape [8, 6, 3]"),
        (RGB, noise(8, 6), "expected uint8 pixels [height, width, 3], got shape [8, 6, 1]"),
        (GREY, noise(0, 6, 1), "expected uint8 pixels [height, width, 1], got shape [0, 6, 1]"),
        (GREY, np.uint8(3), "expected uint8 pixels [height, width, 1], got shape []"),
        (GREY, np.zeros((8, 6, 1)), "expected shape [1, 8, 6], got [8, 6, 1]"),
        (GREY, np.zeros((1, 8, 6), dtype=np.int64), "expected uint8 pixels or floats, got int64"),
        (GREY, np.zeros((1, 8, 6), dtype=complex), "expected uint8 pixels or floats, got complex128"),
        (InputSpec("tensor", (4,)), b"png", "expected a tensor of shape [4], got encoded bytes"),
        (InputSpec("tensor", (4,)), np.zeros(5), "expected shape [4], got [5]"),
        (InputSpec("tensor", (1,)), np.array(["a"]), "expected uint8 pixels or floats, got <U1"),
    ],
)
def test_an_example_of_another_shape_or_kind_says_what_was_expected(input_spec, value, message):
    with pytest.raises(InputError) as caught:
        InputDecoder(input_spec).row(np.asarray(value) if not isinstance(value, bytes) else value)
    assert message in str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
@pytest.mark.parametrize("input_spec", [GREY, InputSpec("tensor", (1, 8, 6), "NHWC")])
def test_numbers_that_are_none_are_refused(bad, input_spec):
    x = np.zeros((2, 1, 8, 6))
    x[1, 0, 3, 3] = bad
    with pytest.raises(InputError, match="expected finite numbers in float32, got NaN, infinity or too large a one"):
        InputDecoder(input_spec).batch(["a", "b"], x)


def test_numbers_too_large_for_the_models_type_are_refused():
    half = InputSpec("tensor", (1,), "NHWC", "float16")
    assert InputDecoder(half).row(np.array([60000.0])).tolist() == [60000.0]
    with pytest.raises(InputError, match="in float16"):
        InputDecoder(half).row(np.array([70000.0]))


def test_whole_numbers_are_a_tensor():
    tensor = InputSpec("tensor", (3,), "NHWC", "int64")
    batch = InputDecoder(tensor).batch(["a"], np.array([[1, 2, 3]], dtype=np.int32))
    assert tensor.prepare(batch.x).dtype == np.int64


VALUES = st.one_of(
    st.binary(max_size=20),
    st.just(encoded(noise(8, 6))),
    st.just(encoded(noise(3, 4, 3), "JPEG")),
    st.builds(
        lambda shape, kind: np.ones(shape, dtype=kind),
        st.lists(st.integers(0, 8), max_size=4).map(tuple) | st.sampled_from([(8, 6), (8, 6, 1), (1, 8, 6), (2, 3, 1)]),
        st.sampled_from(["uint8", "float32", "float64", "int64", "bool"]),
    ),
)


@given(st.lists(VALUES, min_size=1, max_size=3), st.sampled_from([GREY, RGB, InputSpec("tensor", (8, 6), "NHWC")]))
def test_whatever_comes_in_can_be_prepared_or_is_refused(values, input_spec):
    try:
        batch = InputDecoder(input_spec).batch([str(number) for number in range(len(values))], values)
    except InputError as error:
        assert str(error).startswith("example ")  # noqa: PT017
        return
    ready = input_spec.prepare(batch.x)
    assert ready.shape == (len(values), *input_spec.model_shape)
    assert ready.dtype == input_spec.dtype


# --- preparing ----------------------------------------------------------------------------------------------


def naive(input_spec, pixels):
    """(pixel * scale - mean) / std, one number at a time, exactly."""
    height, width, channels = input_spec.shape
    out = np.empty((len(pixels), *input_spec.model_shape))
    for row in range(len(pixels)):
        for i in range(height):
            for j in range(width):
                for c in range(channels):
                    mean = Fraction(input_spec.mean[c % len(input_spec.mean)])
                    std = Fraction(input_spec.std[c % len(input_spec.std)])
                    value = (int(pixels[row, i, j, c]) * Fraction(input_spec.scale) - mean) / std
                    place = (c, i, j) if input_spec.layout == "NCHW" else (i, j, c)
                    out[(row, *place)] = float(value)
    return out


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(
    ("channels", "mean", "std"),
    [
        (1, (0.0,), (1.0,)),
        (1, (0.1307,), (0.3081,)),
        (3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        (3, (0.5,), (0.25,)),
        (3, (0.0,), (1.0, 2.0, 4.0)),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 1 / 255])
def test_pixels_are_scaled_shifted_and_laid_out_as_the_contract_says(layout, channels, mean, std, scale):
    input_spec = InputSpec("image", (4, 3, channels), layout, "float32", scale, mean, std)
    pixels = noise(2, 4, 3, channels)
    before = pixels.copy()
    ready = input_spec.prepare(pixels)
    assert ready.dtype == np.float32
    assert ready.shape == (2, *input_spec.model_shape)
    assert ready.flags.c_contiguous
    wanted = naive(input_spec, pixels)
    assert np.abs(ready - wanted).max() <= 1e-5 * max(1.0, np.abs(wanted).max())
    assert pixels.tobytes() == before.tobytes()


def test_a_model_of_uint8_gets_the_pixels_untouched():
    input_spec = InputSpec("image", (4, 3, 3), "NCHW", "uint8", 1 / 255, (0.5,), (0.5,))
    pixels = noise(2, 4, 3, 3)
    ready = input_spec.prepare(pixels)
    assert ready.dtype == np.uint8
    assert ready.tolist() == pixels.transpose(0, 3, 1, 2).tolist()


def test_a_model_of_float16_gets_float16():
    assert InputSpec("image", (4, 3, 1), dtype="float16", scale=1 / 255).prepare(noise(1, 4, 3, 1)).dtype == np.float16


def test_floats_are_taken_as_prepared_already():
    ready = np.linspace(-1, 1, 96).reshape(2, 1, 8, 6)
    input_spec = InputSpec("image", (8, 6, 1), scale=1 / 255, mean=(0.5,))
    assert input_spec.prepare(ready).tolist() == ready.astype(np.float32).tolist()


def test_floats_prepared_for_another_shape_are_refused():
    with pytest.raises(InputError, match=r"expected shape \[1, 8, 6\], got \[1, 16, 12\] \(or send pixels\)"):
        GREY.prepare(np.zeros((2, 1, 16, 12), dtype=np.float32))


def test_an_image_of_another_size_is_stretched():
    pixels = np.zeros((1, 16, 24, 1), dtype=np.uint8)
    pixels[:, :, 12:] = 200  # right half
    ready = GREY.prepare(pixels)[0, 0]
    assert ready.shape == (8, 6)
    assert ready[:, :2].max() == 0
    assert ready[:, 4:].min() == 200


def test_an_image_of_another_size_is_cropped_to_its_middle_at_the_right_aspect():
    pixels = np.zeros((1, 16, 36, 1), dtype=np.uint8)
    pixels[:, :, 12:24] = 200  # the middle third has the aspect of 8 x 6
    ready = InputSpec("image", (8, 6, 1), fit="crop").prepare(pixels)[0, 0]
    assert ready.shape == (8, 6)
    assert ready[:, 1:-1].min() == 200
    assert ready.min() > 150  # the filter looks a pixel over the edge


def test_colour_is_resized_channel_by_channel():
    pixels = np.zeros((2, 16, 12, 3), dtype=np.uint8)
    pixels[..., 1] = 90
    ready = RGB.prepare(pixels)
    assert ready.shape == (2, 3, 8, 6)
    assert [set(ready[:, channel].ravel().tolist()) for channel in range(3)] == [{0.0}, {90.0}, {0.0}]


def test_images_of_any_size_fit_a_contract_of_the_same_channels_only():
    assert GREY.takes(InputSpec("image", (100, 100, 1), "NHWC"))
    assert not GREY.takes(RGB)
    assert not GREY.takes(InputSpec("tensor", (8, 6, 1)))
    assert InputSpec("tensor", (4,)).takes(InputSpec("tensor", (4,), dtype="int64"))
    assert not InputSpec("tensor", (4,)).takes(InputSpec("tensor", (5,)))


def test_a_warm_door_has_loaded_what_decoding_needs():
    code = (
        "import sys; from coe.models import InputSpec, InputDecoder\n"
        "decoder = InputDecoder(InputSpec('image', (4, 4, 1)))\n"
        "assert 'PIL.Image' not in sys.modules\n"
        "decoder.warm_up()\n"
        "assert {'PIL.Image', 'PIL.PngImagePlugin', 'PIL.JpegImagePlugin'} <= sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_pixels_of_a_batch_count_together():
    decoder = InputDecoder(GREY, max_pixels=100)
    small = encoded(np.zeros((8, 6), dtype=np.uint8))  # 48 pixels
    assert len(decoder.batch(["a", "b"], [small, small])) == 2
    with pytest.raises(InputError, match="example c: expected at most 4 pixels, got 6 x 8"):
        decoder.batch(["a", "b", "c"], [small, small, small])


@pytest.mark.parametrize("kind", ["WEBP", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("channels", [1, 3])
def test_other_formats_are_read_as_their_pixels(kind, channels):
    rng = np.random.default_rng(1)
    x = rng.integers(0, 256, (6, 5, 3), dtype=np.uint8) if channels == 3 else np.full((6, 5), 90, dtype=np.uint8)
    picture = Image.fromarray(x)
    buffer = io.BytesIO()
    more = {"lossless": True} if kind == "WEBP" else {}
    picture.save(buffer, kind, **more)
    if kind == "GIF" and channels == 3:  # of 256 colours
        picture = picture.quantize(256).convert("RGB")
    decoded = decode_image(buffer.getvalue(), channels)
    assert decoded.shape == (6, 5, channels)
    assert np.abs(decoded.astype(int) - np.asarray(picture).reshape(6, 5, channels)).max() <= 12
    assert suffix_of(buffer.getvalue()) == {"TIFF": ".tif"}.get(kind, f".{kind.lower()}")


def test_of_a_gif_that_moves_the_first_frame_is_read():
    frames = [Image.new("L", (4, 4), grey) for grey in (10, 200)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(buffer.getvalue(), 1).max() <= 20


def test_heic_names_the_package_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(InputError, match=r"got HEIC or AVIF \(pip install pillow-heif, or send JPEG\)"):
        decode_image(b"\0\0\0\x18ftypheic" + b"\0" * 40, 3)
