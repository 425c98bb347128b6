"""The convolution in plain PyTorch: the definition that the registered ops are held against."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from gankernels.ops._convolution_arguments import Pair


def conv2d(
    x: Tensor,  # [N, C_in, H, W]
    weight: Tensor,  # [C_out, C_in / groups, KH, KW]
    bias: Tensor | None = None,  # [C_out]
    *,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:
    """``y[n, o, i, j] = bias[o] + sum over c, k, l of weight[o, c, k, l] x[n, c, s i + d k - p, s j + d l - p]``.

    s, d and p are stride, dilation and padding; c runs over the channels of o's group; x is zero outside.
    """
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
