"""Pictures from a generator, and the PNG that they are looked at in."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from gankernels import _files
from gankernels.errors import InputError
from gankernels.models.interface import GeneratorModule


def generate(
    generator: nn.Module, labels: Tensor, *, seed: int, batch_size: int = 256, truncation: float | None = None
) -> Tensor:
    """Pictures of ``labels`` from a generator in eval mode.

    Args:
        generator: as :func:`gankernels.models.build` returns it, on any device.
        labels: int64 [N], on any device.
        seed: of the latents. They are drawn together on the CPU, so neither ``batch_size`` nor the device matters.
        batch_size: how many pictures are made at once.
        truncation: see :func:`latents`.

    Returns:
        uint8 [N, C, H, W] on the CPU.
    """
    generator = cast(GeneratorModule, generator)
    z = latents(len(labels), generator.dim_z, seed=seed, truncation=truncation)
    return render(generator, z, labels, batch_size=batch_size)


def latents(count: int, dim_z: int, *, seed: int, truncation: float | None = None) -> Tensor:
    """Standard normal latents, fp32 [count, dim_z] on the CPU.

    ``truncation`` draws from the normal distribution cut off at ±truncation: less variety, fewer failures (Brock et
    al., arXiv 1809.11096, section 3.1).

    Raises:
        InputError: ``truncation`` is not above 0.
    """
    rng = torch.Generator().manual_seed(seed)
    if truncation is None:
        return torch.randn(count, dim_z, generator=rng)
    if not truncation > 0:
        raise InputError(f"truncation: got {truncation}, expected a number above 0")
    return nn.init.trunc_normal_(torch.empty(count, dim_z), a=-truncation, b=truncation, generator=rng)


@torch.no_grad()
def render(generator: GeneratorModule, z: Tensor, labels: Tensor, *, batch_size: int = 256) -> Tensor:
    """Pictures uint8 [N, C, H, W] on the CPU of the latents ``z`` [N, dim_z] and ``labels`` int64 [N]."""
    device = next(generator.parameters()).device
    pictures = torch.empty(len(z), generator.channels, generator.resolution, generator.resolution, dtype=torch.uint8)
    for start in range(0, len(z), batch_size):
        part = slice(start, start + batch_size)
        x = generator(z[part].to(device), labels[part].to(device))
        pictures[part] = (x.float() + 1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8).cpu()
    return pictures


def save_grid(images: Tensor, path: str | Path, *, columns: int) -> None:
    """Write pictures, row by row, as one PNG; the file is replaced as a whole.

    Args:
        images: uint8 [N, C, H, W] with one channel (grey) or three (RGB).
        path: of the PNG; its folder must exist.
        columns: pictures in a row.
    """
    from PIL import Image

    n, c, h, w = images.shape
    rows = -(-n // columns)
    cells = images.new_zeros(rows * columns, c, h, w)
    cells[:n] = images
    sheet = cells.view(rows, columns, c, h, w).permute(0, 3, 1, 4, 2).reshape(rows * h, columns * w, c)
    with _files.replacing(Path(path)) as file:
        Image.fromarray(sheet.squeeze(2).numpy()).save(file, format="PNG")
