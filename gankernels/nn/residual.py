"""The residual blocks of SNGAN and BigGAN, on convolutions that take the resampling in.

Miyato et al., arXiv 1802.05957, appendix B; Brock et al., arXiv 1809.11096, appendix B.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from gankernels.nn.conv2d import Conv2d
from gankernels.nn.downsample_conv2d import DownsampleConv2d
from gankernels.nn.upsample_conv2d import UpsampleConv2d
from gankernels.ops.bias_act import bias_act

Wrap = Callable[[nn.Module], nn.Module]


def _itself(convolution: nn.Module) -> nn.Module:
    return convolution


class ResBlockUp(nn.Module):
    """A generator's residual block, which doubles the resolution.

    ``out = up(skip(x)) + conv2(norm2(conv1(up(norm1(x)))))``, with up for nearest x2.

    up and conv1 are one op, :func:`gankernels.ops.upsample_conv2d`, and the 1x1 skip runs on the small side. The bias
    of conv2 goes with the skip's, where there are a quarter of the pixels: it costs no pass of its own.

    Args:
        c_in, c_out: channels.
        norm: makes a norm of so many channels **with its activation**, such as ``lambda c: ConditionalBatchNorm2d(c,
            10, activation="relu")``. It is called with the block's further arguments.
        wrap: called once with each convolution when it is made, in the order conv1, conv2, skip; it may initialise it,
            and returns it, normalised perhaps: ``gankernels.nn.spectral_norm``. The skip is the one whose
            ``kernel_size`` is (1, 1).
        upsample: False keeps the resolution.
        c_hidden: channels between the two convolutions; None is c_out.

    Shape:
        x [N, c_in, H, W] -> [N, c_out, 2H, 2W] ([N, c_out, H, W] without ``upsample``), channels_last where x is.
        Differentiable as often as the norms are.

    State:
        norm1, conv1 (3x3), norm2, conv2 (3x3), skip (1x1; none where neither width nor resolution changes); the
        convolutions have weight and bias as torch's.

    Example:
        >>> block = ResBlockUp(256, 128, norm=lambda c: ConditionalBatchNorm2d(c, 10, activation="relu"))
        >>> y = block(torch.randn(8, 256, 16, 16), torch.arange(8))
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        *,
        norm: Callable[[int], nn.Module],
        wrap: Wrap = _itself,
        upsample: bool = True,
        c_hidden: int | None = None,
    ) -> None:
        super().__init__()
        c_hidden = c_out if c_hidden is None else c_hidden
        self.upsample = upsample
        self.norm1 = norm(c_in)
        self.conv1 = wrap(UpsampleConv2d(c_in, c_hidden) if upsample else _conv(c_in, c_hidden, 3))
        self.norm2 = norm(c_hidden)
        self.conv2 = wrap(_conv(c_hidden, c_out, 3))
        self.skip = wrap(_conv(c_in, c_out, 1)) if upsample or c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, *condition: Tensor) -> Tensor:
        """The block of x [N, c_in, H, W]; ``condition`` is what the norms take besides: labels [N], or vectors."""
        h = self.conv1(self.norm1(x, *condition))
        h = self.norm2(h, *condition)
        if isinstance(self.skip, nn.Identity):
            return self.conv2(h) + x
        skip = self.skip(x, and_bias=self.conv2.bias)
        h = self.conv2(h, with_bias=False)
        # In place: the up-sampled skip is saved by nobody, and a third tensor of this size would be the block's peak.
        return F.interpolate(skip, scale_factor=2.0, mode="nearest").add_(h) if self.upsample else h + skip


class ResBlockDown(nn.Module):
    """A discriminator's residual block, which halves the resolution.

    ``out = skip(pool(x)) + pool(conv2(relu(conv1(relu(x)))))``, with pool for a 2x2 mean.

    conv2 and pool are one op, :func:`gankernels.ops.conv2d_downsample`, and the 1x1 skip runs on the small side.
    conv1's bias comes with the ReLU behind it, and conv2's with the skip's.

    Args:
        c_in, c_out: channels.
        wrap: called once with each convolution when it is made, in the order conv1, conv2, skip; it may initialise it,
            and returns it, normalised perhaps: ``gankernels.nn.spectral_norm``. The skip is the one whose
            ``kernel_size`` is (1, 1).
        c_hidden: channels between the two convolutions; None is c_out.
        activate_input: False leaves out the first ReLU, for the block that sees the picture.
        downsample: False keeps the resolution.

    Shape:
        x [N, c_in, H, W] -> [N, c_out, H // 2, W // 2] ([N, c_out, H, W] without ``downsample``), channels_last where x
        is. Differentiable twice.

    State:
        conv1 (3x3), conv2 (3x3), skip (1x1; none where neither width nor resolution changes), with weight and bias as
        torch's.

    Example:
        >>> block = ResBlockDown(128, 256, wrap=gankernels.nn.spectral_norm)
        >>> y = block(torch.randn(8, 128, 32, 32))
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        *,
        wrap: Wrap = _itself,
        c_hidden: int | None = None,
        activate_input: bool = True,
        downsample: bool = True,
    ) -> None:
        super().__init__()
        c_hidden = c_out if c_hidden is None else c_hidden
        self.activate_input, self.downsample = activate_input, downsample
        self.conv1 = wrap(_conv(c_in, c_hidden, 3))
        self.conv2 = wrap(DownsampleConv2d(c_hidden, c_out) if downsample else _conv(c_hidden, c_out, 3))
        self.skip = wrap(_conv(c_in, c_out, 1)) if downsample or c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """The block of x [N, c_in, H, W]."""
        h = self.conv1(F.relu(x) if self.activate_input else x, with_bias=False)
        h = bias_act(h, self.conv1.bias, activation="relu")  # type: ignore[arg-type]
        if isinstance(self.skip, nn.Identity):
            return self.conv2(h) + x
        skip = self.skip(F.avg_pool2d(x, 2) if self.downsample else x, and_bias=self.conv2.bias)
        return self.conv2(h, with_bias=False) + skip


class _Conv2d(Conv2d):
    """A convolution whose bias may be left to another pass, or take another's along."""

    def forward(self, input: Tensor, *, with_bias: bool = True, and_bias: Tensor | None = None) -> Tensor:
        """``conv2d(input) + bias``, without bias, or with ``and_bias`` [C_out] added to it."""
        bias = self.bias if with_bias else None
        if and_bias is not None:
            bias = and_bias if bias is None else bias + and_bias
        return self._conv_forward(input, self.weight, bias)


def _conv(c_in: int, c_out: int, size: int) -> _Conv2d:
    return _Conv2d(c_in, c_out, size, padding=size // 2)
