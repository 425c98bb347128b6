"""What the layers with a resampling beside their convolution share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class ResampledConv2d(nn.Conv2d):
    """A convolution's parameters, with the padding of the op, which may differ from side to side, and an activation."""

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

    def extra_repr(self) -> str:
        """The sizes, the padding and the activation."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size[0]}, padding={self.padding}, "
            f"bias={self.bias is not None}, activation={self.activation}"
        )
