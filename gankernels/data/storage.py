"""Where the decoded pictures live: in memory, or in a file of the cache folder that is mapped into it."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gankernels import _files
from gankernels._cache_folder import cache_folder
from gankernels.errors import InputError

#: A data set is held in memory if it takes at most this share of what is available; larger ones are memory-mapped.
MEMORY_SHARE = 0.5

#: Part of every key in the cache: raise it when the same input gives other pixels.
_VERSION = 1


def available_memory() -> int:
    """Bytes that can be had without swapping: the system's figure, and the control group's limit if that is lower."""
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        # No Linux: half of the physical memory, where the system tells.
        try:
            available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        except (AttributeError, OSError, ValueError):
            available = 4 << 30
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            available = min(available, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):
            continue
    return max(available, 0)


def store(shape: tuple[int, int, int, int], chunks: Callable[[], Iterable[Tensor]], facts: str) -> Tensor:
    """The uint8 tensor ``shape`` [N, C, H, W] that the chunks [n, C, H, W] add up to.

    In memory, or else memory-mapped from ``datasets/<key>.npy`` in the cache folder, where ``facts`` makes the key: a
    second call with the same facts and shape maps the file that is there, and draws no chunk.

    Raises:
        InputError: the cache folder cannot be written.
    """
    if math.prod(shape) <= MEMORY_SHARE * available_memory():
        images = torch.empty(shape, dtype=torch.uint8)
        _fill(images, chunks())
        return images
    key = hashlib.sha256(f"{_VERSION} {shape} {facts}".encode()).hexdigest()[:24]
    path = cache_folder() / "datasets" / f"{key}.npy"
    if not path.is_file():
        try:
            _write(path, shape, chunks)
        except OSError as error:
            raise InputError(
                f"GANKERNELS_CACHE: got {cache_folder()}, where {math.prod(shape) / 2**30:.1f} GiB of decoded pictures "
                f"cannot be written ({error.strerror or error}), expected a writable folder with room"
            ) from error
    # Copy-on-write: torch wants memory that it may write to, and the file must stay as it is.
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def _write(path: Path, shape: tuple[int, int, int, int], chunks: Callable[[], Iterable[Tensor]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with _files.replacing(path) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        written = 0
        for chunk in chunks():
            file.write(chunk.contiguous().numpy().data)
            written += len(chunk)
        _check(written, shape[0])


def _fill(images: Tensor, chunks: Iterable[Tensor]) -> None:
    position = 0
    for chunk in chunks:
        images[position : position + len(chunk)] = chunk
        position += len(chunk)
    _check(position, len(images))


def _check(got: int, expected: int) -> None:
    if got != expected:
        raise RuntimeError(f"chunks: got {got} pictures, expected {expected}")
