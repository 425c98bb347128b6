from __future__ import annotations

from torch import Tensor

from gankernels.nn._resampled_conv2d import ResampledConv2d
from gankernels.ops.conv2d_downsample import conv2d_downsample


class DownsampleConv2d(ResampledConv2d):
    """:class:`torch.nn.Conv2d`, a 2x2 mean and an activation, on :func:`gankernels.ops.conv2d_downsample`.

    Parameters, their names, shapes and initial values are those of the convolution: a checkpoint of
    ``nn.Sequential(nn.Conv2d(...), nn.AvgPool2d(2))`` fits, and spectral norm acts on the weight as it is, before it is
    folded. The fold is made at every call, so that no change of the weight can be missed; where a
    :class:`SpectralNormGroup` serves the weight, once for all forwards that it serves.

    Args:
        in_channels, out_channels, kernel_size, bias, device, dtype: as torch's.
        padding: around x, as the op's; None keeps its size until the mean: (kernel_size - 1) / 2.
        activation: behind the mean, as :func:`gankernels.ops.bias_act`'s, ``"none"`` for none.
        slope: of ``"lrelu"`` below zero.

    Shape:
        x [N, in_channels, H, W], fp32, bf16, fp16 or fp64; the output [N, out_channels, H // 2, W // 2] (with that
        padding) is channels_last where x or weight is.

    Example:
        >>> layer = DownsampleConv2d(128, 256).to(memory_format=torch.channels_last)
        >>> y = layer(torch.randn(8, 128, 32, 32))
    """

    def forward(self, input: Tensor, *, with_bias: bool = True) -> Tensor:
        """``act(avg_pool2d(conv2d(input), 2))`` of input [N, in_channels, H, W]; the caller may add bias itself."""
        return conv2d_downsample(
            input,
            self.weight,
            self.bias if with_bias else None,
            padding=self.padding,  # type: ignore[arg-type]
            activation=self.activation,
            slope=self.slope,
        )
