"""The Triton route: registration of the fused transposed convolution and of its input gradient, and how op.py calls it.

    op                                          cotangent   gradients, with dz = act'(z) dy
    y  = act(conv_transpose(x, w) + b)          dy          dx = input_gradient(dz, w),  dw = weight_gradient(dz, x),
                                                            db = sum of dz
    dx = input_gradient(dz, w)                  ddx         ddy = act'(z) conv_transpose(ddx, w),
                                                            dw = weight_gradient(dz, ddx)
    dw = weight_gradient(dz, x)                 ddw         ddz = conv_transpose(x, ddw),  dx = input_gradient(dz, ddw)

The three are closed under differentiation, so every order is made of calls of them and of bias_act's backward. y tells
the sign of z, which is all that act' of relu and lrelu asks; other activations run as a pass of bias_act behind it.
The weight gradient is the library's (:mod:`gankernels.ops._convolution`) unless the caller asks for the Triton one.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from gankernels.dispatch import has_triton
from gankernels.ops import bias_act as _bias_act  # noqa: F401  (registers its ops)
from gankernels.ops._activation import PIECEWISE_LINEAR
from gankernels.ops._convolution_arguments import output_size
from gankernels.ops._layout import prefers_channels_last, strides_4d
from gankernels.ops._registration import NAMESPACES, Formulas, define, register_formulas
from gankernels.ops._weight_gradients import weight_gradients_wanted

_NAMESPACE = NAMESPACES["triton"]


def unsupported(groups: int, dilation: Sequence[int]) -> str | None:
    """Why these kernels cannot run a transposed convolution, in a few words; None if they can."""
    if groups != 1:
        return f"the Triton kernels have groups 1, not {groups}"
    if tuple(dilation) != (1, 1):
        return f"the Triton kernels have dilation 1, not {tuple(dilation)}"
    return None


def conv_transpose2d(
    x: Tensor,  # [N, C_in, H, W]
    weight: Tensor,  # [C_in, C_out, KH, KW]
    bias: Tensor | None,  # [C_out]
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    activation: str,
    slope: float,
    weight_gradient: str = "library",
) -> Tensor:
    """``act(conv_transpose2d(x, weight) + bias)`` [N, C_out, OH, OW], channels_last where x or weight is.

    Differentiable to any order with none, relu and lrelu, twice with bias_act's other activations. Weight gradients
    obey :func:`gankernels.no_weight_gradients`. Arguments are checked by the caller.

    Args:
        weight_gradient: ``"library"`` or ``"triton"``: what runs the weight gradients of every order.
    """
    ops = torch.ops.gankernels_triton
    geometry = (stride, padding, output_padding)
    if activation in PIECEWISE_LINEAR and (activation != "lrelu" or slope > 0):
        return ops.conv_transpose2d_forward(x, weight, bias, *geometry, activation, slope, weight_gradient)
    z = ops.conv_transpose2d_forward(x, weight, None, *geometry, "none", 0.0, weight_gradient)
    return ops.bias_act_forward(z, bias, activation, slope, 1.0, None, 1)


# ---- Registration ----

_GEOMETRY = "int[] stride, int[] padding, int[] output_padding"

SCHEMAS = {
    "conv_transpose2d_forward": (
        f"(Tensor x, Tensor weight, Tensor? bias, {_GEOMETRY}, str activation, float slope, str weight_gradient)"
        " -> Tensor y"
    ),
    "conv_transpose2d_input_gradient": (
        f"(Tensor dy, Tensor? y, Tensor weight, SymInt[] x_size, {_GEOMETRY}, str activation, float slope,"
        " str weight_gradient) -> Tensor dx"
    ),
    "conv_transpose2d_weight_gradient": (
        f"(Tensor dz, Tensor x, SymInt[] weight_size, {_GEOMETRY}, str weight_gradient) -> Tensor dw"
    ),
}


def _empty(a: Tensor, b: Tensor, size: Sequence[int]) -> Tensor:
    return a.new_empty_strided(size, strides_4d(size, prefers_channels_last(a) or prefers_channels_last(b)))


def _forward_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int],
    output_padding: Sequence[int], *_: Any,
) -> Tensor:  # fmt: skip
    return _empty(x, weight, output_size(x.shape, weight.shape, stride, padding, (1, 1), True, output_padding, 1))


def _input_gradient_fake(dy: Tensor, y: Tensor | None, weight: Tensor, x_size: Sequence[int], *_: Any) -> Tensor:
    return _empty(dy, weight, x_size)


def _weight_gradient_fake(dz: Tensor, x: Tensor, weight_size: Sequence[int], *_: Any) -> Tensor:
    return _empty(dz, x, weight_size)


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, *ctx.geometry, ctx.activation, ctx.slope, ctx.by = inputs
    ctx.x_size, ctx.weight_size, ctx.bias_dtype = x.shape, weight.shape, None if bias is None else bias.dtype
    needs_dx, needs_dw, *_ = ctx.needs_input_grad
    ctx.save_for_backward(
        x if needs_dw else None, weight if needs_dx else None, None if ctx.activation == "none" else output
    )


def _save_input_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dy, y, weight, _, *ctx.geometry, ctx.activation, ctx.slope, ctx.by = inputs
    ctx.weight_size = weight.shape
    ctx.save_for_backward(dy if ctx.needs_input_grad[2] else None, y, weight if ctx.needs_input_grad[0] else None)


def _save_weight_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dz, x, _, *ctx.geometry, ctx.by = inputs
    ctx.x_size = x.shape
    needs_ddz, needs_dx, *_ = ctx.needs_input_grad
    ctx.save_for_backward(dz if needs_dx else None, x if needs_ddz else None)


def weight_gradient(
    ops: SimpleNamespace, by: str, dz: Tensor, x: Tensor, weight_size: Sequence[int], geometry: Sequence[Any]
) -> Tensor:
    """dw of the transposed convolution with the geometry (stride, padding, output_padding), by ``by``."""
    if by == "triton":
        return ops.conv_transpose2d_weight_gradient(dz, x, weight_size, *geometry, by)
    stride, padding, output_padding = geometry
    dw, _ = torch.ops.gankernels_library.convolution_weight_gradient(
        dz, x, weight_size, False, stride, padding, (1, 1), True, output_padding, 1
    )
    return dw


def gated(
    ops: SimpleNamespace, g: Tensor, y: Tensor | None, activation: str, slope: float, with_sum: bool = False
) -> tuple[Tensor, Tensor | None]:
    """act'(z) g, which is g where y is None, and, asked for, its sum over all but the channels, in one pass."""
    if y is None:
        return g, g.sum((0, 2, 3), dtype=torch.promote_types(g.dtype, torch.float32)) if with_sum else None
    dz, db = ops.bias_act_backward(g, y, None, activation, slope, 1.0, None, 1, with_sum)
    return dz, db if with_sum else None


def _formulas(ops: SimpleNamespace) -> Formulas:
    def forward_vjp(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, y = ctx.saved_tensors
        needs_dx, needs_dw, needs_db, *_ = ctx.needs_input_grad
        needs_dw, needs_db = needs_dw and weight_gradients_wanted(), needs_db and weight_gradients_wanted()
        dx = dw = db = None
        activation, slope = ctx.activation, ctx.slope
        if needs_dw or needs_db:
            # Several read dz: written once. For dx alone it is formed while dy is loaded.
            dy, db = gated(ops, dy, y, activation, slope, needs_db)
            y, activation, slope = None, "none", 0.0
        if needs_dx:
            dx = ops.conv_transpose2d_input_gradient(
                dy, y, weight, ctx.x_size, *ctx.geometry, activation, slope, ctx.by
            )
        if needs_dw:
            dw = weight_gradient(ops, ctx.by, dy, x, ctx.weight_size, ctx.geometry)
        return dx, dw, None if db is None else db.to(ctx.bias_dtype), *[None] * 6

    def input_gradient_vjp(ctx: Any, ddx: Tensor) -> tuple[Tensor | None, ...]:
        dy, y, weight = ctx.saved_tensors
        needs_ddy, needs_dw = ctx.needs_input_grad[0], ctx.needs_input_grad[2] and weight_gradients_wanted()
        ddy = dw = None
        if needs_ddy:
            ddz = ops.conv_transpose2d_forward(ddx, weight, None, *ctx.geometry, "none", 0.0, ctx.by)
            ddy, _ = gated(ops, ddz, y, ctx.activation, ctx.slope)
        if needs_dw:
            dz, _ = gated(ops, dy, y, ctx.activation, ctx.slope)
            dw = weight_gradient(ops, ctx.by, dz, ddx, ctx.weight_size, ctx.geometry)
        return ddy, None, dw, *[None] * 7

    def weight_gradient_vjp(ctx: Any, ddw: Tensor) -> tuple[Tensor | None, ...]:
        dz, x = ctx.saved_tensors
        needs_ddz, needs_dx, *_ = ctx.needs_input_grad
        ddz = dx = None
        if needs_ddz:
            ddz = ops.conv_transpose2d_forward(x, ddw, None, *ctx.geometry, "none", 0.0, ctx.by)
        if needs_dx:
            dx = ops.conv_transpose2d_input_gradient(dz, None, ddw, ctx.x_size, *ctx.geometry, "none", 0.0, ctx.by)
        return ddz, dx, *[None] * 5

    return {
        "conv_transpose2d_forward": (_forward_fake, _save_forward, forward_vjp),
        "conv_transpose2d_input_gradient": (_input_gradient_fake, _save_input_gradient, input_gradient_vjp),
        "conv_transpose2d_weight_gradient": (_weight_gradient_fake, _save_weight_gradient, weight_gradient_vjp),
    }


def _kernels() -> SimpleNamespace:
    """The launchers by their ops' names; what runs the weight gradients is none of their business."""
    kernels = importlib.import_module("gankernels.ops.conv_transpose2d.kernels")

    def without_last(name: str) -> Any:
        return lambda *args: getattr(kernels, name)(*args[:-1])

    return SimpleNamespace(**{name: without_last(name) for name in SCHEMAS})


if has_triton:
    define(_NAMESPACE, SCHEMAS, _kernels)
    _names = (*SCHEMAS, "bias_act_backward")
    register_formulas(
        "conv_transpose2d",
        _NAMESPACE,
        _formulas(SimpleNamespace(**{name: getattr(getattr(torch.ops, _NAMESPACE), name) for name in _names})),
    )
