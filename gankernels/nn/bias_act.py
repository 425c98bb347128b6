from __future__ import annotations

import torch
from torch import Tensor, nn

from gankernels.ops.bias_act import bias_act


class BiasAct(nn.Module):
    """A learned bias for each channel, an activation, a gain and a clamp in one pass: what stands behind a convolution.

    ``y = clamp(act(x + bias) * gain, -clamp, clamp)``

    Give the layer in front of it ``bias=False``, which saves a pass over its output.

    Args:
        num_channels: C, the size of dimension ``dim`` of the input.
        activation: as :func:`gankernels.ops.bias_act`'s.
        slope: of ``"lrelu"`` below zero.
        gain: multiplies the activation.
        clamp: the largest magnitude of the output, or None.
        dim: the dimension of the channels.

    Shape:
        x with ``x.shape[dim] == num_channels``, of any number of dimensions, fp32, bf16, fp16 or fp64; the output has
        x's shape, dtype and layout. Differentiable twice.

    State:
        bias [C], zeros at first.

    Example:
        >>> layer = nn.Sequential(nn.Conv2d(3, 64, 3, bias=False), gankernels.nn.BiasAct(64, activation="lrelu"))
        >>> y = layer(torch.randn(8, 3, 32, 32))
    """

    def __init__(
        self,
        num_channels: int,
        *,
        activation: str = "lrelu",
        slope: float = 0.2,
        gain: float = 1.0,
        clamp: float | None = None,
        dim: int = 1,
    ) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.activation = activation
        self.slope = slope
        self.gain = gain
        self.clamp = clamp
        self.dim = dim
        self.bias = nn.Parameter(torch.empty(num_channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A bias of zero."""
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``clamp(act(x + bias) * gain)`` of x [..., C, ...]."""
        return bias_act(
            x,
            self.bias,
            activation=self.activation,
            slope=self.slope,
            gain=self.gain,
            clamp=self.clamp,
            dim=self.dim,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.num_channels}, activation={self.activation}, gain={self.gain}, clamp={self.clamp}, dim={self.dim}"
        )
