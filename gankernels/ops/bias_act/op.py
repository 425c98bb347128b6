"""The public function, and the registration of its forward, backward and double backward as torch ops."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from gankernels import dispatch
from gankernels.errors import InputError
from gankernels.ops._activation import ACTIVATIONS, PIECEWISE_LINEAR
from gankernels.ops._registration import NAMESPACES, Formulas, refuse_transforms, register_op
from gankernels.ops.bias_act import reference

_OP = "bias_act"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def bias_act(
    x: Tensor,  # [..., C, ...]
    bias: Tensor | None = None,  # [C]
    *,
    activation: str = "lrelu",
    slope: float = 0.2,
    gain: float = 1.0,
    clamp: float | None = None,
    dim: int = 1,
    impl: str | None = None,
) -> Tensor:
    """``clamp(act(x + bias) * gain, -clamp, clamp)`` in one pass over x.

    Args:
        x: of at least one dimension, in fp32, bf16, fp16 or fp64. Any dense layout is kept: contiguous, channels_last,
            transposed; a tensor with holes is copied.
        bias: [C] with C = ``x.shape[dim]``, of any floating dtype; None adds nothing.
        activation: ``"lrelu"``, ``"relu"``, ``"linear"`` (or ``"none"``), ``"tanh"``, ``"sigmoid"``, ``"silu"``,
            ``"softplus"`` or ``"gelu"`` (the exact one, with erf).
        slope: of ``"lrelu"`` below zero.
        gain: multiplies the activation; sqrt(2) keeps the variance behind ``"lrelu"`` and ``"relu"``.
        clamp: the largest magnitude of y; None clamps nothing. The gradient is zero where |y| would exceed it.
        dim: the dimension of x that bias belongs to; negative counts from the end.
        impl: force ``"reference"``, ``"cpu"``, ``"triton"`` or ``"cuda"``; None lets dispatch choose.

    Returns:
        y with x's shape, dtype and layout. Differentiable twice in x and bias; all arithmetic is fp32 (fp64 for fp64).
        Saved for backward: nothing for ``"linear"``, y for ``"relu"`` and ``"lrelu"`` (which the next layer saves
        anyway; do not change it in place), x and bias for the others and wherever ``clamp`` is given.

    Raises:
        InputError: a shape, dtype, device, number or name is not as above.
        ImplementationUnavailable: ``impl`` cannot run on x.
        RuntimeError: called under forward-mode AD or a torch.func transform with a fused implementation.

    Example:
        >>> x = torch.randn(8, 64, 16, 16, requires_grad=True)
        >>> y = bias_act(x, torch.zeros(64), activation="lrelu", gain=2**0.5, clamp=256)
    """
    activation = "none" if activation == "linear" else activation
    dim = _check(x, bias, activation, clamp, dim)
    choice = dispatch.choose(_OP, x, impl)
    if choice.impl == "reference":
        return reference.bias_act(x, bias, activation=activation, slope=slope, gain=gain, clamp=clamp, dim=dim)
    refuse_transforms(_OP, x, *(() if bias is None else (bias,)))
    forward = getattr(torch.ops, NAMESPACES[choice.impl]).bias_act_forward
    return forward(x, bias, activation, slope, gain, clamp, dim)


def _check(x: Tensor, bias: Tensor | None, activation: str, clamp: float | None, dim: int) -> int:
    """Raise InputError, or return ``dim`` counted from the front."""
    if x.dtype not in _DTYPES:
        raise InputError(f"x: got dtype {x.dtype}, expected one of {', '.join(map(str, _DTYPES))}")
    if activation not in ACTIVATIONS:
        raise InputError(f"activation: got {activation!r}, expected one of linear, {', '.join(ACTIVATIONS)}")
    if clamp is not None and not clamp >= 0:
        raise InputError(f"clamp: got {clamp}, expected a number that is not negative, or None")
    dimensions = x.dim()
    if not -dimensions <= dim < dimensions:
        raise InputError(f"dim: got {dim}, expected a dimension of x, which has shape {tuple(x.shape)}")
    if dim < 0:
        dim += dimensions
    if bias is None:
        return dim
    if bias.dim() != 1 or bias.size(0) != x.size(dim):
        raise InputError(f"bias: got shape {tuple(bias.shape)}, expected ({x.shape[dim]},)")
    if bias.device != x.device:
        raise InputError(f"bias: got a tensor on {bias.device}, expected {x.device}, where x is")
    if not bias.is_floating_point():
        raise InputError(f"bias: got dtype {bias.dtype}, expected a floating one")
    return dim


# ---- Registration ----

SCHEMAS = {
    "bias_act_forward": (
        "(Tensor x, Tensor? bias, str activation, float slope, float gain, float? clamp, int dim) -> Tensor y"
    ),
    "bias_act_backward": (
        "(Tensor dy, Tensor? x, Tensor? bias, str activation, float slope, float gain, float? clamp, int dim,"
        " bool with_dbias) -> (Tensor dx, Tensor dbias)"
    ),
    "bias_act_backward_backward": (
        "(Tensor ddx, Tensor? ddbias, Tensor? dy, Tensor? x, Tensor? bias, str activation, float slope, float gain,"
        " float? clamp, int dim, bool with_dbias) -> (Tensor ddy, Tensor dx, Tensor dbias)"
    ),
}


def saved_for_backward(activation: str, slope: float, gain: float, clamp: float | None) -> str:
    """What backward needs: ``"nothing"``, ``"y"`` or ``"x"`` (and then bias).

    Where act' depends on the sign of z = x + bias alone, and y = gain act(z) has that sign, y serves as x: the next
    layer keeps it anyway, and x can be freed. A clamped y does not tell |y| = clamp from more.
    """
    if clamp is not None or activation not in PIECEWISE_LINEAR:
        return "x"
    if activation == "none":
        return "nothing"
    return "y" if gain > 0 and (activation == "relu" or slope > 0) else "x"


def _dbias(like: Tensor, dim: int, with_dbias: bool) -> Tensor:
    size = like.shape[dim] if with_dbias else 0
    return like.new_empty(size, dtype=torch.promote_types(like.dtype, torch.float32))


def _forward_fake(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _backward_fake(dy: Tensor, x: Tensor | None, bias: Tensor | None, *arguments: Any) -> tuple[Tensor, Tensor]:
    like = dy if x is None else x
    return torch.empty_like(like), _dbias(like, *arguments[-2:])


def _backward_backward_fake(
    ddx: Tensor, ddbias: Tensor | None, dy: Tensor | None, x: Tensor | None, bias: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    like = ddx if x is None else x
    smooth = arguments[0] not in PIECEWISE_LINEAR
    dx = torch.empty_like(like) if smooth else like.new_empty(0)
    return torch.empty_like(like), dx, _dbias(like, *arguments[-2:])


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bias, *ctx.arguments = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    # A penalty on dx comes by here where y was saved, with no cotangent.
    ctx.set_materialize_grads(False)
    match saved_for_backward(*ctx.arguments[:4]):
        case "x":
            ctx.save_for_backward(x, bias)
        case "y":
            ctx.save_for_backward(output, None)
        case _:
            ctx.save_for_backward(None, None)


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    dy, x, bias, *arguments, ctx.with_dbias = inputs
    smooth = arguments[0] not in PIECEWISE_LINEAR
    ctx.save_for_backward(dy if smooth else None, x, bias)
    ctx.arguments, ctx.smooth, ctx.like = arguments, smooth, (dy.shape, dy.dtype, dy.device)
    # A penalty on dx alone has no cotangent for dbias; a tensor of zeros would be made for each layer.
    ctx.set_materialize_grads(False)


def _formulas(ops: SimpleNamespace) -> Formulas:
    def forward_vjp(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 7
        with_dbias = ctx.needs_input_grad[1]
        dx, dbias = ops.bias_act_backward(dy, *ctx.saved_tensors, *ctx.arguments, with_dbias)
        return dx, dbias.to(ctx.bias_dtype) if with_dbias else None, *[None] * 5

    def backward_vjp(ctx: Any, ddx: Tensor | None, ddbias: Tensor | None) -> tuple[Tensor | None, ...]:
        nothing = [None] * 6
        ddbias = ddbias if ctx.with_dbias else None
        if ddx is None and ddbias is None:
            return None, None, None, *nothing
        if ddx is None:
            shape, dtype, device = ctx.like
            ddx = torch.zeros((), dtype=dtype, device=device).expand(shape)
        with_dbias = ctx.smooth and ctx.needs_input_grad[2]
        ddy, dx, dbias = ops.bias_act_backward_backward(ddx, ddbias, *ctx.saved_tensors, *ctx.arguments, with_dbias)
        if not ctx.smooth:
            return ddy, None, None, *nothing
        bias = ctx.saved_tensors[2]
        return ddy, dx, dbias.to(bias.dtype) if with_dbias else None, *nothing

    return {
        "bias_act_forward": (_forward_fake, _save_forward, forward_vjp),
        "bias_act_backward": (_backward_fake, _save_backward, backward_vjp),
        "bias_act_backward_backward": (_backward_backward_fake, None, None),
    }


register_op(_OP, SCHEMAS, _formulas, native_formulas=True)
