"""Convolutions with a large weight and few pixels as one matrix product, for a CPU, and when that is the faster way.

A convolution and a transposed one are the same three maps between two pictures: ``big``, over which the kernel slides
(a convolution's input, a transposed one's output), and ``small``. Here are the two that need no scattered sums.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

#: Numbers of a weight from which on a product pays, by whether the operands are channels_last.
_LARGE = {True: 1 << 22, False: 1 << 23}


def is_faster(
    what: str,
    device: str,
    groups: int,
    weight_size: Sequence[int],
    pixels: int,
    stride: Sequence[int],
    channels_last: bool,
) -> bool:
    """The rule, from measurements that ``docs/ops/conv2d.md`` names: the weight is large and the pixels few.

    oneDNN takes time for every number of the weight, whatever the batch; the product's own cost is a copy of the
    pixels, once for each tap.

    Args:
        what: ``"small"`` or ``"weight"``, the function of this module that is asked for.
        device: the device type.
        groups: of the convolution.
        weight_size: [C, C', KH, KW], with C the channels of ``small`` and C' those of ``big``.
        pixels: of ``small``, over the batch.
        stride: of the kernel on ``big``.
        channels_last: the operands' layout.
    """
    if device != "cpu" or groups != 1 or math.prod(weight_size) < _LARGE[channels_last]:
        return False
    if what == "weight":
        return pixels <= 2 * weight_size[0]
    return channels_last and min(stride) > 1 and 4 * pixels <= weight_size[0]


def small(
    big: Tensor,  # [N, C', H', W']
    weight: Tensor,  # [C, C', KH, KW]
    bias: Tensor | None,  # [C]
    size: Sequence[int],  # N, C, H, W
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """bias[c] + sum over c', k, l of weight[c, c', k, l] big[n, c', s i + d k - p, s j + d l - p], [N, C, H, W].

    big and weight are channels_last, and so is the result. Memory: ``big`` padded, and once for each tap.
    """
    n, channels, height, width = size
    columns = _columns(big, (height, width), weight.shape[2:], stride, padding, dilation, channels_last=True)
    matrix = weight.permute(2, 3, 1, 0).reshape(-1, channels)
    y = columns @ matrix if bias is None else torch.addmm(bias, columns, matrix)
    return y.view(n, height, width, channels).permute(0, 3, 1, 2)


def weight_gradient(
    small: Tensor,  # [N, C, H, W]
    big: Tensor,  # [N, C', H', W']
    taps: Sequence[int],  # KH, KW
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    *,
    channels_last: bool,
) -> Tensor:
    """dw[c, c', k, l] = sum over n, i, j of small[n, c, i, j] big[n, c', s i + d k - p, s j + d l - p].

    Its memory is in the order that ``channels_last`` says. Memory besides: as :func:`small`.
    """
    columns = _columns(big, small.shape[2:], taps, stride, padding, dilation, channels_last)
    dw = small.permute(1, 0, 2, 3).reshape(small.shape[1], -1) @ columns
    if channels_last:
        return dw.view(small.shape[1], *taps, big.shape[1]).permute(0, 3, 1, 2)
    return dw.view(small.shape[1], big.shape[1], *taps)


def _columns(
    big: Tensor,
    size: Sequence[int],
    taps: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    channels_last: bool,
) -> Tensor:
    """What each pixel of ``small`` sees: [N H W, KH KW C'], or [N H W, C' KH KW], as the weight's memory has it."""
    padded = F.pad(big, (padding[1], padding[1], padding[0], padding[0]))
    to_sample, to_channel, to_row, to_column = padded.stride()
    steps = [to_sample, to_row * stride[0], to_column * stride[1], to_row * dilation[0], to_column * dilation[1]]
    sizes = [big.shape[0], *size, *taps]
    channel_at = 5 if channels_last else 3
    sizes.insert(channel_at, big.shape[1])
    steps.insert(channel_at, to_channel)
    return padded.as_strided(sizes, steps).reshape(math.prod(sizes[:3]), -1)
