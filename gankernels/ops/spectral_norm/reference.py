"""Spectral normalisation in plain PyTorch: the definition that every kernel is held against.

Miyato et al., arXiv 1802.05957, algorithm 1, with the meaning of ``torch.nn.utils.parametrizations.spectral_norm``.
"""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor


def matrix(weight: Tensor, dim: int) -> Tensor:
    """The weight as [h, w]: ``dim`` in front, all other dimensions behind it in their order."""
    return weight.movedim(dim, 0).flatten(1)


def spectral_norm(
    weight: Tensor,  # two dimensions or more
    u: Tensor,  # [h]
    v: Tensor,  # [w]
    *,
    dim: int = 0,
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``weight / (u^T W v)`` with u and v after the power iterations, computed in fp32 (fp64 for fp64).

    u and v are constants of the derivatives; without iterations they are used as they are.

    Returns:
        y, with the weight's shape and in ``out_dtype``; u [h], v [w] and sigma [], in fp32 (fp64 for fp64).
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    weight_ = weight.to(dtype)
    w = matrix(weight_, dim)
    u, v = u.detach().to(dtype, copy=True), v.detach().to(dtype, copy=True)
    # There is no autocast for the meta device, on which networks are built for their shapes alone.
    with contextlib.nullcontext() if weight.is_meta else torch.autocast(weight.device.type, enabled=False):
        with torch.no_grad():
            for _ in range(n_power_iterations):
                u = F.normalize(w @ v, dim=0, eps=eps)
                v = F.normalize(w.mT @ u, dim=0, eps=eps)
        sigma = u @ (w @ v)
    return (weight_ / sigma).to(out_dtype or weight.dtype), u, v, sigma


def largest_singular_values(w: Tensor, v: Tensor, k: int) -> Tensor:
    """Estimates from below of the k largest singular values of w [h, w], begun at v [w].

    Subspace iteration: Halko, Martinsson and Tropp, arXiv 0909.4061, algorithm 4.4.
    """
    size = min(k + 4, *w.shape)
    # A generator of its own: telemetry must not move a training run's random numbers.
    start = torch.randn(w.shape[1], size, generator=torch.Generator().manual_seed(0), dtype=w.dtype).to(w.device)
    start[:, 0] = v
    q = torch.linalg.qr(w @ start).Q
    for _ in range(8):
        q = torch.linalg.qr(w @ torch.linalg.qr(w.mT @ q).Q).Q
    return torch.linalg.svdvals(q.mT @ w)[:k]
