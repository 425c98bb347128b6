"""Pictures of any kind to the layout that training reads."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from gankernels.data.layout import ArchiveWriter
from gankernels.data.parallel import grouped, ordered_map
from gankernels.data.pictures import Background, Fit, UnreadablePicture, decode, encode_png, is_coloured, square
from gankernels.data.progress import track
from gankernels.data.sources import Item, Skipped, Source, open_source
from gankernels.errors import InputError

MAX_SIZE = 16_384
_GROUP = 16


@dataclass(frozen=True)
class Prepared:
    """What :func:`prepare` did: the file, its pictures, and what was left out. ``num_classes`` is 0 without labels."""

    path: Path
    num_images: int
    size: int
    channels: int
    num_classes: int
    class_names: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Encoded:
    png: bytes
    label: int | None
    resized: bool


def prepare(
    source: str | Path,
    out: str | Path,
    *,
    size: int | None = None,
    fit: Fit = "crop",
    channels: int | None = None,
    background: Background = "white",
    strict: bool = False,
    on_skip: Callable[[Skipped], None] | None = None,
) -> Prepared:
    """Convert ``source`` to ``out``, a zip of PNG and dataset.json in the layout of the StyleGAN tools.

    Pictures of any mode (grey, alpha, palette, CMYK, 16-bit, rotated by EXIF) and shape become squares of one size, all
    grey or all RGB. A picture that cannot be read is skipped. ``out`` is written beside itself and renamed when it is
    complete: on any failure an older file of that name stays as it was. The same input gives the same bytes.

    Args:
        source: a folder of class folders; a folder or zip in the layout already; a zip of class folders; an idx file,
            or a folder of them; an npz file; or a built-in name.
        out: the zip to write.
        size: side in pixels; None takes the first picture's after ``fit``.
        fit: what becomes of a picture that is not square: ``"crop"`` keeps the centre, ``"pad"`` adds background,
            ``"stretch"`` changes the proportions.
        channels: 1 (grey) or 3 (RGB); None takes 1 if every picture is grey, else 3.
        background: ``"white"`` or ``"black"``, beneath transparent pixels and around padded pictures.
        strict: fail on the first file that would be skipped.
        on_skip: called with each skipped file as it is met.

    Raises:
        InputError: an argument is out of range, nothing readable is in ``source``, ``out`` cannot be written, or a file
            cannot be used and ``strict`` is set.
    """
    out = Path(out)
    _check_arguments(source, out, size, fit, channels, background)
    opened = open_source(source, exclude=out)
    skipped: list[Skipped] = []

    def skip(file: Skipped) -> None:
        if strict:
            raise InputError(f"SRC: got {file.name}, {file.reason}, expected pictures only (--strict)")
        skipped.append(file)
        if on_skip is not None:
            on_skip(file)

    with closing(opened), warnings.catch_warnings():
        # Pillow warns of odd metadata and of large pictures; what matters is whether a picture decodes.
        warnings.simplefilter("ignore")
        for file in opened.skipped:
            skip(file)
        size_given, size = size is not None, size or _first_size(opened, fit)
        channels = channels or _common_channels(opened)
        try:
            with ArchiveWriter(out) as writer:
                labels: Counter[int] = Counter()
                resized = 0
                with closing(_encode(opened, size, fit, channels, background)) as results:
                    for result in results:
                        if isinstance(result, Skipped):
                            skip(result)
                            continue
                        writer.add(result.png, result.label)
                        resized += result.resized
                        if result.label is not None:
                            labels[result.label] += 1
                if not len(writer):
                    raise _no_picture(source, len(skipped))
                writer.commit(opened.class_names)
        except OSError as error:
            raise InputError(f"OUT: got {out}, which cannot be written ({error.strerror or error})") from error

    notes = list(opened.notes)
    if resized and not size_given:
        notes.append(f"no --size given: took the first picture's, {size}; {resized} of {len(writer)} had another")
    notes += _notes_on_classes(labels, opened.class_names)
    num_classes = max(len(opened.class_names), max(labels) + 1) if labels else 0
    return Prepared(out, len(writer), size, channels, num_classes, opened.class_names, tuple(skipped), tuple(notes))


def _check_arguments(
    source: str | Path, out: Path, size: int | None, fit: str, channels: int | None, background: str
) -> None:
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MAX_SIZE):
        raise InputError(f"--size: got {size!r}, expected a whole number of pixels from 1 to {MAX_SIZE}")
    if fit not in get_args(Fit):
        raise InputError(f"--fit: got {fit!r}, expected one of {', '.join(get_args(Fit))}")
    if channels not in (None, 1, 3):
        raise InputError(f"--channels: got {channels!r}, expected 1, 3 or auto")
    if background not in get_args(Background):
        raise InputError(f"--background: got {background!r}, expected one of {', '.join(get_args(Background))}")
    if out.is_dir():
        raise InputError(f"OUT: got {out}, which is a folder, expected a file name that ends in .zip")
    if out.suffix.lower() != ".zip":
        raise InputError(f"OUT: got {out}, expected a file name that ends in .zip")
    if not out.parent.is_dir():
        raise InputError(f"OUT: got {out}, whose folder {out.parent} does not exist, expected an existing folder")
    if out.exists() and Path(source).exists() and out.samefile(source):
        raise InputError(f"OUT: got {out}, which is SRC itself, expected another file")


def _first_size(source: Source, fit: Fit) -> int:
    for item in source.items:
        try:
            width, height = decode(_read(item)).size
        except UnreadablePicture:
            continue
        return min(MAX_SIZE, min(width, height) if fit == "crop" else max(width, height))
    # Nothing can be read: the pass over all pictures names each, and fails.
    return 1


def _common_channels(source: Source) -> int:
    for item in source.items:
        try:
            if is_coloured(_read(item)):
                return 3
        except UnreadablePicture:
            continue
    return 1


def _encode(
    source: Source, size: int, fit: Fit, channels: int, background: Background
) -> Generator[_Encoded | Skipped, None, None]:
    def encode(item: Item) -> _Encoded | Skipped:
        try:
            image = decode(_read(item), background)
        except UnreadablePicture as error:
            return Skipped(item.name, str(error))
        fitted = square(image, None, fit, background)
        png = encode_png(square(fitted, size, fit).convert("L" if channels == 1 else "RGB"))
        return _Encoded(png, item.label, fitted.size != (size, size))

    def encode_group(group: list[Item]) -> list[_Encoded | Skipped]:
        return [encode(item) for item in group]

    groups = ordered_map(encode_group, grouped(source.items, _GROUP))
    for results in track(groups, len(source.items), "preparing", step=_GROUP):
        yield from results


def _read(item: Item) -> bytes | np.ndarray:
    try:
        return item.read()
    # Whatever a damaged zip member or an unreadable file raises, it concerns this one picture.
    except Exception as error:
        raise UnreadablePicture(" ".join(str(error).split()) or type(error).__name__) from error


def _no_picture(source: str | Path, skipped: int) -> InputError:
    return InputError(f"SRC: got {source} without a readable picture ({skipped} skipped), expected pictures")


def _notes_on_classes(labels: Counter[int], class_names: tuple[str, ...]) -> list[str]:
    if not labels:
        return []
    notes = []
    empty = [name for number, name in enumerate(class_names) if not labels[number]]
    if empty:
        notes.append(f"no readable picture of {len(empty)} of {len(class_names)} classes: {', '.join(empty)[:200]}")
    if len(labels) == 1:
        notes.append("only one class: conditional training needs two or more")
    return notes
