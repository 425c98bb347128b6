"""A conditional batch norm, its activation and the transposed convolution behind it in one op, on Triton.

    scale = gain rstd,  shift = bias - mean scale,  h = act_x(x scale + shift),  y = act(conv_transpose(h, w) + b)

h is formed while x is loaded and never written: forward reads x once more than the statistics do, and writes y. What
the next batch norm needs of y, its mean and variance, comes out of the same pass. Backward is made of registered ops,
each with a backward: dz = act'(z) dy with db, dh = input_gradient(dz, w), the batch norm's backward of dh, and the
weight gradient of dz and h, for which h is computed again.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gankernels.dispatch import has_triton
from gankernels.ops import conditional_batch_norm as _conditional_batch_norm  # noqa: F401  (registers its ops)
from gankernels.ops._registration import NAMESPACES, Formulas, define, register_formulas
from gankernels.ops._weight_gradients import weight_gradients_wanted
from gankernels.ops.conv_transpose2d import fused

_NAMESPACE = NAMESPACES["triton"]


class Block(NamedTuple):
    """What :func:`conditional_batch_norm_conv_transpose2d` returns."""

    y: Tensor  # [N, C_out, OH, OW]
    mean: Tensor  # [C_in], the statistics that were used
    var: Tensor  # [C_in]
    y_mean: Tensor  # [C_out], those of y
    y_var: Tensor  # [C_out]


def conditional_batch_norm_conv_transpose2d(
    x: Tensor,  # [N, C_in, H, W]
    gain: Tensor,  # [N, C_in]
    shift: Tensor,  # [N, C_in]
    mean: Tensor | None,  # [C_in]
    var: Tensor | None,  # [C_in]
    batch_statistics: bool,
    eps: float,
    x_activation: str,
    x_slope: float,
    weight: Tensor,  # [C_in, C_out, KH, KW]
    bias: Tensor | None,  # [C_out]
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    activation: str = "none",
    slope: float = 0.2,
) -> Block:
    """``act(conv_transpose2d(conditional_batch_norm(x, gain, shift), weight) + bias)``, and the moments of y.

    Differentiable twice in x, gain, shift, weight and bias; Triton, groups 1, dilation 1. Arguments are trusted.

    Args:
        mean, var: x's statistics, biased, in fp32 (fp64 for fp64); None takes them from x. Those of a preceding block's
            y save the pass that would read x for them.
        batch_statistics: whether the statistics are functions of x, as in training, or constants.
        x_activation: between the batch norm and the convolution: ``"none"``, ``"relu"`` or ``"lrelu"``.
        activation: behind the convolution: ``"none"``, ``"relu"``, or ``"lrelu"`` with a positive ``slope``.

    Returns:
        y, channels_last where x or weight is, and per-channel statistics, through which no gradient flows: a batch norm
        behind y that treats them as functions of y has that path in its own backward.
    """
    given = (x, gain, shift, mean, var, batch_statistics, eps, x_activation, x_slope, weight, bias)
    geometry = (stride, padding, output_padding)
    forward = torch.ops.gankernels_triton.conditional_batch_norm_conv_transpose2d
    return Block(*forward(*given, *geometry, activation, slope))


# ---- Registration ----

SCHEMAS = {
    "conditional_batch_norm_conv_transpose2d": (
        "(Tensor x, Tensor gain, Tensor shift, Tensor? mean, Tensor? var, bool batch_statistics, float eps,"
        " str x_activation, float x_slope, Tensor weight, Tensor? bias, int[] stride, int[] padding,"
        " int[] output_padding, str activation, float slope)"
        " -> (Tensor y, Tensor mean, Tensor var, Tensor y_mean, Tensor y_var)"
    )
}


def _run(
    x: Tensor, gain: Tensor, shift: Tensor, mean: Tensor | None, var: Tensor | None, batch_statistics: bool, eps: float,
    x_activation: str, x_slope: float, weight: Tensor, bias: Tensor | None, *arguments: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    kernels = importlib.import_module("gankernels.ops.conv_transpose2d.kernels")
    parts = importlib.import_module("gankernels.ops.conditional_batch_norm.parts")
    acc = torch.promote_types(x.dtype, torch.float32)
    given = parts.conditional_batch_norm_statistics(x) if mean is None or var is None else (mean, var)
    mean, var = (t.to(acc, copy=True) for t in given)
    # [N, C]: a few thousand numbers.
    scale = gain.to(acc) * (var + eps).rsqrt()
    normalised = kernels.Normalised(scale, shift.to(acc) - mean * scale, x_activation, x_slope)
    y, y_mean, y_var = kernels.conv_transpose2d_forward_with_moments(x, weight, bias, *arguments, normalised)
    return y, mean, var, y_mean, y_var


def _fake(
    x: Tensor, gain: Tensor, shift: Tensor, mean: Tensor | None, var: Tensor | None, batch_statistics: bool, eps: float,
    x_activation: str, x_slope: float, weight: Tensor, bias: Tensor | None, *arguments: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    acc = torch.promote_types(x.dtype, torch.float32)
    of_x, of_y = (x.new_empty(size, dtype=acc) for size in (x.shape[1], weight.shape[1]))
    y = fused._forward_fake(x, weight, bias, *arguments)
    return y, of_x, torch.empty_like(of_x), of_y, torch.empty_like(of_y)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    (x, gain, shift, _, _, ctx.batch_statistics, eps, x_activation, x_slope, weight, bias, *ctx.geometry,
     ctx.activation, ctx.slope) = inputs  # fmt: skip
    ctx.formula, ctx.bias_dtype = (eps, x_activation, x_slope), None if bias is None else bias.dtype
    y, mean, var, *_ = output
    ctx.save_for_backward(x, gain, shift, mean, var, weight, None if ctx.activation == "none" else y)
    ctx.mark_non_differentiable(*output[1:])


def _formulas(ops: SimpleNamespace) -> Formulas:
    def vjp(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, gain, shift, mean, var, weight, y = ctx.saved_tensors
        needs, wanted = ctx.needs_input_grad, weight_gradients_wanted()
        dz, db = fused.gated(ops, dy, y, ctx.activation, ctx.slope, with_sum=needs[10] and wanted)
        dx = dgain = dshift = dw = None
        if any(needs[:3]):
            dh = ops.conv_transpose2d_input_gradient(dz, None, weight, x.shape, *ctx.geometry, "none", 0.0, "library")
            dx, dgain, dshift = ops.conditional_batch_norm_backward(
                dh, x, gain, shift, mean, var, ctx.batch_statistics, *ctx.formula
            )
        if needs[9] and wanted:
            # Given statistics would be constants to this op: one that is to be differentiated again takes them itself.
            statistics = (None, None) if ctx.batch_statistics else (mean, var)
            h, _, _ = ops.conditional_batch_norm_forward(x, gain, shift, *statistics, *ctx.formula)
            dw = fused.weight_gradient(ops, "library", dz, h, weight.shape, ctx.geometry)
        db = db.to(ctx.bias_dtype) if db is not None else None
        return dx, dgain, dshift, *[None] * 6, dw, db, *[None] * 5

    return {"conditional_batch_norm_conv_transpose2d": (_fake, _save, vjp)}


if has_triton:
    define(_NAMESPACE, SCHEMAS, lambda: SimpleNamespace(conditional_batch_norm_conv_transpose2d=_run))
    _names = (
        "bias_act_backward", "conv_transpose2d_input_gradient", "conv_transpose2d_weight_gradient",
        "conditional_batch_norm_forward", "conditional_batch_norm_backward",
    )  # fmt: skip
    register_formulas(
        "conv_transpose2d",
        _NAMESPACE,
        _formulas(SimpleNamespace(**{name: getattr(getattr(torch.ops, _NAMESPACE), name) for name in _names})),
    )
