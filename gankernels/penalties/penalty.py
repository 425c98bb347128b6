"""The penalty as a differentiable scalar, for a user's own training loop."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from gankernels.errors import InputError
from gankernels.ops._registration import Formulas, define, register_formulas
from gankernels.penalties import kinds
from gankernels.penalties._eager import eager
from gankernels.penalties.run import METHODS, Block, Roots, Run, Scale


@eager
def gradient_penalty(
    discriminator: nn.Module,
    real: Tensor,  # [N, ...]
    fake: Tensor | None = None,  # [N, ...]
    y: Any = None,
    *,
    kind: str = "r1",
    method: str = "auto",
    target: float = 1.0,
    generator: torch.Generator | None = None,
    per_sample: bool = False,
) -> Tensor:
    """A gradient penalty, with exact gradients for the discriminator's parameters and no double backprop.

    Args:
        discriminator: any module; called once, as ``discriminator(pictures)`` or, where y is given,
            ``discriminator(pictures, y)``. It returns logits whose first dimension is the samples', or a tuple, list or
            dict of such; the gradient is that of their sum. A compiled module is run eagerly, one in DDP through DDP.
        real, fake: pictures of one shape and dtype; constants. ``r2``, ``wgan-gp`` and ``wgan-lp`` need ``fake``.
        y: labels, or whatever else the discriminator takes.
        kind: ``"r1"`` and ``"r2"`` are ``|g|^2 / 2`` at the real and at the generated pictures, ``"wgan-gp"`` and
            ``"wgan-lp"`` are ``(|g| - target)^2`` and ``max(0, |g| - target)^2`` between the two, ``"dragan"`` is
            ``(|g| - target)^2`` around the real ones. The gradient of ``|g|`` at g = 0 is 0.
        method: ``"fused"`` is the closed form for discriminators that are piecewise linear for each sample, and refuses
            others; ``"auto"`` treats each op outside that class by itself, and logs them once; ``"double_backward"`` is
            plain double backprop.
        target: of the norm, in the kinds that have one.
        generator: draws the interpolates of ``wgan-gp`` and ``wgan-lp`` and the noise of ``dragan``.
        per_sample: return the N penalties instead, as numbers without gradients: the gradients of N penalties would
            take N weight gradients.

    Returns:
        The mean over the samples, a scalar in fp32 (fp64 for fp64) whatever autocast says, to be weighted and added to
        a loss. Differentiable once in the parameters (by double_backward, as often as the discriminator is).

    Raises:
        InputError: an argument is not as above, or ``method="fused"`` and the discriminator is outside the class; the
            message names the module.
        RuntimeError: called under forward-mode AD or a torch.func transform, or an op has no second derivative.

    Example:
        >>> loss = loss + 5 * gankernels.gradient_penalty(discriminator, real, y=y, kind="r1")
        >>> loss.backward()
    """
    if kind not in kinds.KINDS:
        raise InputError(f"kind: got {kind!r}, expected one of {', '.join(kinds.KINDS)}")
    check("gradient_penalty", discriminator, method, real=real, fake=fake)
    pictures = kinds.points(kind, real, fake, generator)
    run = Run(discriminator, [Block(pictures, y, kind, 1.0, target)], method, with_loss=False)
    if run.way == "double backward":
        value = run.penalty_with_graph()
        return run.each[0] if per_sample else value
    roots, factor = run.roots(None)
    value = run.each[0].mean()
    return run.each[0] if per_sample else with_its_gradients(value, run, roots, factor)


def with_its_gradients(value: Tensor, run: Run, roots: Roots, factor: Scale, x: Tensor | None = None) -> Tensor:
    """``value`` [], differentiable once in the parameters that the roots of ``run`` reach.

    Args:
        factor: which the gradients of the roots have still to be multiplied by.
        x: what ``run.x`` is a detached copy of, to be differentiable in it too.
    """
    leaves = run.leaves(roots)
    pairs = [(leaf, leaf) for leaf in leaves] + ([] if x is None else [(x, run.x)])
    if not leaves or not torch.is_grad_enabled():
        return value
    edges, gradients = zip(*roots, strict=True)
    found = torch.autograd.grad(edges, [inner for _, inner in pairs], gradients, allow_unused=True)
    reached = [(to, gradient * factor) for (to, _), gradient in zip(pairs, found, strict=True) if gradient is not None]
    return _ops.with_gradients(value, [to for to, _ in reached], [gradient for _, gradient in reached])


def check(name: str, network: nn.Module, method: str, item: str = "picture", **inputs: Tensor | None) -> None:
    """Raise InputError for what is not as documented, and RuntimeError where torch would be silently wrong.

    Args:
        name: of the public function.
        item: what the inputs are batches of; those that are None were not given.
    """
    if method not in METHODS:
        raise InputError(f"method: got {method!r}, expected one of {', '.join(METHODS)}")
    given = {argument: tensor for argument, tensor in inputs.items() if tensor is not None}
    for argument, tensor in given.items():
        if tensor.dim() == 0 or tensor.numel() == 0:
            raise InputError(f"{argument}: got shape {tuple(tensor.shape)}, expected at least one {item}")
        if not tensor.is_floating_point():
            raise InputError(f"{argument}: got dtype {tensor.dtype}, expected a floating one")
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise RuntimeError(f"{name}: torch.func transforms are not supported")
    if forward_ad._current_level >= 0:
        tensors = (*given.values(), *network.parameters())
        if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
            raise RuntimeError(f"{name}: forward-mode AD is not supported")


# ---- Registration ----

_SCHEMAS = {"with_gradients": "(Tensor value, Tensor[] leaves, Tensor[] gradients) -> Tensor"}


def with_gradients(value: Tensor, leaves: list[Tensor], gradients: list[Tensor]) -> Tensor:
    """``value``, whose gradient in each of ``leaves`` is that of ``gradients``."""
    return value.clone()


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, gradients = inputs
    ctx.save_for_backward(*gradients)


def _vjp(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    gradients = ctx.saved_tensors
    return None, [dy.to(g.dtype) * g for g in gradients], [None] * len(gradients)


def _formulas() -> Formulas:
    return {"with_gradients": (lambda value, *_: torch.empty_like(value), _save, _vjp)}


_NAMESPACE = "gankernels_library"
define(_NAMESPACE, _SCHEMAS, lambda: SimpleNamespace(with_gradients=with_gradients))
register_formulas("gradient_penalty", _NAMESPACE, _formulas())
_ops = getattr(torch.ops, _NAMESPACE)
