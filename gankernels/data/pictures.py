"""From the bytes of a picture in any mode to square 8-bit grey or RGB, and back to PNG."""

from __future__ import annotations

import io
import os
import struct
import zlib
from functools import cache
from typing import Literal

import numpy as np

from gankernels.errors import InputError

try:
    from PIL import Image, ImageOps
except ImportError as error:
    raise InputError("pillow: not installed, expected for reading pictures: pip install 'gankernels[train]'") from error

Fit = Literal["crop", "pad", "stretch"]
Background = Literal["white", "black"]

_FORMATS = ("PNG", "JPEG", "MPO", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM", "TGA", "JPEG2000", "ICO", "AVIF")
_GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"})


class UnreadablePicture(Exception):
    """One picture cannot be used; the message says why in a few words."""


def decode(data: bytes | np.ndarray, background: Background = "white") -> Image.Image:
    """The picture as PIL mode L (grey) or RGB, upright (EXIF), with transparent parts over the background.

    Args:
        data: an encoded file; or uint8 [H, W] or [H, W, C] with C of 1 to 4 (grey, grey+alpha, RGB, RGBA).
        background: the colour beneath transparent pixels.

    Raises:
        UnreadablePicture: truncated, corrupt, not a picture, too large to be genuine, or floats outside [0, 1].
    """
    if isinstance(data, np.ndarray):
        pixels = np.ascontiguousarray(data[..., 0] if data.ndim == 3 and data.shape[2] == 1 else data)
        return _flatten(Image.fromarray(pixels), background)
    try:
        with _open(data) as image:
            image.load()
            return _flatten(ImageOps.exif_transpose(image), background)
    except UnreadablePicture:
        raise
    # Decoders raise nearly every type on damaged files; whatever it is, it concerns this one picture.
    except Exception as error:
        raise UnreadablePicture(_reason(error)) from error


def is_coloured(data: bytes | np.ndarray) -> bool:
    """Whether the picture's mode, or its palette, holds colour; judged by the header alone.

    Raises:
        UnreadablePicture: the header cannot be read.
    """
    if isinstance(data, np.ndarray):
        return data.ndim == 3 and data.shape[2] >= 3
    try:
        with _open(data) as image:
            if image.mode in ("P", "PA"):
                palette = np.array(image.getpalette("RGB") or [0, 0, 0]).reshape(-1, 3)
                return bool((palette != palette[:, :1]).any())
            return image.mode not in _GREY_MODES
    except Exception as error:
        raise UnreadablePicture(_reason(error)) from error


def square(image: Image.Image, size: int | None, fit: Fit, background: Background = "white") -> Image.Image:
    """The picture as a square of ``size`` pixels; None keeps the side that the crop (or the padding) gives.

    ``crop`` keeps the centre, ``pad`` keeps all and fills the rest with the background, ``stretch`` changes the
    proportions. Resampling is Lanczos, with the support that shrinking needs.
    """
    width, height = image.size
    if width != height and fit == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    elif width != height and fit == "pad":
        side = max(width, height)
        canvas = Image.new(image.mode, (side, side), background)
        canvas.paste(image, ((side - width) // 2, (side - height) // 2))
        image = canvas
    side = size if size is not None else max(image.size)
    return image if image.size == (side, side) else image.resize((side, side), Image.Resampling.LANCZOS)


def encode_png(image: Image.Image) -> bytes:
    """PNG without compression: quick to decode, and the same bytes whatever zlib is installed."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=0, optimize=False)
    return buffer.getvalue()


def _open(data: bytes) -> Image.Image:
    if not data:
        raise UnreadablePicture("empty file")
    return Image.open(io.BytesIO(data), formats=_formats())


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _flatten(image: Image.Image, background: Background) -> Image.Image:
    if image.mode == "F":
        values = np.asarray(image)
        # The comparison is false for NaN too.
        if not (values.min() >= 0 and values.max() <= 1):
            raise UnreadablePicture("floating-point picture outside [0, 1]")
        return Image.fromarray(np.rint(values * 255).astype(np.uint8))
    if image.mode.startswith("I"):
        # 16-bit grey, which some versions of pillow open as 32-bit: 65535 becomes 255.
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    grey = image.mode in _GREY_MODES
    if not image.has_transparency_data:
        mode = "L" if grey else "RGB"
        return image if image.mode == mode else image.convert(mode)
    image = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(image, mask=image.getchannel("A"))
    return canvas.convert("L") if grey else canvas


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a picture"
    if isinstance(error, Image.DecompressionBombError):
        return "more pixels than a genuine picture has"
    if isinstance(error, (SyntaxError, EOFError, zlib.error, struct.error)) or "truncated" in str(error):
        return f"truncated or corrupt ({error})" if str(error) else "truncated or corrupt"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return " ".join(str(error).split()) or type(error).__name__
