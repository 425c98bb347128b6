"""One view of a folder and of a zip: sorted names, and the bytes behind each."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Protocol

from gankernels.errors import InputError

#: What counts as a picture, by the end of the file's name. Formats that run an interpreter (EPS, WMF) are left out.
PICTURE_SUFFIXES = {
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".tga", ".jp2", ".j2k", ".ico", ".avif"),
}

_LITTER_NAMES = frozenset({".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", ".directory", ".gitattributes"})
_LITTER_FOLDERS = frozenset({"__macosx", ".ipynb_checkpoints", ".git", "@eadir", ".thumbnails"})


class Container(Protocol):
    """Files under names with forward slashes. ``read`` may be called from several threads."""

    path: Path
    names: list[str]

    def read(self, name: str) -> bytes:
        """The bytes of one file. Any exception means that this file cannot be read."""

    def facts(self) -> str:
        """Text that changes when the content does: where it is, sizes and times of modification."""

    def close(self) -> None:
        """Release the file handle."""


class Folder:
    """A folder and all below it; symbolic links are followed, each target once."""

    def __init__(self, path: Path, exclude: Path | None = None) -> None:
        self.path = path
        excluded = exclude.resolve() if exclude is not None else None
        names, seen = [], set()
        for parent, subfolders, files in os.walk(path, followlinks=True):
            real = os.path.realpath(parent)
            if real in seen:
                subfolders.clear()
                continue
            seen.add(real)
            for file in files:
                full = Path(parent, file)
                name = full.relative_to(path).as_posix()
                if not _is_litter(name) and (excluded is None or full.resolve() != excluded):
                    names.append(name)
        self.names = sorted(names)

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def facts(self) -> str:
        stats = [(name, (self.path / name).stat()) for name in self.names]
        return "\n".join([str(self.path.resolve()), *(f"{name} {s.st_size} {s.st_mtime_ns}" for name, s in stats)])

    def close(self) -> None:
        pass


class Zip:
    """A zip file. Its members are read where they are; nothing is unpacked on disk."""

    def __init__(self, path: Path, argument: str) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except zipfile.BadZipFile:
            with open(path, "rb") as file:
                what = "a zip that is cut short or damaged" if file.read(2) == b"PK" else "a file that is not a zip"
            raise InputError(f"{argument}: got {path}, {what}, expected a whole zip of pictures") from None
        except (OSError, ValueError, NotImplementedError) as error:
            raise InputError(f"{argument}: got {path}, which cannot be read ({error}), expected a zip") from None
        members = {info.filename.replace("\\", "/"): info for info in self._zip.infolist() if not info.is_dir()}
        self._members = {name: info for name, info in members.items() if not _is_litter(name)}
        self.names = sorted(self._members)

    def read(self, name: str) -> bytes:
        return self._zip.read(self._members[name])

    def facts(self) -> str:
        stat = self.path.stat()
        return f"{self.path.resolve()} {stat.st_size} {stat.st_mtime_ns}"

    def close(self) -> None:
        self._zip.close()


def is_picture(name: str) -> bool:
    """Whether the file's name ends as a picture's does."""
    return os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES


def _is_litter(name: str) -> bool:
    *folders, file = name.lower().split("/")
    return file in _LITTER_NAMES or file.startswith("._") or not _LITTER_FOLDERS.isdisjoint(folders)
