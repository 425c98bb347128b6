"""The transposed convolution by PyTorch's library: one call, and one pass for bias and activation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gankernels.ops._convolution import convolution
from gankernels.ops.bias_act import bias_act


def conv_transpose2d(
    x: Tensor,  # [N, C_in, H, W]
    weight: Tensor,  # [C_in, C_out / groups, KH, KW]
    bias: Tensor | None,  # [C_out]
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    dilation: Sequence[int],
    *,
    activation: str,
    slope: float,
) -> Tensor:
    """``act(conv_transpose2d(x, weight) + bias)``; the library adds the bias where no activation follows."""
    y = convolution(
        x,
        weight,
        bias if activation == "none" else None,
        stride=stride,
        padding=padding,
        dilation=dilation,
        transposed=True,
        output_padding=output_padding,
        groups=groups,
    )
    return y if activation == "none" else bias_act(y, bias, activation=activation, slope=slope)
