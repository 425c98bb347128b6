"""Conditional batch normalisation in plain PyTorch: the definition that every kernel is held against.

Ioffe and Szegedy, arXiv 1502.03167, algorithm 1, with the per-sample gain and bias of Dumoulin et al.,
arXiv 1610.07629, equation 5, and an activation behind it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gankernels.ops._collectives import all_reduce_sum

#: Activations by name. At zero both take the derivative that PyTorch takes: that of the negative side.
ACTIVATIONS = ("none", "relu", "lrelu")


def activate(z: Tensor, activation: str, slope: float) -> Tensor:
    if activation == "relu":
        return F.relu(z)
    return F.leaky_relu(z, slope) if activation == "lrelu" else z


def conditional_batch_norm(
    x: Tensor,  # [N, C, H, W]
    gain: Tensor,  # [N, C]; with labels [classes, C]
    bias: Tensor,  # [N, C]; with labels [classes, C]
    mean: Tensor | None = None,  # [C]
    var: Tensor | None = None,  # [C]
    *,
    labels: Tensor | None = None,  # [N]
    eps: float = 1e-5,
    activation: str = "none",
    slope: float = 0.2,
    per_sample: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """``act((x - mean) / sqrt(var + eps) * gain + bias)``, computed in fp32 (fp64 for fp64).

    Without ``mean`` and ``var`` (biased) they are taken over N, H and W, with ``per_sample`` over H and W, and are
    differentiated through. With ``labels`` gain and bias are tables, of which sample n has row ``labels[n]``.

    Returns:
        y [N, C, H, W] in x's dtype, and the mean and variance that were used, [C] or with ``per_sample`` [N, C], in
        fp32 (fp64 for fp64).
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    x_ = x.to(dtype)
    if labels is not None:
        gain, bias = gain[labels], bias[labels]
    if mean is None or var is None:
        over = (2, 3) if per_sample else (0, 2, 3)
        mean = x_.mean(over)
        var = (x_ - mean[..., None, None]).square().mean(over)
    mean, var = mean.to(dtype), var.to(dtype)
    x_hat = (x_ - mean[..., None, None]) * (var + eps).rsqrt()[..., None, None]
    z = x_hat * gain.to(dtype)[:, :, None, None] + bias.to(dtype)[:, :, None, None]
    return activate(z, activation, slope).to(x.dtype), mean, var


def statistics(x: Tensor, group: str) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance [C] of x [N, C, H, W] over the samples of all ranks of ``group``, and the number of
    pixels of a channel in them, fp64. Differentiable to every order."""
    x_ = x.to(torch.promote_types(x.dtype, torch.float32))
    n, _, h, w = x.shape
    count = all_reduce_sum(x_.new_tensor(n * h * w, dtype=torch.float64), group)
    mean = (all_reduce_sum(x_.sum((0, 2, 3), dtype=torch.float64), group) / count).to(x_.dtype)
    squares = (x_ - mean[:, None, None]).square().sum((0, 2, 3), dtype=torch.float64)
    return mean, (all_reduce_sum(squares, group) / count).to(x_.dtype), count
