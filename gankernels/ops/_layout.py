from __future__ import annotations

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
