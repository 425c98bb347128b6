"""Every mode of picture becomes 8-bit grey or RGB, upright and square."""

from __future__ import annotations

import io

import numpy as np
import pytest
from picture_files import gradient, png
from PIL import Image

from gankernels.data.pictures import UnreadablePicture, decode, encode_png, is_coloured, square


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def test_grey_and_rgb_keep_their_pixels():
    for channels, mode in ((1, "L"), (3, "RGB")):
        pixels = gradient(5, 4, channels)
        image = decode(png(pixels))
        assert image.mode == mode
        assert np.array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize(("background", "value"), [("white", 255), ("black", 0)])
@pytest.mark.parametrize(("channels", "mode"), [(2, "L"), (4, "RGB")])
def test_transparent_pixels_take_the_background(background, value, channels, mode):
    pixels = gradient(4, 4, channels)
    pixels[:2, :, -1], pixels[2:, :, -1] = 0, 255
    for data in (png(pixels), pixels):
        image = decode(data, background)
        out = np.asarray(image)
        assert image.mode == mode
        assert (out[:2] == value).all()
        assert np.array_equal(out[2:], pixels[2:, :, 0] if mode == "L" else pixels[2:, :, :3])


def test_palette_with_a_transparent_entry():
    image = Image.fromarray(np.array([[0, 1], [1, 0]], dtype=np.uint8))
    image = image.convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    assert decode(encoded(image)).getpixel((0, 0)) == (10, 20, 30)
    transparent = decode(encoded(image, transparency=0))
    assert transparent.getpixel((0, 0)) == (255, 255, 255)
    assert transparent.getpixel((1, 0)) == (200, 100, 50)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled(kind):
    values = np.array([[0, 257, 32896], [65535, 128, 129]], dtype=np.uint16)
    image = decode(encoded(Image.fromarray(values), kind))
    assert image.mode == "L"
    assert np.asarray(image).tolist() == [[0, 1, 128], [255, 0, 1]]


def test_cmyk_one_bit_and_float():
    assert decode(encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF")).getpixel((0, 0)) == (255, 0, 0)
    assert decode(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")).mode == "RGB"
    assert np.asarray(decode(encoded(Image.new("1", (4, 4), 1)))).tolist() == [[255] * 4] * 4
    values = np.array([[0, 0.5, 1]], dtype=np.float32)
    assert np.asarray(decode(encoded(Image.fromarray(values), "TIFF"))).tolist() == [[0, 128, 255]]
    with pytest.raises(UnreadablePicture, match="floating-point"):
        decode(encoded(Image.fromarray(values * 2), "TIFF"))


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (16, 8), "red")
    assert decode(encoded(image, "JPEG", exif=exif)).size == (8, 16)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF"])
def test_a_cut_off_file_is_unreadable(kind):
    data = encoded(Image.fromarray(gradient(64, 64)), kind)
    decode(data)
    with pytest.raises(UnreadablePicture):
        decode(data[: len(data) // 2])


@pytest.mark.parametrize(("data", "reason"), [(b"", "empty file"), (b"hello, this is text", "not a picture")])
def test_what_is_no_picture_says_so(data, reason):
    with pytest.raises(UnreadablePicture, match=reason):
        decode(data)
    with pytest.raises(UnreadablePicture, match=reason):
        is_coloured(data)


def test_too_many_pixels_are_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UnreadablePicture, match="more pixels"):
        decode(png(gradient(16, 16)))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_flipped_bytes_never_raise_anything_else():
    """A damaged file either decodes or is unreadable; nothing else may come out."""
    random = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"):
        data = np.frombuffer(encoded(Image.fromarray(gradient(12, 12)), kind), dtype=np.uint8)
        for _ in range(40):
            damaged = data.copy()
            damaged[random.integers(0, len(data), 4)] = random.integers(0, 256, 4)
            try:
                decode(damaged.tobytes())
            except UnreadablePicture:
                continue


def test_colour_is_judged_by_mode_and_palette():
    grey, colour = Image.fromarray(gradient(4, 4, 1)), Image.fromarray(gradient(4, 4, 3))
    assert not is_coloured(encoded(grey))
    assert not is_coloured(encoded(grey.convert("LA")))
    assert not is_coloured(encoded(grey.convert("P")))
    assert is_coloured(encoded(colour))
    assert is_coloured(encoded(colour.quantize(8)))
    assert not is_coloured(gradient(4, 4, 2))
    assert is_coloured(gradient(4, 4, 3))


def test_square_crops_pads_or_stretches():
    pixels = gradient(6, 4, 3)
    image = Image.fromarray(pixels)
    assert np.array_equal(np.asarray(square(image, None, "crop")), pixels[:, 1:5])
    padded = np.asarray(square(image, None, "pad", "black"))
    assert padded.shape == (6, 6, 3)
    assert np.array_equal(padded[1:5], pixels)
    assert (padded[[0, 5]] == 0).all()
    assert (np.asarray(square(image, None, "pad", "white"))[[0, 5]] == 255).all()
    assert square(image, None, "stretch").size == (6, 6)
    for fit in ("crop", "pad", "stretch"):
        assert square(image, 3, fit).size == (3, 3)


def test_an_extreme_shape_still_gives_a_square():
    for size in ((1, 500), (500, 1)):
        for fit in ("crop", "pad", "stretch"):
            assert square(Image.new("L", size), 8, fit).size == (8, 8)


def test_png_round_trip_is_exact():
    image = Image.fromarray(gradient(7, 7))
    assert np.array_equal(np.asarray(decode(encode_png(image))), np.asarray(image))
