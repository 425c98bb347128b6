"""How a weight's matrix lies in memory, for the fakes and the Triton launchers.

The same rules stand in ``csrc/torch/spectral_norm.cpp``; ``csrc/spectral_norm.h`` says what the numbers mean.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def is_channels_last(weight: Tensor) -> bool:
    """Channels are innermost, and that is not also contiguous."""
    return (
        not weight.is_contiguous()
        and weight.dim() in _CHANNELS_LAST
        and weight.is_contiguous(memory_format=_CHANNELS_LAST[weight.dim()])
    )


def is_dense(weight: Tensor, dim: int) -> bool:
    """Whether the kernels take the weight as it lies; others are copied to contiguous first."""
    return weight.is_contiguous() or (is_channels_last(weight) and dim < 2)


def empty_like(weight: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """What an op allocates for a result with the weight's shape: contiguous and channels_last are kept."""
    if is_dense(weight, dim):
        return torch.empty_like(weight, dtype=dtype)
    return torch.empty(weight.shape, dtype=dtype or weight.dtype, device=weight.device)


class Matrix(NamedTuple):
    """``rows`` runs of ``columns`` numbers: see ``csrc/spectral_norm.h``."""

    rows: int
    columns: int
    inner: int
    channels: int
    positions: int
    transposed: bool

    @property
    def across(self) -> int:
        """The length of the vector across the runs: u [h], or v [w] where ``transposed``."""
        return self.rows * self.inner


def matrix_of(weight: Tensor, dim: int) -> Matrix:
    """Of a weight that :func:`is_dense`."""
    shape = weight.shape
    height = shape[dim]
    if is_channels_last(weight):  # memory is [shape[0], positions, shape[1]]
        positions = math.prod(shape[2:])
        if dim == 1:
            return Matrix(shape[0] * positions, height, 1, height, 1, True)
        return Matrix(height, positions * shape[1], 1, shape[1], positions, False)
    before, behind = math.prod(shape[:dim]), math.prod(shape[dim + 1 :])
    if dim == 0:
        return Matrix(height, behind, 1, behind, 1, False)
    return Matrix(before, height * behind, behind, 1, 1, True)
