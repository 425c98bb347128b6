from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def memory_format(x: Tensor) -> torch.memory_format:
    """The layout that an op keeps: channels_last where channels are innermost and that is not also contiguous.

    The same rule stands in ``csrc/torch/common.h``. Any other strides are copied to contiguous first.
    """
    channels_last = x.stride(1) == 1 and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


def empty_like(x: Tensor) -> Tensor:
    """What an op allocates for an output with x's shape and dtype: dense, in the layout of :func:`memory_format`."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


def is_dense(x: Tensor) -> bool:
    """Whether every number of x's memory belongs to x once: contiguous, but for the order of the dimensions."""
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def dense(x: Tensor) -> Tensor:
    """x, or a copy without holes in the order of x's strides: the layout of ``torch.empty_like(x)``."""
    return x if is_dense(x) else x.clone()


def alike(t: Tensor, like: Tensor) -> Tensor:
    """t in the layout of ``like``, which is dense; a copy where it is in another."""
    pairs = zip(t.stride(), like.stride(), t.shape, strict=True)
    if all(a == b for a, b, size in pairs if size != 1):
        return t
    return torch.empty_like(like).copy_(t)


def prefers_channels_last(x: Tensor) -> bool:
    """Whether x [N, C, H, W] votes for a channels_last output, as PyTorch's convolutions have it.

    Strides decide where the sizes leave it open: [N, 1, H, W] and [O, C, 1, 1] can be both.
    """
    _, channel, row, column = x.stride()
    return channel <= column and channel < row


def strides_4d(size: Sequence[int], channels_last: bool) -> tuple[int, int, int, int]:
    """The strides of a dense [N, C, H, W] in one of the two layouts."""
    _, c, h, w = size
    return (h * w * c, 1, w * c, c) if channels_last else (c * h * w, h * w, w, 1)
