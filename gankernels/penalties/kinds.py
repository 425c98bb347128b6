"""The penalties as functions of the input gradient and of its norm, and where each of them takes it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gankernels.errors import InputError

#: What the norm is drawn to; or a function of the detached norms [N], for one that follows them.
Target = float | Callable[[Tensor], Tensor]


def _square(g: Tensor, target: Target) -> Tensor:
    """``|g|^2 / 2``. Mescheder et al., arXiv 1801.04406, equations 9 (R1) and 10 (R2), without their gamma."""
    return g.square().sum(1) / 2


def _two_sided(g: Tensor, target: Target) -> Tensor:
    """``(|g| - target)^2``. Gulrajani et al., arXiv 1704.00028, equation 3; Kodali et al., 1705.07215, for DRAGAN."""
    return _beyond(g, target).square()


def _one_sided(g: Tensor, target: Target) -> Tensor:
    """``max(0, |g| - target)^2``. Petzka et al., arXiv 1709.08894, equation 8."""
    return _beyond(g, target).relu().square()


def _beyond(g: Tensor, target: Target) -> Tensor:
    # torch's subgradient of the norm at g = 0 is 0: no epsilon, and no NaN
    norms = torch.linalg.vector_norm(g, dim=1)
    return norms - (target(norms.detach()) if callable(target) else target)


_FORMULAS: dict[str, Callable[[Tensor, Target], Tensor]] = {
    "r1": _square,
    "r2": _square,
    "wgan-gp": _two_sided,
    "wgan-lp": _one_sided,
    "dragan": _two_sided,
}

#: The names of the penalties.
KINDS = tuple(_FORMULAS)


def values(kind: str, g: Tensor, target: Target) -> Tensor:
    """P(g_i) [N] of input gradients g [N, ...], in fp32 (fp64 for fp64); differentiable in g."""
    g = g.flatten(1) if g.dim() > 1 else g.unsqueeze(1)
    return _FORMULAS[kind](g.to(torch.promote_types(g.dtype, torch.float32)), target)


def of_norms(kind: str, norms: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    """P(g_i) [N], and k [N] with ``dP/dg_i = k_i g_i``, of the norms ``|g_i|`` [N]: every P is a function of these."""
    if kind in ("r1", "r2"):
        return norms.square() / 2, torch.ones_like(norms)
    beyond = norms - (target(norms) if callable(target) else target)
    if kind == "wgan-lp":
        beyond = beyond.relu()
    # d(|g| - target)^2 / dg = 2 (|g| - target) g / |g|, and 0 at g = 0
    return beyond.square(), torch.where(norms > 0, 2 * beyond / norms, 0)


def points(kind: str, real: Tensor, fake: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """Where a penalty takes the gradient: pictures [N, ...], detached.

    ``r1`` at the real pictures and ``r2`` at the generated ones; ``wgan-gp`` and ``wgan-lp`` at
    ``alpha x + (1 - alpha) G(z)`` with alpha uniform in [0, 1) for each pair (1704.00028, algorithm 1); ``dragan`` at
    ``x + noise``, normal (1705.07215, section 2.3) with half the standard deviation of all of ``real``.
    """
    if kind == "r1":
        return real.detach()
    if kind == "dragan":
        noise = torch.randn(real.shape, generator=generator, device=real.device, dtype=real.dtype)
        return real.detach() + 0.5 * real.detach().std() * noise
    if fake is None:
        raise InputError(f"fake: got None, expected generated pictures for {kind}")
    if kind == "r2":
        return fake.detach()
    if fake.shape != real.shape:
        raise InputError(f"fake: got shape {tuple(fake.shape)}, expected {tuple(real.shape)}, that of real")
    shape = (real.shape[0], *[1] * (real.dim() - 1))
    alpha = torch.rand(shape, generator=generator, device=real.device, dtype=real.dtype)
    return torch.lerp(fake.detach(), real.detach(), alpha)
