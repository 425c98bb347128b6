"""The layout that the StyleGAN2-ADA and StyleGAN3 dataset tools write and read.

A zip without compression (or a folder) that holds ``00000/img00000000.png``, ``00000/img00000001.png``, ...: square
pictures of one size, all grey or all RGB, and ``dataset.json`` at the root::

    {"labels": [["00000/img00000000.png", 3], ...]}      or      {"labels": null}

We add ``"class_names": [...]`` where names are known; their reader ignores it.
"""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from gankernels.errors import InputError

METADATA_NAME = "dataset.json"

#: A class number beyond this is taken for a mistake (an identity number, a time) before tables are built for it.
MAX_CLASSES = 1_000_000


def picture_name(index: int) -> str:
    """The name of the ``index``-th picture: folders of 1,000, as the tools number them."""
    digits = f"{index:08d}"
    return f"{digits[:5]}/img{digits}.png"


def parse_metadata(data: bytes, where: str) -> tuple[dict[str, int] | None, tuple[str, ...]]:
    """Labels by picture name, or None where they are null, and the class names, or () where none are given.

    Class numbers and one-hot vectors are understood.

    Raises:
        InputError: not JSON of this layout, or labels that are not classes; ``where`` begins the message.
    """
    try:
        content = json.loads(data)
    except ValueError as error:
        raise InputError(f"{where}: got {METADATA_NAME} that is not JSON ({error}), expected labels") from None
    if not isinstance(content, dict):
        raise InputError(f'{where}: got {METADATA_NAME} without an object at its root, expected {{"labels": [...]}}')
    names = content.get("class_names") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{where}: got class_names that is not a list of strings in {METADATA_NAME}")
    entries = content.get("labels")
    if entries is None:
        return None, ()
    try:
        labels = {str(name).replace("\\", "/"): _class_number(label) for name, label in dict(entries).items()}
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{where}: got labels of another form in {METADATA_NAME} ({error}), expected [[picture, class number], ...]"
        ) from None
    needed = max(labels.values(), default=-1) + 1
    if names and len(names) < needed:
        raise InputError(f"{where}: got {len(names)} class_names in {METADATA_NAME}, expected {needed} or more")
    return labels or None, tuple(names)


def _class_number(label: Any) -> int:
    if isinstance(label, list):
        if sorted(label) != [0] * (len(label) - 1) + [1]:
            raise ValueError(f"the vector {str(label)[:40]} is not one-hot")
        return label.index(1)
    if isinstance(label, bool) or not isinstance(label, (int, float)) or not 0 <= label < MAX_CLASSES or label % 1:
        raise ValueError(f"{str(label)[:40]!r} is not a class number")
    return int(label)


class ArchiveWriter:
    """Writes the layout to a temporary file beside ``path``; :meth:`commit` puts it in place, complete or not at all.

    The same pictures and labels give the same bytes: no times, no compression, one order.

    Use as a context manager: leaving without a commit removes the temporary file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: list[tuple[str, int | None]] = []
        self._temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
        self._file = open(self._temporary, "wb")  # noqa: SIM115
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED)

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, png: bytes, label: int | None) -> None:
        """Append one picture, already encoded as PNG."""
        name = picture_name(len(self._entries))
        self._write(name, png)
        self._entries.append((name, label))

    def commit(self, class_names: Sequence[str] = ()) -> None:
        """Write ``dataset.json``, flush to the disk and rename. Labels are null unless every picture has one."""
        labelled = bool(self._entries) and all(label is not None for _, label in self._entries)
        metadata: dict[str, Any] = {"labels": self._entries if labelled else None}
        if labelled and class_names:
            metadata["class_names"] = list(class_names)
        self._write(METADATA_NAME, json.dumps(metadata, separators=(",", ":")).encode())
        self._zip.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._temporary, self.path)

    def __enter__(self) -> ArchiveWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A full disk fails here too; the temporary file goes all the same, and the first error is the one to report.
        with contextlib.suppress(OSError, ValueError):
            self._zip.close()
        with contextlib.suppress(OSError):
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _write(self, name: str, data: bytes) -> None:
        info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
        info.create_system = 3
        info.external_attr = 0o644 << 16
        self._zip.writestr(info, data)
