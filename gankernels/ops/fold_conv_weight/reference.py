"""The fold in plain PyTorch: the definition that every kernel is held against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def fold_conv_weight(
    weight: Tensor,  # [O, I, K, K]
    resample: str,
) -> Tensor:  # up: [I, O, K+1, K+1]; down: [O, I, K+1, K+1]
    """The sum of ``weight`` shifted by 0 and 1 in both directions, computed in fp32 (fp64 for fp64), in weight's dtype.

    Up, of the transposed and flipped weight, as a transposed convolution takes it; down, a quarter of the sum.
    """
    padded = F.pad(weight.to(torch.promote_types(weight.dtype, torch.float32)), (1, 1, 1, 1))
    folded = padded[..., :-1, :-1] + padded[..., :-1, 1:] + padded[..., 1:, :-1] + padded[..., 1:, 1:]
    folded = folded.flip(2, 3).transpose(0, 1) if resample == "up" else folded / 4
    return folded.to(weight.dtype)
