"""The transposed convolution and its activation in plain PyTorch: the definition that every kernel is held against."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from gankernels.ops._convolution_arguments import Pair
from gankernels.ops.bias_act import reference


def conv_transpose2d(
    x: Tensor,  # [N, C_in, H, W]
    weight: Tensor,  # [C_in, C_out / groups, KH, KW]
    bias: Tensor | None = None,  # [C_out]
    stride: Pair = 1,
    padding: Pair = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
    *,
    activation: str = "none",
    slope: float = 0.2,
) -> Tensor:
    """``act(conv_transpose2d(x, weight) + bias)``; bias and activation in fp32 (fp64 for fp64)."""
    if activation == "none":
        return F.conv_transpose2d(x, weight, bias, stride, padding, output_padding, groups, dilation)
    y = F.conv_transpose2d(x, weight, None, stride, padding, output_padding, groups, dilation)
    return reference.bias_act(y, bias, activation=activation, slope=slope, dim=y.dim() - 3)
