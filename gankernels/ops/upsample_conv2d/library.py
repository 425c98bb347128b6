"""Nearest x2 and a convolution by the library's convolutions, on the routes of ``op.route``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gankernels.ops._box_filter import box_sum
from gankernels.ops._convolution import convolution
from gankernels.ops._resampled_convolution import Call
from gankernels.ops.fold_conv_weight.kept import folded_weight, transposed_weight


def folded(call: Call) -> Tensor:
    """One transposed convolution of stride 2 and padding K - 1 - p, which crops what a smaller p leaves out."""
    rows, columns = _cropped(call)
    y = convolution(
        call.x,
        folded_weight(call.weight, "up", call.channels_last),
        call.convolution_bias(),
        stride=(2, 2),
        padding=(rows, columns),
        transposed=True,
    )
    return call.activated(_rest_cropped(call, y))


def boxed(call: Call) -> Tensor:
    """Nearest x2 is zeros between the pixels and a box of 2x2, which commutes with the convolution."""
    rows, columns = _cropped(call)
    weight = transposed_weight(call.weight, call.channels_last)
    y = box_sum(convolution(call.x, weight, stride=(2, 2), padding=(rows - 1, columns - 1), transposed=True))
    bias = call.convolution_bias()
    if bias is not None:
        # Not before the sum: its gradient would be one of sums.
        y = y.add_(bias[:, None, None])
    return call.activated(_rest_cropped(call, y))


def _cropped(call: Call) -> tuple[int, int]:
    """Rows and columns that a transposed convolution with the fold crops at both ends."""
    left, right, top, bottom = (call.weight.shape[2] - 1 - p for p in call.padding)
    return min(top, bottom), min(left, right)


def _rest_cropped(call: Call, y: Tensor) -> Tensor:
    """A transposed convolution crops both ends alike; the rest of the longer one is cut here."""
    left, right, top, bottom = (call.weight.shape[2] - 1 - p for p in call.padding)
    if (left, top) == (right, bottom):
        return y
    rows, columns = _cropped(call)
    y = y[:, :, top - rows : y.shape[2] - (bottom - rows), left - columns : y.shape[3] - (right - columns)]
    return y.contiguous(memory_format=torch.channels_last if call.channels_last else torch.contiguous_format)


def small_side(call: Call) -> Tensor:
    """A 1x1 convolution and an activation give four equal pixels the same: they run before there are four."""
    return _upsampled(call.activated(convolution(call.x, call.weight, call.convolution_bias())))


def plain(call: Call) -> Tensor:
    """The two steps of the definition."""
    left, right, top, bottom = call.padding
    up = _upsampled(call.x)
    if (left, top) != (right, bottom):
        up, left, top = F.pad(up, call.padding), 0, 0
    return call.activated(convolution(up, call.weight, call.convolution_bias(), padding=(top, left)))


def _upsampled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
