"""Small pictures on disk, and a reader of the StyleGAN layout that shares nothing with the package's own."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


def gradient(width: int, height: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """uint8 [H, W, channels], or [H, W] for one channel, with no two pixels of a row alike."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return values[..., 0] if channels == 1 else values


def save(path: Path, pixels: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def class_folders(root: Path, *, classes=("cat", "dog"), count: int = 3, size: int = 8, channels: int = 3) -> Path:
    for number, name in enumerate(classes):
        for i in range(count):
            save(root / name / f"{i}.png", gradient(size, size, channels, seed=100 * number + i))
    return root


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_idx(path: Path, array: np.ndarray) -> Path:
    data = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read_as_stylegan(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels [N, C, H, W] and labels [N] or None, by the rules of that layout: what users of those tools would see."""
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        pictures = sorted(name for name in names if name.lower().endswith((".png", ".jpg", ".bmp")))
        pixels = []
        for name in pictures:
            assert archive.getinfo(name).compress_type == zipfile.ZIP_STORED
            values = np.array(Image.open(io.BytesIO(archive.read(name))))
            pixels.append(values[None] if values.ndim == 2 else values.transpose(2, 0, 1))
        labels = json.loads(archive.read("dataset.json"))["labels"]
    if labels is None:
        return np.stack(pixels), None
    table = dict(labels)
    return np.stack(pixels), np.array([table[name] for name in pictures])


def damaged_folder(root: Path) -> Path:
    """Six good pictures, and four files that cannot be used."""
    class_folders(root)
    whole = (root / "cat" / "0.png").read_bytes()
    (root / "cat" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "dog" / "empty.jpg").write_bytes(b"")
    (root / "dog" / "text.png").write_text("not a picture at all")
    (root / "notes.txt").write_text("hello")
    return root


def one_picture(root: Path) -> Path:
    return class_folders(root, classes=("a",), count=1)


def make_folder(path: Path) -> Path:
    path.mkdir()
    return path


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def half_a_zip(folder: Path) -> Path:
    whole = write_zip(folder / "whole.zip", {f"a/{i}.png": png(gradient(16, 16)) for i in range(9)}).read_bytes()
    return write(folder / "half.zip", whole[: len(whole) // 2])
