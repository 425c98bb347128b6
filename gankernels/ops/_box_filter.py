"""Sums and means of 2x2 neighbours: what stands before or behind a convolution of stride 2 that resamples."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from gankernels.ops._layout import prefers_channels_last, strides_4d
from gankernels.ops._registration import NAMESPACES, Formulas, define, register_formulas

_NAMESPACE = NAMESPACES["library"]


def box_sum(x: Tensor) -> Tensor:
    """y[i, j] = x[i, j] + x[i, j + 1] + x[i + 1, j] + x[i + 1, j + 1]: [N, C, H, W] to [N, C, H - 1, W - 1]."""
    return torch.ops.gankernels_library.box_filter(x, False, 1)


def box_mean(x: Tensor, *, full: bool) -> Tensor:
    """The mean of four in the place of the sum; ``full`` takes zeros around x: [N, C, H + 1, W + 1]."""
    return torch.ops.gankernels_library.box_filter(x, full, 4)


# ---- Registration ----

SCHEMAS = {"box_filter": "(Tensor x, bool full, int divisor) -> Tensor"}


def box_filter(x: Tensor, full: bool, divisor: int) -> Tensor:
    """Sums of four by ``divisor``, in x's layout."""
    y = torch.ops.aten.avg_pool2d(x, [2, 2], [1, 1], [int(full)] * 2, False, True, divisor)
    strides = strides_4d(y.shape, prefers_channels_last(x))
    return y if y.stride() == strides else y.new_empty_strided(y.shape, strides).copy_(y)


def _fake(x: Tensor, full: bool, divisor: int) -> Tensor:
    grow = 1 if full else -1
    size = [*x.shape[:2], x.shape[2] + grow, x.shape[3] + grow]
    return x.new_empty_strided(size, strides_4d(size, prefers_channels_last(x)))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.full, ctx.divisor = inputs
    ctx.set_materialize_grads(False)


def _formulas(ops: SimpleNamespace) -> Formulas:
    def vjp(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, None, None]:
        # <dy, valid box of x> = <full box of dy, x>: each is the other's transpose.
        return None if dy is None else ops.box_filter(dy, not ctx.full, ctx.divisor), None, None

    return {"box_filter": (_fake, _save, vjp)}


define(_NAMESPACE, SCHEMAS, lambda: sys.modules[__name__])
_ops = SimpleNamespace(box_filter=torch.ops.gankernels_library.box_filter)
register_formulas("box_filter", _NAMESPACE, _formulas(_ops))
