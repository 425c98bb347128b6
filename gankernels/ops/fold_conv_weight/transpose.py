"""The weight of a convolution as a transposed one takes it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from gankernels import _native, dispatch
from gankernels.ops._layout import prefers_channels_last
from gankernels.ops._registration import Formulas, register_formulas


def transpose_conv_weight(
    weight: Tensor,  # [O, I, K, K]
    channels_last: bool,
) -> Tensor:  # [I, O, K, K]
    """The channels exchanged and the taps turned round, in the layout that is asked for.

    Its own inverse, and its own transpose: differentiable to any order. In one pass by the fold's CPU kernel.
    """
    if dispatch.choose("fold_conv_weight", weight).impl == "cpu":
        return torch.ops.gankernels.transpose_conv_weight(weight, channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return weight.transpose(0, 1).flip(2, 3).contiguous(memory_format=layout)


def _fake(weight: Tensor, channels_last: bool) -> Tensor:
    outputs, inputs, *taps = weight.shape
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty((inputs, outputs, *taps), dtype=weight.dtype, device=weight.device, memory_format=layout)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.channels_last = prefers_channels_last(inputs[0])
    # Under no_weight_gradients there is no cotangent; a weight of zeros would be made for it.
    ctx.set_materialize_grads(False)


def _formulas(ops: SimpleNamespace) -> Formulas:
    def vjp(ctx: Any, dtransposed: Tensor | None) -> tuple[Tensor | None, None]:
        return None if dtransposed is None else ops.transpose_conv_weight(dtransposed, ctx.channels_last), None

    return {"transpose_conv_weight": (_fake, _save, vjp)}


if _native.extension is not None:
    _ops = SimpleNamespace(transpose_conv_weight=torch.ops.gankernels.transpose_conv_weight)
    register_formulas("transpose_conv_weight", "gankernels", _formulas(_ops))
