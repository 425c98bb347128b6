"""Launchers of the Triton kernels in parts, for statistics of several ranks: one side of an order's middle step each.

Arguments and results are those of the native ops of the same names; synchronized.py has the middle steps. Sums come
by row of gain. Pixels may be none: another rank may have some.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gankernels.ops import _layout
from gankernels.ops._launch import on_device_of
from gankernels.ops.conditional_batch_norm import kernels, tiles


def conditional_batch_norm_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [C] of x [N, C, H, W], in fp64; NaN where there are no pixels."""
    mean = x.new_full((x.shape[1],), torch.nan, dtype=torch.float64)
    var = mean.clone()
    if x.numel() > 0:
        layout = _layout.memory_format(x)
        with on_device_of(x):
            kernels.launch_statistics(tiles.plan_of(x, layout, 0), x.contiguous(memory_format=layout), mean, var)
    return mean, var


def conditional_batch_norm_backward_sums(
    dy: Tensor,  # [N, C, H, W]
    x: Tensor,  # [N, C, H, W]
    gain: Tensor,  # [rows, C]
    bias: Tensor,  # [rows, C]
    labels: Tensor | None,  # [N]
    mean: Tensor,  # [C]
    var: Tensor,  # [C]
    eps: float,
    activation: str,
    slope: float,
) -> Tensor:
    """s0 and s1: [rows, C, 2]."""
    if x.numel() == 0:
        return var.new_zeros((*gain.shape, 2))
    layout, formula = _layout.memory_format(x), tiles.formula(eps, activation, slope, labels, gain)
    plan = tiles.plan_of(x, layout, 1)
    dy, x = (t.contiguous(memory_format=layout) for t in (dy, x))
    with on_device_of(x):
        sums = kernels.launch_backward_sums(plan, formula, dy, x, gain.contiguous(), bias.contiguous(), mean, var)
    return _by_row(plan, sums, labels, gain)


def conditional_batch_norm_backward_apply(
    dy: Tensor,  # [N, C, H, W]
    x: Tensor,  # [N, C, H, W]
    gain: Tensor,  # [rows, C]
    bias: Tensor,  # [rows, C]
    labels: Tensor | None,  # [N]
    mean: Tensor,  # [C]
    var: Tensor,  # [C]
    terms: Tensor,  # [2, C]
    eps: float,
    activation: str,
    slope: float,
) -> Tensor:
    """dx, with x's dtype and layout."""
    dx = _layout.empty_like(x)
    if x.numel() == 0:
        return dx
    layout, formula = _layout.memory_format(x), tiles.formula(eps, activation, slope, labels, gain)
    plan = tiles.plan_of(x, layout, 1)
    dy, x = (t.contiguous(memory_format=layout) for t in (dy, x))
    small = (t.contiguous() for t in (gain, bias, mean, var, terms))
    with on_device_of(x):
        kernels.launch_backward(plan, formula, True, dy, x, *small, dx)
    return dx


def conditional_batch_norm_backward_backward_sums(
    ddx: Tensor,  # [N, C, H, W]
    dy: Tensor,  # [N, C, H, W]
    x: Tensor,  # [N, C, H, W]
    gain: Tensor,  # [rows, C]
    bias: Tensor,  # [rows, C]
    labels: Tensor | None,  # [N]
    mean: Tensor,  # [C]
    var: Tensor,  # [C]
    eps: float,
    activation: str,
    slope: float,
) -> Tensor:
    """s0, s1, t0, t1 and u: [rows, C, 5]."""
    if x.numel() == 0:
        return var.new_zeros((*gain.shape, 5))
    layout, formula = _layout.memory_format(x), tiles.formula(eps, activation, slope, labels, gain)
    plan = tiles.plan_of(x, layout, 2)
    ddx, dy, x = (t.contiguous(memory_format=layout) for t in (ddx, dy, x))
    small = (t.contiguous() for t in (gain, bias, mean, var))
    with on_device_of(x):
        sums = kernels.launch_backward_backward_sums(plan, formula, ddx, dy, x, *small)
    return _by_row(plan, sums, labels, gain)


def conditional_batch_norm_backward_backward_apply(
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
    terms: Tensor,  # [5, C]
    eps: float,
    activation: str,
    slope: float,
) -> tuple[Tensor, Tensor]:
    """ddy and dx, with x's dtype and layout."""
    ddy, dx = _layout.empty_like(x), _layout.empty_like(x)
    if x.numel() == 0:
        return ddy, dx
    layout, formula = _layout.memory_format(x), tiles.formula(eps, activation, slope, labels, gain)
    plan = tiles.plan_of(x, layout, 2)
    ddx, dy, x = (t.contiguous(memory_format=layout) for t in (ddx, dy, x))
    ddgain, ddbias, *small = (t.contiguous() for t in (ddgain, ddbias, gain, bias, mean, var, terms))
    with on_device_of(x):
        kernels.launch_backward_backward(plan, formula, True, ddx, ddgain, ddbias, dy, x, *small, ddy, dx)
    return ddy, dx


def _by_row(plan: tiles.Plan, sums: Tensor, labels: Tensor | None, gain: Tensor) -> Tensor:
    """Partial sums [quantities, N * chunks, C] -> [rows, C, quantities]."""
    of_rows, sums = kernels.launch_row_sums(plan, sums, labels, len(gain))
    return sums.unflatten(1, (of_rows.n, of_rows.chunks)).sum(2).permute(1, 2, 0).contiguous()
