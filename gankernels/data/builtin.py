"""Data sets that need no preparation: ``fashion-mnist``, ``digits`` and ``synthetic:<resolution>x<classes>``."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gankernels._cache_folder import cache_folder
from gankernels.data import synthetic
from gankernels.data.arrays import read_idx
from gankernels.errors import InputError

NAMES = ("fashion-mnist", "digits", "synthetic:<resolution>x<classes>")

#: Where the Debian package dataset-fashion-mnist puts its files.
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")

FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)

_SYNTHETIC = re.compile(r"synthetic:(\d+)x(\d+)(?:x(\d+))?")
_SYNTHETIC_COUNT = 10_000


@dataclass(frozen=True)
class Builtin:
    """A data set before storage: uint8 chunks [n, C, H, W] that add up to ``shape`` [N, C, H, W], labels int64 [N]."""

    shape: tuple[int, int, int, int]
    labels: Tensor
    class_names: tuple[str, ...]
    chunks: Callable[[], Iterator[Tensor]]


def is_builtin(source: str) -> bool:
    """Whether ``source`` is meant as a built-in name; a file of that name is reached as ``./name``."""
    return source in ("fashion-mnist", "digits") or source.startswith("synthetic:")


def load(name: str, split: str) -> Builtin:
    """One split, ``"train"`` or ``"test"``, of a built-in data set.

    ``fashion-mnist`` is 60,000 + 10,000 grey pictures of 28 px, ``digits`` 1,438 + 359 grey ones of 8 px, ``synthetic``
    10,000 RGB pictures for training (or what a third number says: ``synthetic:64x10x50000``) and a fifth as many
    others for testing.

    Raises:
        InputError: the files or scikit-learn are not there, or the numbers of ``synthetic`` are out of range.
    """
    if name == "fashion-mnist":
        return _fashion_mnist(split)
    if name == "digits":
        return _digits(split)
    return _synthetic(name, split)


def _fashion_mnist(split: str) -> Builtin:
    prefix = "t10k" if split == "test" else "train"
    folder = _fashion_mnist_folder()
    images = read_idx(_idx_file(folder, f"{prefix}-images-idx3-ubyte"), 3, "fashion-mnist")
    labels = read_idx(_idx_file(folder, f"{prefix}-labels-idx1-ubyte"), 1, "fashion-mnist")
    if len(labels) != len(images):
        raise InputError(f"fashion-mnist: got {len(images)} pictures and {len(labels)} labels in {folder}")
    return _from_array(images, labels, FASHION_MNIST_CLASSES)


def _fashion_mnist_folder() -> Path:
    given = os.environ.get("GANKERNELS_DATA")
    places = [Path(given).expanduser(), Path(given).expanduser() / "fashion-mnist"] if given else []
    places += [DEBIAN_FOLDER, cache_folder() / "fashion-mnist"]
    wanted = [f"{p}-ubyte" for p in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")]
    for folder in places:
        if all(_idx_file(folder, name).is_file() for name in wanted):
            return folder
    looked = f"GANKERNELS_DATA ({given or 'not set'}), {DEBIAN_FOLDER}, {cache_folder() / 'fashion-mnist'}"
    raise InputError(
        f"fashion-mnist: got none of its four idx files in {looked}; expected them in one of these: "
        "apt-get install dataset-fashion-mnist"
    )


def _idx_file(folder: Path, name: str) -> Path:
    plain = folder / name
    return plain if plain.is_file() else folder / f"{name}.gz"


def _digits(split: str) -> Builtin:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError(
            "digits: got no scikit-learn, expected it for this data set: pip install scikit-learn"
        ) from None
    data = load_digits()
    chosen = (np.arange(len(data.images)) % 5 == 4) == (split == "test")
    # The package's values are 0 to 16.
    images = np.rint(data.images[chosen] * (255 / 16)).astype(np.uint8)
    return _from_array(images, data.target[chosen], tuple(str(digit) for digit in range(10)))


def _from_array(images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> Builtin:
    count, height, width = images.shape

    def chunks() -> Iterator[Tensor]:
        for start in range(0, count, 4096):
            yield torch.from_numpy(np.array(images[start : start + 4096])).unsqueeze(1)

    return Builtin((count, 1, height, width), torch.from_numpy(labels.astype(np.int64)), class_names, chunks)


def _synthetic(name: str, split: str) -> Builtin:
    match = _SYNTHETIC.fullmatch(name)
    if match is None:
        raise InputError(
            f"data: got {name!r}, expected synthetic:<resolution>x<classes> or synthetic:<resolution>x<classes>x<count>"
        )
    resolution, classes = int(match[1]), int(match[2])
    count = int(match[3]) if match[3] else _SYNTHETIC_COUNT
    limits = (
        ("resolution", resolution, synthetic.MIN_RESOLUTION, synthetic.MAX_RESOLUTION),
        ("classes", classes, 1, synthetic.MAX_CLASSES),
        ("count", count, 1, 100_000_000),
    )
    for what, value, low, high in limits:
        if not low <= value <= high:
            raise InputError(f"data: got {what} {value} in {name!r}, expected {low} to {high}")
    if split == "test":
        count = max(count // 5, classes)
    # Balanced, and exact: a picture is drawn from its label.
    labels = torch.arange(count) % classes
    names = tuple(synthetic.class_name(label) for label in range(classes))
    return Builtin(
        (count, 3, resolution, resolution),
        labels,
        names,
        lambda: synthetic.pictures(labels.numpy(), resolution, seed=1 if split == "test" else 0),
    )
