from __future__ import annotations

from torch import Tensor

from gankernels.nn._resampled_conv2d import ResampledConv2d
from gankernels.ops.upsample_conv2d import upsample_conv2d


class UpsampleConv2d(ResampledConv2d):
    """Nearest x2, then :class:`torch.nn.Conv2d` and an activation, on :func:`gankernels.ops.upsample_conv2d`.

    Parameters, their names, shapes and initial values are those of the convolution: a checkpoint of
    ``nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(...))`` fits, and spectral norm acts on the weight as it is,
    before it is folded. The fold is made at every call, so that no change of the weight can be missed; where a
    :class:`SpectralNormGroup` serves the weight, once for all forwards that it serves.

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
