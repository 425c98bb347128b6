"""Readers of pictures kept as arrays: idx files (MNIST and its relatives) and npz files."""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from io import BufferedReader
from pathlib import Path

import numpy as np

from gankernels.data.layout import MAX_CLASSES
from gankernels.errors import InputError

_IDX_UINT8 = 0x08

#: Keys of pictures and of their labels, the most telling first.
_NPZ_KEYS = (
    ("images", "labels"),
    ("x_train", "y_train"),
    ("train_images", "train_labels"),
    ("image", "label"),
    ("x", "y"),
    ("data", "labels"),
    ("data", "target"),
    ("arr_0", "arr_1"),
)


def is_idx(path: Path) -> bool:
    """Whether the file begins as an idx file of bytes does, compressed with gzip or not."""
    try:
        with _open(path) as file:
            head = file.read(4)
    except (OSError, EOFError, zlib.error):
        return False
    return len(head) == 4 and head[:3] == bytes([0, 0, _IDX_UINT8]) and 1 <= head[3] <= 4


def read_idx(path: Path, dimensions: int, argument: str) -> np.ndarray:
    """The uint8 array of an idx file (plain or .gz), with ``dimensions`` axes.

    Raises:
        InputError: not such a file, or cut short.
    """
    try:
        with _open(path) as file:
            data = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{argument}: got {path}, which cannot be read ({error}), expected a whole idx file") from None
    if len(data) < 4 * (dimensions + 1) or data[:4] != bytes([0, 0, _IDX_UINT8, dimensions]):
        raise InputError(f"{argument}: got {path}, expected an idx file of bytes with {dimensions} dimension(s)")
    shape = tuple(int(n) for n in np.frombuffer(data, dtype=">u4", count=dimensions, offset=4))
    start = 4 * (dimensions + 1)
    if len(data) - start != math.prod(shape):
        raise InputError(f"{argument}: got {path} with {len(data) - start} bytes, expected {math.prod(shape)}")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)


def idx_labels_path(images: Path) -> Path | None:
    """The labels file beside an idx file of pictures, by the names MNIST gave them; None if there is none."""
    stem = images.name.removesuffix(".gz")
    renamed = stem.replace("images", "labels").replace("idx3", "idx1")
    if renamed != stem:
        for name in (renamed, renamed + ".gz"):
            if (images.parent / name).is_file():
                return images.parent / name
    return None


def find_idx_images(folder: Path, prefix: str = "") -> list[Path]:
    """The idx files of pictures directly in a folder (``*images*ubyte`` or ``.gz``), sorted by name."""
    found = (path for path in folder.iterdir() if path.is_file() and path.name.startswith(prefix))
    return sorted(p for p in found if "images" in p.name and p.name.removesuffix(".gz").endswith("ubyte") and is_idx(p))


def read_npz(path: Path, argument: str) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """Pictures uint8 [N, H, W, C], labels int64 [N] or None, and class names (of labels that are text) or ().

    Pictures may be [N, H, W], [N, H, W, C] or [N, C, H, W]; uint8, whole numbers in 0..255, or floats in [0, 1].

    Raises:
        InputError: not an npz, no array of pictures in it, or values, shapes or labels of another kind.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            keys = {key.lower(): key for key in file.files}
            pairs = [pair for pair in _NPZ_KEYS if pair[0] in keys]
            if not pairs:
                expected = ", ".join(images for images, _ in _NPZ_KEYS)
                got = ", ".join(file.files)[:80] or "nothing"
                raise InputError(f"{argument}: got {path} with {got}, expected pictures under one of {expected}")
            pair = next((pair for pair in pairs if pair[1] in keys), pairs[0])
            images = file[keys[pair[0]]]
            labels = file[keys[pair[1]]] if pair[1] in keys else None
    except InputError:
        raise
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        zipfile.BadZipFile,
        zlib.error,
        AttributeError,
        TypeError,
    ) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{argument}: got {path}, which cannot be read ({reason}), expected an npz file") from None
    images = _as_pictures(images, f"{argument}: got {path} with {pair[0]}")
    if labels is None:
        return images, None, ()
    numbers, names = _as_labels(labels, f"{argument}: got {path} with {pair[1]}")
    if len(numbers) != len(images):
        raise InputError(f"{argument}: got {path} with {len(numbers)} labels, expected {len(images)}")
    return images, numbers, names


def _open(path: Path) -> gzip.GzipFile | BufferedReader:
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def _as_pictures(images: np.ndarray, got: str) -> np.ndarray:
    if images.ndim == 3:
        images = images[..., None]
    elif images.ndim == 4 and images.shape[3] not in (1, 2, 3, 4) and images.shape[1] in (1, 2, 3, 4):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim != 4 or images.shape[3] not in (1, 2, 3, 4) or 0 in images.shape[1:]:
        raise InputError(f"{got} of shape {list(images.shape)}, expected [N, H, W], [N, H, W, C] or [N, C, H, W]")
    if images.dtype == np.uint8 or len(images) == 0:
        return images.astype(np.uint8, copy=False)
    low, high = images.min(), images.max()
    if np.issubdtype(images.dtype, np.floating) and low >= 0 and high <= 1:
        return np.rint(images * 255).astype(np.uint8)
    if np.issubdtype(images.dtype, np.integer) and low >= 0 and high <= 255:
        return images.astype(np.uint8)
    raise InputError(f"{got} of {images.dtype} in [{low}, {high}], expected uint8, 0..255, or floats in [0, 1]")


def _as_labels(labels: np.ndarray, got: str) -> tuple[np.ndarray, tuple[str, ...]]:
    if labels.ndim == 2 and labels.shape[1] > 1 and labels.dtype.kind in "biuf":
        if not (((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all()):
            raise InputError(f"{got} of shape {list(labels.shape)}, expected class numbers [N] or one-hot rows")
        return labels.argmax(1).astype(np.int64), ()
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise InputError(f"{got} of shape {list(labels.shape)}, expected [N]")
    if labels.dtype.kind in "US":
        names, numbers = np.unique(labels.astype(str), return_inverse=True)
        return numbers.astype(np.int64), tuple(str(name) for name in names)
    if labels.dtype.kind not in "iuf" or not ((labels >= 0) & (labels < MAX_CLASSES) & (labels % 1 == 0)).all():
        raise InputError(f"{got} of {labels.dtype}, expected class numbers 0, 1, 2, ...")
    return labels.astype(np.int64), ()
