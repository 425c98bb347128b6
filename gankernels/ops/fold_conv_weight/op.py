"""The public function, and the registration of the fold and of its transpose, each the gradient of the other."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from gankernels import dispatch
from gankernels.errors import InputError
from gankernels.ops._layout import prefers_channels_last
from gankernels.ops._registration import NAMESPACES, Formulas, refuse_transforms, register_op
from gankernels.ops.fold_conv_weight import reference

_OP = "fold_conv_weight"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
#: The largest kernel, a side; csrc/fold_conv_weight.h has the same.
LARGEST_KERNEL = 15


def fold_conv_weight(
    weight: Tensor,  # [O, I, K, K]
    resample: str,
    *,
    channels_last: bool | None = None,
    impl: str | None = None,
) -> Tensor:  # up: [I, O, K+1, K+1]; down: [O, I, K+1, K+1]
    """The weight of a convolution together with the resampling beside it, in one pass.

    ``"up"``: nearest x2, then a convolution with ``weight`` and padding p, is one transposed convolution of stride 2
    and padding K - 1 - p with the result. ``"down"``: a convolution with ``weight`` and padding p, then a 2x2 mean, is
    one convolution of stride 2 and padding p with the result. Both are exact, at the borders too.

    Args:
        weight: with K odd, at most 15, in fp32, bf16, fp16 or fp64. Any strides; contiguous and channels_last are read
            as they are.
        resample: ``"up"`` or ``"down"``.
        channels_last: the result's layout; None keeps weight's.
        impl: force ``"reference"``, ``"cpu"``, ``"triton"`` or ``"cuda"``; None lets dispatch choose.

    Returns:
        The folded weight in weight's dtype; sums are fp32 (fp64 for fp64). Linear, so differentiable to any order:
        the gradient is the transpose, in weight's layout, and nothing is saved for it.

    Raises:
        InputError: a shape, dtype or name is not as above.
        ImplementationUnavailable: ``impl`` cannot run on weight.
        RuntimeError: called under forward-mode AD or a torch.func transform with a fused implementation.

    Example:
        >>> weight = torch.randn(8, 16, 3, 3)
        >>> y = F.conv_transpose2d(torch.randn(1, 16, 4, 4), fold_conv_weight(weight, "up"), stride=2, padding=1)
    """
    _check(weight, resample)
    if channels_last is None:
        channels_last = prefers_channels_last(weight)
    choice = dispatch.choose(_OP, weight, impl)
    if choice.impl == "reference":
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return reference.fold_conv_weight(weight, resample).contiguous(memory_format=layout)
    refuse_transforms(_OP, weight)
    forward = getattr(torch.ops, NAMESPACES[choice.impl]).fold_conv_weight_forward
    return forward(weight, resample == "up", channels_last)


def _check(weight: Tensor, resample: str) -> None:
    if weight.dtype not in _DTYPES:
        raise InputError(f"weight: got dtype {weight.dtype}, expected one of {', '.join(map(str, _DTYPES))}")
    shape = tuple(weight.shape)
    if len(shape) != 4 or shape[2] != shape[3] or shape[2] % 2 == 0 or shape[2] > LARGEST_KERNEL:
        raise InputError(f"weight: got shape {shape}, expected (O, I, K, K) with K odd and at most {LARGEST_KERNEL}")
    if resample not in ("up", "down"):
        raise InputError(f"resample: got {resample!r}, expected 'up' or 'down'")


# ---- Registration ----

SCHEMAS = {
    "fold_conv_weight_forward": "(Tensor weight, bool up, bool channels_last) -> Tensor",
    "fold_conv_weight_backward": "(Tensor dfolded, bool up, bool channels_last) -> Tensor",
}


def _fake(source: Tensor, up: bool, channels_last: bool, grow: int) -> Tensor:
    first, second, taps, _ = source.shape
    shape = (second, first, taps + grow, taps + grow) if up else (first, second, taps + grow, taps + grow)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=source.dtype, device=source.device, memory_format=layout)


def _forward_fake(weight: Tensor, up: bool, channels_last: bool) -> Tensor:
    return _fake(weight, up, channels_last, 1)


def _backward_fake(dfolded: Tensor, up: bool, channels_last: bool) -> Tensor:
    return _fake(dfolded, up, channels_last, -1)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    source, ctx.up, _ = inputs
    ctx.channels_last = prefers_channels_last(source)
    # Under no_weight_gradients there is no cotangent; a weight of zeros would be made for it.
    ctx.set_materialize_grads(False)


def _formulas(ops: SimpleNamespace) -> Formulas:
    def forward_vjp(ctx: Any, dfolded: Tensor | None) -> tuple[Tensor | None, None, None]:
        if dfolded is None:
            return None, None, None
        return ops.fold_conv_weight_backward(dfolded, ctx.up, ctx.channels_last), None, None

    def backward_vjp(ctx: Any, ddweight: Tensor | None) -> tuple[Tensor | None, None, None]:
        if ddweight is None:
            return None, None, None
        return ops.fold_conv_weight_forward(ddweight, ctx.up, ctx.channels_last), None, None

    return {
        "fold_conv_weight_forward": (_forward_fake, _save, forward_vjp),
        "fold_conv_weight_backward": (_backward_fake, _save, backward_vjp),
    }


register_op(_OP, SCHEMAS, _formulas)
