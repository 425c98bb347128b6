"""The definition, in plain PyTorch, that every route is held against."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from gankernels.ops._activation import activate


def conv2d_downsample(
    x: Tensor,  # [N, I, H, W]
    weight: Tensor,  # [O, I, KH, KW]
    bias: Tensor | None,  # [O]
    *,
    padding: tuple[int, int, int, int],  # left, right, top, bottom
    activation: str,
    slope: float,
) -> Tensor:
    """``act(avg_pool2d(conv2d(x, weight, bias, padding), 2))`` in x's dtype."""
    return activate(F.avg_pool2d(F.conv2d(F.pad(x, padding), weight, bias), 2), activation, slope)
