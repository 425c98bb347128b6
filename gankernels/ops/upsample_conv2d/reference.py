"""The definition, in plain PyTorch, that every route is held against."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from gankernels.ops._activation import activate


def upsample_conv2d(
    x: Tensor,  # [N, I, H, W]
    weight: Tensor,  # [O, I, KH, KW]
    bias: Tensor | None,  # [O]
    *,
    padding: tuple[int, int, int, int],  # left, right, top, bottom
    activation: str,
    slope: float,
) -> Tensor:
    """``act(conv2d(nearest_x2(x), weight, bias, padding))`` in x's dtype."""
    up = F.interpolate(x, scale_factor=2.0, mode="nearest")
    return activate(F.conv2d(F.pad(up, padding), weight, bias), activation, slope)
