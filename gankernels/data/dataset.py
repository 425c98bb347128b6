"""A data set as training sees it: all pictures as one uint8 tensor, and a label for each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gankernels.data import builtin
from gankernels.data.containers import Container, Folder, Zip, is_picture
from gankernels.data.layout import METADATA_NAME, parse_metadata
from gankernels.data.parallel import grouped, ordered_map
from gankernels.data.progress import track
from gankernels.data.resample import resample
from gankernels.data.storage import store
from gankernels.errors import InputError

if TYPE_CHECKING:
    from gankernels.data.builtin import Builtin

SPLITS = ("train", "test", "train-holdout")
_GROUP = 64
_FINGERPRINT_PICTURES = 1024


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Pictures and labels of one split.

    Attributes:
        name: what it was opened as: a built-in name, or the file's name without its suffix.
        images: uint8 [N, C, H, W], contiguous, in memory or memory-mapped. Read only, by convention.
        labels: int64 [N] in [0, num_classes); zeros where there are no labels.
        class_names: one name for each class, its number where no name is known; () where there are no labels.
    """

    name: str
    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """The number of classes; 0 where there are no labels."""
        return len(self.class_names)

    @property
    def resolution(self) -> int:
        """Height and width in pixels."""
        return self.images.shape[-1]

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return self.images.shape[1]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The pictures uint8 [B, C, H, W] and labels int64 [B] at ``indices`` (integers [B], on any device)."""
        indices = indices.cpu()
        return self.images[indices], self.labels[indices]

    def fingerprint(self) -> str:
        """16 hexadecimal digits that stay the same as long as shape, labels, class names and pictures do.

        Of more than 1,024 pictures, 1,024 at equal distances are read.
        """
        digest = hashlib.sha256(repr((tuple(self.images.shape), self.class_names)).encode())
        digest.update(self.labels.numpy().tobytes())
        chosen = torch.linspace(0, len(self) - 1, min(len(self), _FINGERPRINT_PICTURES), dtype=torch.float64).long()
        for index in chosen.tolist():
            digest.update(self.images[index].numpy().tobytes())
        return digest.hexdigest()[:16]

    def require_labels(self, min_classes: int = 2) -> ImageDataset:
        """This data set, if its pictures have labels of at least ``min_classes`` classes.

        Raises:
            InputError: labels are missing, or pictures of too few classes are there.
        """
        if not self.class_names:
            raise InputError(
                f"data: got {self.name} with its labels missing (no dataset.json, or null labels), expected a label "
                "for every picture: gankernels data prepare FOLDER_OF_CLASS_FOLDERS OUT.zip"
            )
        present = len(self.labels.unique())
        if present < min_classes:
            raise InputError(f"data: got {self.name} with {present} class, expected pictures of {min_classes} or more")
        return self


def open_dataset(
    source: str | Path, *, split: str = "train", resolution: int | None = None, channels: int | None = None
) -> ImageDataset:
    """Open a built-in data set, or a prepared zip or folder.

    Args:
        source: ``fashion-mnist``, ``digits``, ``synthetic:<resolution>x<classes>``; or the path of a zip of PNG and
            dataset.json in the layout of the StyleGAN tools, or of a folder that holds the same unpacked.
        split: ``"train"`` or ``"test"``. Built-in data sets have their own. Of a zip, ``"train"`` is every picture,
            ``"test"`` every tenth (index % 10 == 9 in sorted order) and ``"train-holdout"`` the other nine tenths.
        resolution: side in pixels to convert to; None keeps the source's.
        channels: 1 (grey) or 3 (RGB) to convert to; None keeps the source's.

    Returns:
        The data set, in memory if it takes at most half of the available memory, else memory-mapped from a file in
        the cache folder (``GANKERNELS_CACHE`` or ``~/.cache/gankernels``) that is written once.

    Raises:
        InputError: no such source, not a prepared one, a picture that cannot be read, or an argument out of range.
    """
    if split not in SPLITS:
        raise InputError(f"split: got {split!r}, expected one of {', '.join(SPLITS)}")
    if channels not in (None, 1, 3):
        raise InputError(f"channels: got {channels!r}, expected 1 or 3")
    if resolution is not None and (not isinstance(resolution, int) or resolution < 1):
        raise InputError(f"resolution: got {resolution!r}, expected a positive whole number of pixels")
    if builtin.is_builtin(str(source)):
        data = builtin.load(str(source), "test" if split == "test" else "train")
        return _open_builtin(str(source), split, data, resolution, channels)
    path = Path(source)
    if not path.exists():
        names = ", ".join(builtin.NAMES)
        raise InputError(f"data: got {source}, which does not exist, expected a prepared zip or one of {names}")
    if path.is_dir():
        container: Container = Folder(path)
    elif path.suffix.lower() == ".zip":
        container = Zip(path, "data")
    else:
        raise InputError(f"data: got {path}, expected a prepared zip: gankernels data prepare {path.name} OUT.zip")
    try:
        return _open_container(container, split, resolution, channels)
    finally:
        container.close()


def _open_builtin(name: str, split: str, data: Builtin, resolution: int | None, channels: int | None) -> ImageDataset:
    count, depth, side, _ = data.shape
    resolution, channels = resolution or side, channels or depth

    def chunks() -> Iterator[Tensor]:
        for chunk in data.chunks():
            yield resample(chunk, resolution, channels)

    facts = f"{name} {'test' if split == 'test' else 'train'}"
    images = store((count, channels, resolution, resolution), chunks, facts)
    return ImageDataset(name, images, data.labels, data.class_names)


def _open_container(container: Container, split: str, resolution: int | None, channels: int | None) -> ImageDataset:
    path = container.path
    names = [name for name in container.names if is_picture(name)]
    strange = next((n for n in container.names if not is_picture(n) and n != METADATA_NAME), None)
    if not names:
        raise InputError(f"data: got {path} without a picture in it, expected a prepared zip")
    if strange is not None:
        raise InputError(
            f"data: got {path}, in which {strange} is neither a picture nor dataset.json, expected a prepared zip: "
            f"gankernels data prepare {path.name} OUT.zip skips it"
        )
    labels, class_names = _labels(container, names)
    chosen = [i for i in range(len(names)) if split == "train" or (i % 10 == 9) == (split == "test")]
    if not chosen:
        raise InputError(f"data: got {path} with {len(names)} pictures, expected 10 or more for a {split} split")
    first = _decode(container, names[0], None)
    depth, side = first.shape[0], first.shape[2]
    resolution, out_channels = resolution or side, channels or depth
    shape = (len(chosen), out_channels, resolution, resolution)

    def decode_group(group: list[int]) -> Tensor:
        decoded = np.stack([_decode(container, names[i], first.shape, channels is not None) for i in group])
        return resample(torch.from_numpy(decoded), resolution, out_channels)

    def chunks() -> Iterator[Tensor]:
        groups = ordered_map(decode_group, grouped(chosen, _GROUP))
        return track(groups, len(chosen), f"decoding {path.name}", step=_GROUP)

    images = store(shape, chunks, f"{split} {container.facts()}")
    return ImageDataset(path.stem, images, labels[torch.tensor(chosen)], class_names)


def _labels(container: Container, names: list[str]) -> tuple[Tensor, tuple[str, ...]]:
    """int64 [N] and the class names; zeros and () where there are no labels."""
    by_name: dict[str, int] | None = None
    class_names: tuple[str, ...] = ()
    if METADATA_NAME in container.names:
        try:
            data = container.read(METADATA_NAME)
        except Exception as error:
            raise InputError(f"data: got {container.path}, whose dataset.json cannot be read ({error})") from None
        by_name, class_names = parse_metadata(data, f"data {container.path}")
    if by_name is None:
        return torch.zeros(len(names), dtype=torch.int64), ()
    missing = [name for name in names if name not in by_name]
    if missing:
        raise InputError(
            f"data: got {container.path} with labels missing for {len(missing)} of {len(names)} pictures ({missing[0]}"
            f"{', ...' if len(missing) > 1 else ''}), expected one for each"
        )
    labels = torch.tensor([by_name[name] for name in names], dtype=torch.int64)
    return labels, class_names or tuple(str(i) for i in range(int(labels.max()) + 1))


def _decode(container: Container, name: str, shape: tuple[int, ...] | None, any_channels: bool = True) -> np.ndarray:
    """uint8 [C, H, W]; of ``shape`` where one is given, with its number of channels or converted to it."""
    from gankernels.data.pictures import UnreadablePicture, decode

    where = f"data: got {container.path}, whose picture {name}"
    again = "prepare it again: gankernels data prepare"
    try:
        image = decode(container.read(name))
    except UnreadablePicture as error:
        raise InputError(f"{where} cannot be read ({error}); {again}") from None
    except Exception as error:
        raise InputError(f"{where} cannot be read ({' '.join(str(error).split())}); {again}") from None
    width, height = image.size
    if width != height or (shape is not None and height != shape[1]):
        expected = f"{shape[1]}x{shape[1]}" if shape is not None else "a square"
        raise InputError(f"{where} is {width}x{height}, expected {expected} as in a prepared zip; {again}")
    channels = len(image.getbands())
    if shape is not None and channels != shape[0]:
        if not any_channels:
            raise InputError(f"{where} has {channels} channel(s), expected {shape[0]} as the first one; {again}")
        image = image.convert("L" if shape[0] == 1 else "RGB")
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
