"""Bias, activation, gain and clamp in plain PyTorch: the definition that every kernel is held against."""

from __future__ import annotations

import torch
from torch import Tensor

from gankernels.ops._activation import activate


def bias_act(
    x: Tensor,  # [..., C, ...]
    bias: Tensor | None = None,  # [C]
    *,
    activation: str = "lrelu",
    slope: float = 0.2,
    gain: float = 1.0,
    clamp: float | None = None,
    dim: int = 1,
) -> Tensor:
    """``clamp(act(x + bias) * gain, -clamp, clamp)``, computed in fp32 (fp64 for fp64), in x's dtype."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    z = x.to(dtype)
    if bias is not None:
        z = z + bias.to(dtype).reshape([-1 if d == dim else 1 for d in range(x.dim())])
    y = activate(z, activation, slope) * gain
    if clamp is not None:
        y = y.clamp(-clamp, clamp)
    return y.to(x.dtype)
