from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gankernels.ops.upsample_conv2d import upsample_conv2d


class UpsampleConv2d(nn.Conv2d):
    """Nearest x2, then :class:`torch.nn.Conv2d` and an activation, on :func:`gankernels.ops.upsample_conv2d`.

    Parameters, their names, shapes and initial values are those of the convolution: a checkpoint of
    ``nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(...))`` fits, and spectral norm acts on the weight as it is,
    before it is folded. The fold is made at every call: no change of the weight can be missed.

    Args:
        in_channels, out_channels, kernel_size, bias, device, dtype: as torch's.
        padding: around the up-sampled picture, as the op's; None keeps its size: (kernel_size - 1) / 2.
        activation: as :func:`gankernels.ops.bias_act`'s, ``"none"`` for none.
        slope: of ``"lrelu"`` below zero.

    Shape:
        x [N, in_channels, H, W], fp32, bf16, fp16 or fp64; the output [N, out_channels, 2H, 2W] (with that padding) is
        channels_last where x or weight is.

    Example:
        >>> layer = UpsampleConv2d(256, 128, activation="relu").to(memory_format=torch.channels_last)
        >>> y = layer(torch.randn(8, 256, 16, 16))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        padding: int | Sequence[int] | None = None,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "none",
        slope: float = 0.2,
    ) -> None:
        zeros = (kernel_size - 1) // 2 if padding is None else padding
        super().__init__(in_channels, out_channels, kernel_size, bias=bias, device=device, dtype=dtype)
        self.padding = zeros  # type: ignore[assignment]
        self.activation = activation
        self.slope = slope

    def forward(self, input: Tensor) -> Tensor:
        """``act(conv2d(nearest_x2(input)))`` of input [N, in_channels, H, W]."""
        return upsample_conv2d(
            input,
            self.weight,
            self.bias,
            padding=self.padding,  # type: ignore[arg-type]
            activation=self.activation,
            slope=self.slope,
        )

    def extra_repr(self) -> str:
        """The sizes, the padding and the activation."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size[0]}, padding={self.padding}, "
            f"bias={self.bias is not None}, activation={self.activation}"
        )
