"""The convolution of PyTorch's library as three registered ops that are closed under differentiation.

A convolution is bilinear: <dy, conv(x, w)> = <input_gradient(dy, w), x> = <weight_gradient(dy, x), w> defines its two
gradients, and the gradients of each of the three are the other two:

    op                          cotangent   gradients
    y  = conv(x, w) + b         dy          dx = input_gradient(dy, w),  (dw, db) = weight_gradient(dy, x)
    dx = input_gradient(dy, w)  ddx         ddy = conv(ddx, w),          dw = weight_gradient(dy, ddx)
    (dw, db) =
      weight_gradient(dy, x)    ddw, ddb    ddy = conv(x, ddw) + ddb,    dx = input_gradient(dy, ddw)

So every order is made of calls of the same three, each of which is one call of the library, also for grouped
convolutions. (ATen's own double backward makes each group's weight gradient by a convolution of its own.)
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from gankernels import _native
from gankernels.ops._convolution_arguments import output_size
from gankernels.ops._layout import prefers_channels_last, strides_4d
from gankernels.ops._registration import NAMESPACES, Formulas, asked_for, define, register_formulas
from gankernels.ops._weight_gradients import weight_gradients_wanted

_NAMESPACE = NAMESPACES["library"]


def convolution(
    x: Tensor,  # [N, C_in, H, W]
    weight: Tensor,  # [C_out, C_in / groups, KH, KW]; transposed: [C_in, C_out / groups, KH, KW]
    bias: Tensor | None = None,  # [C_out]
    *,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    transposed: bool = False,
    output_padding: Sequence[int] = (0, 0),
    groups: int = 1,
) -> Tensor:
    """A convolution, or a transposed one, with bias: [N, C_out, OH, OW]. Differentiable to any order in all three.

    The arguments are PyTorch's, checked by the caller: tensors of one dtype on one device, pairs of numbers. The output
    is channels_last where x or weight is. Weight gradients obey :func:`gankernels.no_weight_gradients`.
    """
    return torch.ops.gankernels_library.convolution(
        x, weight, bias, stride, padding, dilation, transposed, output_padding, groups
    )


# ---- Registration ----

_GEOMETRY = "int[] stride, int[] padding, int[] dilation, bool transposed, int[] output_padding, int groups"

SCHEMAS = {
    "convolution": f"(Tensor x, Tensor weight, Tensor? bias, {_GEOMETRY}) -> Tensor y",
    "convolution_input_gradient": f"(Tensor dy, Tensor weight, SymInt[] x_size, {_GEOMETRY}) -> Tensor dx",
    "convolution_weight_gradient": (
        f"(Tensor dy, Tensor x, SymInt[] weight_size, bool with_bias, {_GEOMETRY}) -> (Tensor dw, Tensor db)"
    ),
}

_GEOMETRY_LENGTH = 6


def _empty(a: Tensor, b: Tensor, size: Sequence[int]) -> Tensor:
    """What every one of the ops returns for operands a and b: channels_last where one of them is."""
    return a.new_empty_strided(size, strides_4d(size, prefers_channels_last(a) or prefers_channels_last(b)))


def _convolution_fake(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    return _empty(x, weight, output_size(x.shape, weight.shape, *geometry))


def _input_gradient_fake(dy: Tensor, weight: Tensor, x_size: Sequence[int], *geometry: Any) -> Tensor:
    return _empty(dy, weight, x_size)


def _weight_gradient_fake(
    dy: Tensor, x: Tensor, weight_size: Sequence[int], with_bias: bool, *geometry: Any
) -> tuple[Tensor, Tensor]:
    return _empty(dy, x, weight_size), dy.new_empty(dy.shape[1] if with_bias else 0)


def _save_convolution(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, *ctx.geometry = inputs
    ctx.x_size, ctx.weight_size = x.shape, weight.shape
    needs_dx, needs_dw, _, *_ = ctx.needs_input_grad
    ctx.save_for_backward(x if needs_dw else None, weight if needs_dx else None)


def _save_input_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dy, weight, _, *ctx.geometry = inputs
    ctx.weight_size = weight.shape
    needs_ddy, needs_dw, *_ = ctx.needs_input_grad
    ctx.save_for_backward(dy if needs_dw else None, weight if needs_ddy else None)


def _save_weight_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    dy, x, _, ctx.with_bias, *ctx.geometry = inputs
    ctx.dy_size, ctx.x_size = dy.shape, x.shape
    needs_ddy, needs_dx, *_ = ctx.needs_input_grad
    ctx.save_for_backward(dy if needs_dx else None, x if needs_ddy else None)
    # A penalty on dw alone has no cotangent for db.
    ctx.set_materialize_grads(False)


def _formulas(ops: SimpleNamespace) -> Formulas:
    nothing = [None] * _GEOMETRY_LENGTH

    def convolution_vjp(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx = dw = db = None
        if ctx.needs_input_grad[0] and asked_for(ctx, 0):
            dx = ops.convolution_input_gradient(dy, weight, ctx.x_size, *ctx.geometry)
        wants = weight_gradients_wanted()
        wants_db = wants and ctx.needs_input_grad[2] and asked_for(ctx, 2)
        if wants and ctx.needs_input_grad[1] and asked_for(ctx, 1):
            dw, db = ops.convolution_weight_gradient(dy, x, ctx.weight_size, wants_db, *ctx.geometry)
        elif wants_db:
            db = dy.sum((0, 2, 3))
        return dx, dw, db if wants_db else None, *nothing

    def input_gradient_vjp(ctx: Any, ddx: Tensor) -> tuple[Tensor | None, ...]:
        dy, weight = ctx.saved_tensors
        ddy = dw = None
        if ctx.needs_input_grad[0] and asked_for(ctx, 0):
            ddy = ops.convolution(ddx, weight, None, *ctx.geometry)
        if ctx.needs_input_grad[1] and weight_gradients_wanted() and asked_for(ctx, 1):
            dw, _ = ops.convolution_weight_gradient(dy, ddx, ctx.weight_size, False, *ctx.geometry)
        return ddy, dw, None, *nothing

    def weight_gradient_vjp(ctx: Any, ddw: Tensor | None, ddb: Tensor | None) -> tuple[Tensor | None, ...]:
        dy, x = ctx.saved_tensors
        ddb = ddb if ctx.with_bias else None
        ddy = dx = None
        if ctx.needs_input_grad[0] and asked_for(ctx, 0):
            if ddw is not None:
                ddy = ops.convolution(x, ddw, ddb, *ctx.geometry)
            elif ddb is not None:
                ddy = ddb[:, None, None].expand(ctx.dy_size)
        if ctx.needs_input_grad[1] and ddw is not None and asked_for(ctx, 1):
            dx = ops.convolution_input_gradient(dy, ddw, ctx.x_size, *ctx.geometry)
        return ddy, dx, None, None, *nothing

    return {
        "convolution": (_convolution_fake, _save_convolution, convolution_vjp),
        "convolution_input_gradient": (_input_gradient_fake, _save_input_gradient, input_gradient_vjp),
        "convolution_weight_gradient": (_weight_gradient_fake, _save_weight_gradient, weight_gradient_vjp),
    }


def _library() -> ModuleType:
    return importlib.import_module("gankernels.ops._convolution_library")


define(_NAMESPACE, SCHEMAS, _library)
if _native.extension is not None:
    # csrc/torch/convolution.cpp takes the ops over, and calls these where there is something to decide.
    define(_NAMESPACE, {f"planned_{name}": signature for name, signature in SCHEMAS.items()}, _library)
register_formulas(
    "convolution",
    _NAMESPACE,
    _formulas(SimpleNamespace(**{name: getattr(getattr(torch.ops, _NAMESPACE), name) for name in SCHEMAS})),
    autograd=_native.extension is None,
)
