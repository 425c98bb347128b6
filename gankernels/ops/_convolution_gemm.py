"""Dense convolutions as matrix products, for a CPU, and when that is the faster way.

A convolution and a transposed one are the same three maps between two pictures: ``big``, over which the kernel slides
(a convolution's input, a transposed one's output), and ``small``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

#: Columns that are in memory at a time.
_BLOCK_BYTES = 8 << 20

#: Where oneDNN's weight gradient in channels_last was measured to be slow. For AVX-512 it has others, not measured.
_HAS_SLOW_WEIGHT_GRADIENT = "AVX512" not in torch.backends.cpu.get_cpu_capability()


def is_faster(
    what: str,
    weight_size: Sequence[int],
    small_size: Sequence[int],
    big_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    channels_last: bool,
) -> bool:
    """The rule, from measurements that ``docs/ops/conv2d.md`` names.

    Weight gradients that ``csrc/torch/convolution_weight_gradient.cpp`` makes do not come here.

    A product's own cost is a copy of the pixels, once for each tap: it pays with many channels, and where a picture or
    the kernel is a single pixel there is none. With a large weight oneDNN takes time for every number of it, whatever
    the batch, and without AVX-512 its weight gradient is slow in channels_last.

    Args:
        what: ``"small"``, ``"big"`` or ``"weight"``: the result.
        weight_size: [C, C', KH, KW], with C the channels of ``small`` and C' those of ``big``.
        small_size: [N, C, H, W].
        big_size: [N, C', H', W'].
        stride: of the kernel on ``big``.
        padding: of ``big``.
        channels_last: the operands' layout.
    """
    if is_single(weight_size, small_size, big_size, padding):
        return True
    channels, numbers = weight_size[0], math.prod(weight_size)
    pixels = small_size[0] * small_size[2] * small_size[3]
    pointwise = is_pointwise(weight_size, small_size, big_size, padding)
    if what == "big":
        least, share = (22, 1) if min(stride) > 1 else (24, 4)
        return channels_last and (pointwise or (numbers >= 1 << least and share * pixels <= channels))
    if what == "small":
        least, share = (22, 4) if min(stride) > 1 else (23, 3)
        many = pointwise and weight_size[1] > 256
        return channels_last and (many or (numbers >= 1 << least and share * pixels <= channels))
    if numbers >= 1 << (22 if channels_last else 23) and pixels <= 2 * channels:
        return True
    if not (_HAS_SLOW_WEIGHT_GRADIENT and channels_last):
        return False
    least = 192 if pointwise or big_size[3] >= 128 else 256
    return channels >= least and weight_size[1] >= 32 and pixels >= 64


def is_single(
    weight_size: Sequence[int], small_size: Sequence[int], big_size: Sequence[int], padding: Sequence[int]
) -> bool:
    """Whether ``small`` is one pixel and the kernel lies on ``big`` once: a linear layer."""
    return small_size[2] == small_size[3] == 1 and tuple(big_size[2:]) == tuple(weight_size[2:]) and not any(padding)


def is_pointwise(
    weight_size: Sequence[int], small_size: Sequence[int], big_size: Sequence[int], padding: Sequence[int]
) -> bool:
    """Whether each pixel of one picture meets one of the other."""
    return max(weight_size[2:]) == 1 and tuple(small_size[2:]) == tuple(big_size[2:]) and not any(padding)


def small(
    big: Tensor,  # [N, C', H', W']
    weight: Tensor,  # [C, C', KH, KW]
    bias: Tensor | None,  # [C]
    size: Sequence[int],  # N, C, H, W
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    *,
    channels_last: bool,
) -> Tensor:
    """bias[c] + sum over c', k, l of weight[c, c', k, l] big[n, c', s i + d k - p, s j + d l - p], [N, C, H, W].

    The result is channels_last. ``channels_last`` says it of big and weight. Memory: ``big`` padded, and once for each
    tap, but for :func:`is_single`.
    """
    n, channels, height, width = size
    columns = _columns(_padded(big, padding), (height, width), weight.shape[2:], stride, dilation, channels_last)
    matrix = _matrix(weight, channels_last).t()
    y = columns @ matrix if bias is None else torch.addmm(bias, columns, matrix)
    return y.view(n, height, width, channels).permute(0, 3, 1, 2)


def big(
    small: Tensor,  # [N, C, H, W]
    weight: Tensor,  # [C, C', KH, KW]
    bias: Tensor | None,  # [C']
    size: Sequence[int],  # N, C', H', W'
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    *,
    channels_last: bool,
) -> Tensor:
    """bias[c'] + the sum over c and all (i, k), (j, l) that meet the pixel of weight[c, c', k, l] small[n, c, i, j].

    Like :func:`small`'s, i and k meet at s i + d k - p. The result is [N, C', H', W'] in the layout of the operands,
    which ``channels_last`` says; a contiguous one is for :func:`is_single`. Memory: the result once for each tap, but
    for :func:`is_single` and :func:`is_pointwise`.
    """
    n, _, height, width = small.shape
    _, channels, *taps = weight.shape
    sizes = weight.shape, small.shape, size, padding
    columns = small.permute(0, 2, 3, 1).reshape(-1, small.shape[1]) @ _matrix(weight, channels_last)
    if not channels_last:
        y = columns.view(n, channels, *taps)
    elif is_pointwise(*sizes) or is_single(*sizes):
        y = columns.view(n, height * taps[0], width * taps[1], channels).permute(0, 3, 1, 2)
    else:
        y = _summed(columns.view(n, height, width, *taps, channels), size, stride, padding, dilation)
    return y if bias is None else y.add_(bias[:, None, None])


def _summed(
    columns: Tensor,  # [N, H, W, KH, KW, C']
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """The transpose of :func:`_columns`: each pixel's sum over the taps that meet it, channels_last."""
    n, height, width, *taps, channels = columns.shape
    (bottom, right), (top, left) = size[2:], padding
    # 16 bits would be rounded once a tap.
    full = torch.promote_types(columns.dtype, torch.float32)
    padded = columns.new_zeros(n, bottom + 2 * top, right + 2 * left, channels, dtype=full)
    for k, row in enumerate(range(0, dilation[0] * taps[0], dilation[0])):
        rows = slice(row, row + stride[0] * (height - 1) + 1, stride[0])
        for tap, column in enumerate(range(0, dilation[1] * taps[1], dilation[1])):
            padded[:, rows, column : column + stride[1] * (width - 1) + 1 : stride[1]] += columns[:, :, :, k, tap]
    y = padded[:, top : top + bottom, left : left + right]
    return y.to(columns.dtype).contiguous().permute(0, 3, 1, 2)


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

    Its memory is in the order that ``channels_last`` says. Memory besides: ``big`` padded, and 8 MiB.
    """
    channels, per_pixel = small.shape[1], math.prod(taps) * big.shape[1]
    padded = _padded(big, padding)
    dw = small.new_empty(channels, per_pixel)
    added = 0.0
    for samples, rows in _blocks(small.shape, per_pixel * small.element_size()):
        block = small[samples, :, rows]
        seen = padded[samples, :, rows.start * stride[0] :]
        columns = _columns(seen, block.shape[2:], taps, stride, dilation, channels_last)
        dw.addmm_(block.permute(1, 0, 2, 3).reshape(channels, -1), columns, beta=added)
        added = 1.0
    if channels_last:
        return dw.view(channels, *taps, big.shape[1]).permute(0, 3, 1, 2)
    return dw.view(channels, big.shape[1], *taps)


def _blocks(size: Sequence[int], pixel_bytes: int) -> Iterator[tuple[slice, slice]]:
    """Samples and rows of ``small``, in pieces whose columns stay in the cache: whole samples, or rows of one."""
    n, _, height, width = size
    rows = max(1, _BLOCK_BYTES // (pixel_bytes * width))
    if rows >= height:
        samples = rows // height
        for first in range(0, n, samples):
            yield slice(first, first + samples), slice(0, height)
        return
    for sample in range(n):
        for first in range(0, height, rows):
            yield slice(sample, sample + 1), slice(first, first + rows)


def _matrix(weight: Tensor, channels_last: bool) -> Tensor:
    """[C, KH KW C'] or [C, C' KH KW]: the weight as its memory has it."""
    return (weight.permute(0, 2, 3, 1) if channels_last else weight).reshape(weight.shape[0], -1)


def _padded(big: Tensor, padding: Sequence[int]) -> Tensor:
    return F.pad(big, (padding[1], padding[1], padding[0], padding[0])) if any(padding) else big


def _columns(
    padded: Tensor,  # [N, C', H', W']
    size: Sequence[int],  # H, W
    taps: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    channels_last: bool,
) -> Tensor:
    """What each pixel of ``small`` sees: [N H W, KH KW C'], or [N H W, C' KH KW], as the weight's memory has it."""
    to_sample, to_channel, to_row, to_column = padded.stride()
    steps = [to_sample, to_row * stride[0], to_column * stride[1], to_row * dilation[0], to_column * dilation[1]]
    sizes = [padded.shape[0], *size, *taps]
    channel_at = 5 if channels_last else 3
    sizes.insert(channel_at, padded.shape[1])
    steps.insert(channel_at, to_channel)
    return padded.as_strided(sizes, steps, padded.storage_offset()).reshape(math.prod(sizes[:3]), -1)
