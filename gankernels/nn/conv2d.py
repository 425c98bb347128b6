from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from gankernels.ops.conv2d import conv2d
from gankernels.ops.conv_transpose2d import conv_transpose2d


class Conv2d(nn.Conv2d):
    """:class:`torch.nn.Conv2d` on :func:`gankernels.ops.conv2d`: the same arguments, initial values and state.

    Every order of its derivatives is one library call for each operand, also where it is grouped, and
    :func:`gankernels.no_weight_gradients` holds for it.

    Shape:
        x [N, C_in, H, W] or [C_in, H, W], fp32, bf16, fp16 or fp64; the output is channels_last where x or weight is.

    Example:
        >>> layer = Conv2d(96, 96, 3, padding=1, groups=12).to(memory_format=torch.channels_last)
        >>> y = layer(torch.randn(8, 96, 16, 16))
    """

    def forward(self, input: Tensor) -> Tensor:
        """The convolution of input [N, C_in, H, W] or [C_in, H, W]."""
        return self._conv_forward(input, self.weight, self.bias)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return conv2d(
            input, weight, bias, stride=self.stride, padding=padding, dilation=self.dilation, groups=self.groups
        )


class ConvTranspose2d(nn.ConvTranspose2d):
    """:class:`torch.nn.ConvTranspose2d` and an activation, on :func:`gankernels.ops.conv_transpose2d`.

    Args:
        activation: as :func:`gankernels.ops.bias_act`'s; ``"none"`` is PyTorch's layer.
        slope: of ``"lrelu"`` below zero.
        others: as :class:`torch.nn.ConvTranspose2d`'s; so are the initial values and the state.

    Shape:
        x [N, C_in, H, W] or [C_in, H, W], fp32, bf16, fp16 or fp64; the output is channels_last where x or weight is.

    Example:
        >>> layer = ConvTranspose2d(128, 64, 4, stride=2, padding=1, activation="relu")
        >>> y = layer(torch.randn(8, 128, 8, 8))
    """

    def __init__(self, *args: Any, activation: str = "none", slope: float = 0.2, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activation = activation
        self.slope = slope

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """``act(conv_transpose2d(input))`` of input [N, C_in, H, W]; ``output_size`` [OH, OW] as in PyTorch's layer."""
        output_padding = self._output_padding(
            input,
            output_size,
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.kernel_size,  # type: ignore[arg-type]
            num_spatial_dims=2,
            dilation=self.dilation,  # type: ignore[arg-type]
        )
        return conv_transpose2d(
            input,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,  # type: ignore[arg-type]
            output_padding=output_padding,
            groups=self.groups,
            dilation=self.dilation,
            activation=self.activation,
            slope=self.slope,
        )

    def extra_repr(self) -> str:
        """PyTorch's, and the activation."""
        return super().extra_repr() + ("" if self.activation == "none" else f", activation={self.activation}")
