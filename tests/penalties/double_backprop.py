"""Plain double backprop, written out: what the penalties are held against. Nothing of gankernels.penalties is used."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def of_gradient(kind: str, g: Tensor, target: float = 1.0) -> Tensor:
    """P(g_i) [N]."""
    if kind in ("r1", "r2"):
        return g.flatten(1).square().sum(1) / 2
    norm = torch.linalg.vector_norm(g.flatten(1), dim=1)  # torch's gradient of it at 0 is 0
    return torch.clamp(norm - target, min=0) ** 2 if kind == "wgan-lp" else (norm - target) ** 2


def penalty(
    discriminator: nn.Module, x: Tensor, y: Tensor | None = None, *, kind: str = "r1", target: float = 1.0
) -> Tensor:
    """The mean penalty at ``x``, differentiable."""
    x = x.detach().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        output = discriminator(x) if y is None else discriminator(x, y)
    heads = output if isinstance(output, (tuple, list)) else [output]
    total = torch.stack([head.sum() for head in heads]).sum()
    (g,) = torch.autograd.grad(total, x, create_graph=True)
    return of_gradient(kind, g.to(torch.promote_types(g.dtype, torch.float32)), target).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "minimax": lambda r, f: -F.logsigmoid(r).mean() - F.logsigmoid(-f).mean(),  # 1 - s(f) = s(-f)
    "non-saturating": lambda r, f: (
        F.binary_cross_entropy_with_logits(
            torch.cat([r, f]), torch.cat([torch.ones_like(r), torch.zeros_like(f)]), reduction="sum"
        )
        / r.numel()
    ),
    "least-squares": lambda r, f: ((r - 1) ** 2).mean() / 2 + (f**2).mean() / 2,
    "hinge": lambda r, f: torch.clamp(1 - r, min=0).mean() + torch.clamp(1 + f, min=0).mean(),
    "wasserstein": lambda r, f: f.mean() - r.mean(),
    "rsgan": lambda r, f: -torch.log(torch.sigmoid(r - f)).mean(),
    "ragan": lambda r, f: (
        -torch.log(torch.sigmoid(r - f.mean())).mean() - torch.log(1 - torch.sigmoid(f - r.mean())).mean()
    ),
    "rpgan": lambda r, f: torch.log1p(torch.exp(f - r)).mean(),
}


def step(
    discriminator: nn.Module,
    real: Tensor,
    fake: Tensor,
    y: Tensor | None = None,
    *,
    loss: str,
    penalty: str | None,
    weight: float,
    points: Tensor | None = None,
    target: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Loss and penalty on a shared graph of one batch of real, fake and, if given, interpolates; differentiable."""
    parts = [real, fake] if points is None else [real, fake, points]
    x = torch.cat(parts).requires_grad_()
    logits = discriminator(x) if y is None else discriminator(x, torch.cat([y] * len(parts)))
    (g,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    gradients, logits = g.split([len(part) for part in parts]), logits.split([len(part) for part in parts])
    value = LOSSES[loss](logits[0], logits[1])
    match penalty:
        case None:
            total = torch.zeros_like(value)
        case "r1" | "r2":
            total = of_gradient(penalty, gradients[penalty == "r2"]).mean()
        case "r1+r2":
            total = of_gradient("r1", gradients[0]).mean() + of_gradient("r2", gradients[1]).mean()
        case _:
            total = of_gradient(penalty, gradients[2], target).mean()
    return value, total


def gradient(value: Tensor, module: nn.Module) -> Tensor:
    """The gradient in all parameters that have one, as one vector; zeros for those that are not reached."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    found = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


def accumulated(module: nn.Module) -> Tensor:
    """``.grad`` of the same parameters as one vector."""
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in grads])


def relative_error(got: Tensor, exact: Tensor) -> float:
    """``|got - exact| / |exact|``, or ``|got|`` where the exact one is zero."""
    scale = exact.norm().item()
    return (got - exact).norm().item() / (scale or 1.0)
