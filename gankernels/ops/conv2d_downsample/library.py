"""A convolution and a 2x2 mean by the library's convolutions, on the routes of ``op.route``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from gankernels.ops._box_filter import box_mean
from gankernels.ops._convolution import convolution
from gankernels.ops._resampled_convolution import Call
from gankernels.ops._saved import saved_as
from gankernels.ops.fold_conv_weight.kept import folded_weight


def folded(call: Call) -> Tensor:
    """One convolution of stride 2 with the same padding. It stops where the mean does, at a last odd row."""
    x, padding = _padded(call)
    weight = folded_weight(call.weight, "down", call.channels_last)
    return call.activated(convolution(x, weight, call.convolution_bias(), stride=(2, 2), padding=padding))


def boxed(call: Call) -> Tensor:
    """The mean before the convolution, at every pixel, and the convolution at every other one."""
    x, (rows, columns) = _padded(call)
    if not (rows and columns):
        x, rows, columns = F.pad(x, (columns, columns, rows, rows)) if rows or columns else x, 0, 0
    full = rows > 0
    means = box_mean(x, full=full)
    padding = (max(rows - 1, 0), max(columns - 1, 0))
    # x is in memory for another backward, of the activation that it came from.
    with saved_as(means, x, lambda x: box_mean(x, full=full), wanted_for=1):
        y = convolution(means, call.weight, call.convolution_bias(), stride=(2, 2), padding=padding)
    return call.activated(y)


def small_side(call: Call) -> Tensor:
    """A 1x1 convolution of a mean is the mean of the 1x1 convolutions."""
    return call.activated(convolution(F.avg_pool2d(call.x, 2), call.weight, call.convolution_bias()))


def plain(call: Call) -> Tensor:
    """The two steps of the definition."""
    x, padding = _padded(call)
    return call.activated(F.avg_pool2d(convolution(x, call.weight, call.convolution_bias(), padding=padding), 2))


def _padded(call: Call) -> tuple[Tensor, tuple[int, int]]:
    """x, and the padding (height, width) that the library adds. Where two ends differ, x is padded in a copy."""
    left, right, top, bottom = call.padding
    if (left, top) != (right, bottom):
        return F.pad(call.x, call.padding), (0, 0)
    return call.x, (top, left)
