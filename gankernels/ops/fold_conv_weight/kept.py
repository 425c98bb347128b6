"""Folds of weights that stay as they are: made once, and given to every convolution with the weight.

So are transposed weights, which stand in the place of folds where a box filter does the resampling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from gankernels import dispatch
from gankernels.ops.fold_conv_weight.op import fold_conv_weight
from gankernels.ops.fold_conv_weight.transpose import transpose_conv_weight

# weight -> what decides about its fold -> the fold, for as long as the weight lives
_folds: Any = WeakTensorKeyDictionary()


def keep_folds(weight: Tensor) -> None:
    """Declare that nobody writes to ``weight`` from now on: its folds are kept with it.

    For results of computations, which are replaced and not changed. A parameter is none: a write through ``.data``, as
    averages of weights are kept in many programs, leaves no trace.
    """
    _folds[weight] = {}


def folded_weight(weight: Tensor, resample: str, channels_last: bool) -> Tensor:
    """``fold_conv_weight(weight, resample, channels_last=channels_last)``, kept if weight's folds are.

    A kept fold is part of the graph of each forward that takes it, as the weight is: their gradients add up in it and
    are unfolded once. The fold saves nothing for its backward, which a first backward could free.
    """
    return _kept(
        weight, (resample, channels_last), lambda: fold_conv_weight(weight, resample, channels_last=channels_last)
    )


def transposed_weight(weight: Tensor, channels_last: bool) -> Tensor:
    """``transpose_conv_weight(weight, channels_last)``, kept as :func:`folded_weight` is."""
    return _kept(weight, ("transpose", channels_last), lambda: transpose_conv_weight(weight, channels_last))


def _kept(weight: Tensor, what: tuple[Any, ...], make: Callable[[], Tensor]) -> Tensor:
    kept = None if torch.compiler.is_compiling() or _capturing(weight) else _folds.get(weight)
    if kept is None:
        return make()
    wants_gradient = torch.is_grad_enabled() and weight.requires_grad
    impl = dispatch.choose("fold_conv_weight", weight).impl
    key = (*what, wants_gradient, torch.is_inference_mode_enabled(), impl)
    if key not in kept:
        kept[key] = make()
    return kept[key]


def _capturing(weight: Tensor) -> bool:
    """Whether the fold would lie in a CUDA graph's memory, which other graphs cannot count on."""
    return weight.is_cuda and torch.cuda.is_current_stream_capturing()
