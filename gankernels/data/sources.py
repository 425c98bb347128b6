"""What ``prepare`` reads: a folder, a zip, idx files, an npz file or a built-in name, as one list of pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from gankernels.data import builtin
from gankernels.data.arrays import find_idx_images, idx_labels_path, is_idx, read_idx, read_npz
from gankernels.data.containers import Container, Folder, Zip, is_picture
from gankernels.data.layout import METADATA_NAME, parse_metadata
from gankernels.errors import InputError

_SPLIT_NAMES = frozenset({"train", "training", "test", "testing", "val", "valid", "validation"})


@dataclass(frozen=True)
class Item:
    """One picture of a source: its name there, its class or None, and how to get it (an encoded file, or pixels)."""

    name: str
    label: int | None
    read: Callable[[], bytes | np.ndarray]


@dataclass(frozen=True)
class Skipped:
    """A file that was left out, and why."""

    name: str
    reason: str


@dataclass
class Source:
    """Pictures in their final order.

    ``class_names`` is () where classes have only numbers, ``skipped`` holds the files that listing alone ruled out, and
    ``notes`` what the user should know, one line each.
    """

    items: list[Item]
    class_names: tuple[str, ...] = ()
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    close: Callable[[], None] = lambda: None


def open_source(source: str | Path, exclude: Path | None = None) -> Source:
    """List the pictures of ``source``. Folders and zips are read picture by picture; arrays are held in memory.

    Args:
        source: a folder of class folders, a folder or zip in the StyleGAN layout, a zip of class folders, an idx file
            or a folder of idx files, an npz file, or a built-in name (:mod:`gankernels.data.builtin`).
        exclude: a file to leave out of a folder's listing.

    Raises:
        InputError: no such file, nothing that could be a picture, or a file that is not what its name says.
    """
    if isinstance(source, str) and builtin.is_builtin(source):
        return _from_builtin(source)
    path = Path(source)
    if not path.exists():
        raise InputError(f"SRC: got {source}, which does not exist, expected a folder, zip, idx or npz file")
    if path.is_dir():
        idx = find_idx_images(path)
        return _from_idx_folder(idx) if idx else _from_container(Folder(path, exclude))
    if path.suffix.lower() == ".npz":
        images, labels, names = read_npz(path, "SRC")
        return _from_arrays(images, labels, names, path.name)
    if path.suffix.lower() == ".zip":
        return _from_container(Zip(path, "SRC"))
    if is_idx(path):
        return _from_idx(path)
    raise InputError(f"SRC: got {path}, expected a folder, a .zip, an idx file of pictures or a .npz")


def _from_builtin(name: str) -> Source:
    data = builtin.load(name, "train")
    pictures = np.concatenate([chunk.permute(0, 2, 3, 1).numpy() for chunk in data.chunks()])
    return _from_arrays(pictures, data.labels.numpy(), data.class_names, name)


def _from_idx_folder(found: list[Path]) -> Source:
    training = [path for path in found if path.name.startswith("train")]
    chosen = training or found
    if len(chosen) > 1:
        names = ", ".join(path.name for path in chosen)
        raise InputError(f"SRC: got a folder with several idx files of pictures ({names}), expected one of them")
    source = _from_idx(chosen[0])
    if len(found) > 1:
        source.notes.append(f"took {chosen[0].name}; give another file as SRC for the other split")
    return source


def _from_idx(path: Path) -> Source:
    images = read_idx(path, 3, "SRC")
    labels_path = idx_labels_path(path)
    if labels_path is None:
        return _from_arrays(images[..., None], None, (), path.name)
    labels = read_idx(labels_path, 1, "SRC")
    if len(labels) != len(images):
        raise InputError(f"SRC: got {len(labels)} labels in {labels_path.name}, expected {len(images)}")
    return _from_arrays(images[..., None], labels.astype(np.int64), (), path.name)


def _from_arrays(images: np.ndarray, labels: np.ndarray | None, class_names: tuple[str, ...], name: str) -> Source:
    source = Source(
        [
            Item(f"{name}[{i}]", None if labels is None else int(labels[i]), partial(images.__getitem__, i))
            for i in range(len(images))
        ],
        class_names,
    )
    if labels is None:
        source.notes.append(f"{name} has no labels beside it: the labels are null, for unconditional training only")
    return source


def _from_container(container: Container) -> Source:
    pictures = [name for name in container.names if is_picture(name)]
    metadata = _metadata_name(container.names, pictures)
    source = Source([], close=container.close)
    source.skipped = [Skipped(n, "not a picture") for n in container.names if not is_picture(n) and n != metadata]
    if not pictures:
        container.close()
        raise InputError(f"SRC: got {container.path} without a picture in it, expected class folders of pictures")
    labels, root = None, ""
    if metadata is not None:
        root = metadata.removesuffix(METADATA_NAME)
        labels, source.class_names = parse_metadata(_read_metadata(container, metadata), f"SRC {container.path}")
    else:
        labels, source.class_names = _labels_from_folders(pictures, container)
    for name in pictures:
        label = labels.get(name.removeprefix(root)) if labels is not None else None
        if labels is not None and label is None:
            where = "without a label in dataset.json" if metadata else "in no class folder"
            source.skipped.append(Skipped(name, where))
        else:
            source.items.append(Item(name, label, partial(container.read, name)))
    if labels is None:
        reason = "null labels in dataset.json" if metadata else "no class folders"
        source.notes.append(f"{reason}: the labels are null, for unconditional training only")
    if not source.items:
        container.close()
        raise InputError(f"SRC: got {container.path} whose dataset.json labels none of its pictures")
    source.skipped.sort(key=lambda skipped: skipped.name)
    return source


def _metadata_name(names: list[str], pictures: list[str]) -> str | None:
    if METADATA_NAME in names:
        return METADATA_NAME
    # An archive of one folder that holds the layout.
    top = {name.split("/", 1)[0] for name in pictures}
    inner = f"{next(iter(top))}/{METADATA_NAME}" if len(top) == 1 else None
    return inner if inner in names else None


def _read_metadata(container: Container, name: str) -> bytes:
    try:
        return container.read(name)
    except Exception as error:
        raise InputError(f"SRC: got {container.path}, whose {name} cannot be read ({error})") from None


def _labels_from_folders(pictures: list[str], container: Container) -> tuple[dict[str, int] | None, tuple[str, ...]]:
    """Classes are the topmost folders, below any single folder that holds them all; numbers sort as numbers."""
    parts = [name.split("/") for name in pictures]
    depth = 0
    while all(len(p) > depth + 2 for p in parts) and len({p[depth] for p in parts}) == 1:
        depth += 1
    folders = {p[depth] for p in parts if len(p) > depth + 1}
    if not folders:
        return None, ()
    if len(folders) > 1 and {f.lower() for f in folders} <= _SPLIT_NAMES and all(len(p) > depth + 2 for p in parts):
        raise InputError(
            f"SRC: got {container.path} with the splits {', '.join(sorted(folders))}, expected the class folders "
            "of one split: unpack it if it is a zip, and give that split's folder"
        )
    names = sorted(folders, key=lambda f: (not f.isdecimal(), int(f) if f.isdecimal() else 0, f))
    number = {name: i for i, name in enumerate(names)}
    return {n: number[p[depth]] for n, p in zip(pictures, parts, strict=True) if len(p) > depth + 1}, tuple(names)
