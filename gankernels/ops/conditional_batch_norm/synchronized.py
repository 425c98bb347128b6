"""Conditional batch normalisation whose batch is spread over the ranks of a process group.

The kernels run in parts, and the middle step of each order, a few operations on [rows, C] and [C], stands here for all
of them, with its one collective. The formulas are those of csrc/conditional_batch_norm.h. Across ranks numbers are
fp64: a kilobyte a collective, and counts are exact.

Gain and bias have a row for each sample, or with labels for each class. The parts return sums by row, so that the
formulas are the same for both. A rank's gradients of a table are those of its own samples, as of any parameter.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gankernels import dispatch
from gankernels.ops import _layout
from gankernels.ops._collectives import all_gather, all_reduce_sum
from gankernels.ops._registration import define, families, register_formulas

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

PARTS = {
    "conditional_batch_norm_statistics": "(Tensor x) -> (Tensor mean, Tensor var)",
    "conditional_batch_norm_backward_sums": (
        "(Tensor dy, Tensor x, Tensor gain, Tensor bias, Tensor? labels, Tensor mean, Tensor var, float eps,"
        " str activation, float slope) -> Tensor"
    ),
    "conditional_batch_norm_backward_apply": (
        "(Tensor dy, Tensor x, Tensor gain, Tensor bias, Tensor? labels, Tensor mean, Tensor var, Tensor terms,"
        " float eps, str activation, float slope) -> Tensor"
    ),
    "conditional_batch_norm_backward_backward_sums": (
        "(Tensor ddx, Tensor dy, Tensor x, Tensor gain, Tensor bias, Tensor? labels, Tensor mean, Tensor var,"
        " float eps, str activation, float slope) -> Tensor"
    ),
    "conditional_batch_norm_backward_backward_apply": (
        "(Tensor ddx, Tensor ddgain, Tensor ddbias, Tensor dy, Tensor x, Tensor gain, Tensor bias, Tensor? labels,"
        " Tensor mean, Tensor var, Tensor terms, float eps, str activation, float slope) -> (Tensor ddy, Tensor dx)"
    ),
}
SCHEMAS = {
    "conditional_batch_norm_forward": (
        "(Tensor x, Tensor gain, Tensor bias, Tensor? labels, float eps, str activation, float slope, str family,"
        " str group, int ranks) -> (Tensor y, Tensor mean, Tensor var, Tensor count)"
    ),
    "conditional_batch_norm_backward": (
        "(Tensor dy, Tensor x, Tensor gain, Tensor bias, Tensor? labels, Tensor mean, Tensor var, Tensor count,"
        " float eps, str activation, float slope, str family, str group) -> (Tensor dx, Tensor dgain, Tensor dbias)"
    ),
    "conditional_batch_norm_backward_backward": (
        "(Tensor ddx, Tensor ddgain, Tensor ddbias, Tensor dy, Tensor x, Tensor gain, Tensor bias, Tensor? labels,"
        " Tensor mean, Tensor var, Tensor count, float eps, str activation, float slope, str family, str group)"
        " -> (Tensor ddy, Tensor dx, Tensor dgain)"
    ),
}


def conditional_batch_norm(
    x: Tensor,  # [N, C, H, W]
    gain: Tensor,  # [rows, C]
    bias: Tensor,  # [rows, C]
    labels: Tensor | None,  # [N]
    *formula: Any,  # eps, activation, slope
    family: str,
    process_group: ProcessGroup,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`forward` as a registered op, differentiable twice, on the kernels of ``family``."""
    op = torch.ops.gankernels_synchronized.conditional_batch_norm_forward
    return op(x, gain, bias, labels, *formula, family, process_group.group_name, process_group.size())


def forward(
    x: Tensor,  # [N, C, H, W]
    gain: Tensor,  # [rows, C]
    bias: Tensor,  # [rows, C]
    labels: Tensor | None,  # [N]
    eps: float,
    activation: str,
    slope: float,
    family: str,
    group: str,
    ranks: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y; mean and biased variance [C] over all ranks' samples; their number of pixels in a channel, fp64.

    One collective, of 2 C + 1 numbers a rank.
    """
    ops = getattr(torch.ops, family)
    n, c, h, w = x.shape
    local = ops.conditional_batch_norm_statistics(x)  # fp64: rounded once, behind the merge
    gathered = all_gather(torch.cat([*local, local[0].new_full((1,), n * h * w)]), group, ranks)
    counts = gathered[:, 2 * c :]  # [ranks, 1]
    means, variances = gathered[:, : 2 * c].where(counts > 0, 0).unflatten(1, (2, c)).unbind(1)
    count = counts.sum()
    share = counts / count
    # Chan, Golub and LeVeque 1979, for any number of sets.
    mean = (share * means).sum(0)
    var = (share * (variances + (means - mean).square())).sum(0)
    y, mean, var = ops.conditional_batch_norm_forward(x, gain, bias, labels, mean, var, eps, activation, slope)
    return y, mean, var, count


def backward(
    dy: Tensor,  # [N, C, H, W]
    x: Tensor,  # [N, C, H, W]
    gain: Tensor,  # [rows, C]
    bias: Tensor,  # [rows, C]
    labels: Tensor | None,  # [N]
    mean: Tensor,  # [C]
    var: Tensor,  # [C]
    count: Tensor,  # []
    eps: float,
    activation: str,
    slope: float,
    family: str,
    group: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dgain and dbias of the sum of all ranks' losses. One collective, of 2 C numbers."""
    ops, saved, formula = getattr(torch.ops, family), (x, gain, bias, labels, mean, var), (eps, activation, slope)
    s0, s1 = ops.conditional_batch_norm_backward_sums(dy, *saved, *formula).unbind(2)  # [rows, C]
    gain_, rstd = rows_of_batch(gain, labels).to(s0.dtype), (var.double() + eps).rsqrt()
    sums = torch.stack([gain_ * s0, gain_ * s1]).sum(1, dtype=torch.float64)  # [2, C]
    mean_g, mean_gx = all_reduce_sum(sums, group) / count
    terms = torch.stack([-(rstd**3) * mean_gx, -rstd * mean_g]).to(s0.dtype)
    dx = ops.conditional_batch_norm_backward_apply(dy, *saved, terms, *formula)
    return dx, (rstd.to(s0.dtype) * s1).to(gain.dtype), s0.to(bias.dtype).contiguous()


def backward_backward(
    ddx: Tensor,  # [N, C, H, W]
    ddgain: Tensor,  # [rows, C]
    ddbias: Tensor,  # [rows, C]
    dy: Tensor,  # [N, C, H, W]
    x: Tensor,  # [N, C, H, W]
    gain: Tensor,  # [rows, C]
    bias: Tensor,  # [rows, C]
    labels: Tensor | None,  # [N]
    mean: Tensor,  # [C]
    var: Tensor,  # [C]
    count: Tensor,  # []
    eps: float,
    activation: str,
    slope: float,
    family: str,
    group: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The vector-Jacobian product of :func:`backward`: cotangents of dy, x and gain. One collective, of 7 C numbers."""
    ops, saved, formula = getattr(torch.ops, family), (x, gain, bias, labels, mean, var), (eps, activation, slope)
    sums = ops.conditional_batch_norm_backward_backward_sums(ddx, dy, *saved, *formula)
    s0, s1, t0, t1, u = sums.unbind(2)  # [rows, C]
    gain_, ddgain_ = (rows_of_batch(t, labels).to(s0.dtype) for t in (gain, ddgain))
    rstd = (var.double() + eps).rsqrt()
    by_sample = torch.stack([gain_ * s0, gain_ * s1, t0, t1, gain_ * u, ddgain_ * s0, ddgain_ * s1])
    means = all_reduce_sum(by_sample.sum(1, dtype=torch.float64), group) / count
    g, gx, a, ax, ag, p, px = means.unbind()  # [C]
    gx, ax, px = rstd * gx, rstd * ax, rstd * px
    terms = torch.stack([
        -(rstd**2) * gx,
        -(rstd**2) * (rstd * (ag - a * g - 3 * ax * gx) + px),
        rstd**2 * (gx * a + ax * g) - rstd * p,
        a,
        ax,
    ]).to(s0.dtype)  # fmt: skip
    ddy, dx = ops.conditional_batch_norm_backward_backward_apply(ddx, ddgain, ddbias, dy, *saved, terms, *formula)
    rstd, a, ax = (t.to(s0.dtype) for t in (rstd, a, ax))
    return ddy, dx, (rstd * (u - a * s0 - rstd * ax * s1)).to(gain.dtype)


def rows_of_batch(table: Tensor, labels: Tensor | None) -> Tensor:
    """``table`` [rows, C] with zeros for the classes that the batch has not.

    Their sums are zero; times what is not finite they would not be.
    """
    if labels is None:
        return table
    present = (labels[:, None] == torch.arange(len(table), device=table.device)).any(0)
    return table.where(present[:, None], 0)


# ---- Registration ----


def _forward_fake(x: Tensor, gain: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean = x.new_empty(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
    return _layout.empty_like(x), mean, torch.empty_like(mean), x.new_empty((), dtype=torch.float64)


def backward_fake(dy: Tensor, x: Tensor, gain: Tensor, bias: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _layout.empty_like(x), gain.new_empty(gain.shape), bias.new_empty(bias.shape)


def backward_backward_fake(
    ddx: Tensor, ddgain: Tensor, ddbias: Tensor, dy: Tensor, x: Tensor, gain: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _layout.empty_like(x), _layout.empty_like(x), gain.new_empty(gain.shape)


def _statistics_fake(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.new_empty(x.shape[1], dtype=torch.float64)
    return mean, torch.empty_like(mean)


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, gain, bias, labels, *arguments = inputs
    ctx.save_for_backward(x, gain, bias, labels, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.arguments = arguments[:-1]


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:8])
    ctx.arguments = inputs[8:]


def _forward_vjp(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    ops = torch.ops.gankernels_synchronized
    return *ops.conditional_batch_norm_backward(dy, *ctx.saved_tensors, *ctx.arguments), *[None] * 7


def _backward_vjp(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    ops = torch.ops.gankernels_synchronized
    second = ops.conditional_batch_norm_backward_backward(*cotangents, *ctx.saved_tensors, *ctx.arguments)
    return *second, *[None] * 10


_PART_FAKES: dict[str, Callable[..., Any]] = {
    "conditional_batch_norm_statistics": _statistics_fake,
    "conditional_batch_norm_backward_sums": lambda dy, x, gain, bias, labels, mean, *_: mean.new_empty(
        (*gain.shape, 2)
    ),
    "conditional_batch_norm_backward_apply": lambda dy, x, *_: _layout.empty_like(x),
    "conditional_batch_norm_backward_backward_sums": (
        lambda ddx, dy, x, gain, bias, labels, mean, *_: mean.new_empty((*gain.shape, 5))
    ),
    "conditional_batch_norm_backward_backward_apply": (
        lambda ddx, ddgain, ddbias, dy, x, *_: (_layout.empty_like(x), _layout.empty_like(x))
    ),
}
if dispatch.has_triton:
    define("gankernels_triton", PARTS, lambda: importlib.import_module("gankernels.ops.conditional_batch_norm.parts"))
for _family in families():
    for _name, _fake in _PART_FAKES.items():
        torch.library.register_fake(f"{_family}::{_name}", _fake)

_library = torch.library.Library("gankernels_synchronized", "DEF")
for _name, _function in (
    ("conditional_batch_norm_forward", forward),
    ("conditional_batch_norm_backward", backward),
    ("conditional_batch_norm_backward_backward", backward_backward),
):
    _library.define(_name + SCHEMAS[_name])
    _library.impl(_name, _function, "CompositeExplicitAutograd")
register_formulas(
    "conditional_batch_norm",
    "gankernels_synchronized",
    {
        "conditional_batch_norm_forward": (_forward_fake, _save_forward, _forward_vjp),
        "conditional_batch_norm_backward": (backward_fake, _save_backward, _backward_vjp),
        "conditional_batch_norm_backward_backward": (backward_backward_fake, None, None),
    },
)
