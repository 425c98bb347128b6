"""The public function. What it registers is shared by all convolutions: :mod:`gankernels.ops._convolution`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from gankernels import dispatch
from gankernels.errors import InputError
from gankernels.ops._convolution import convolution
from gankernels.ops._convolution_arguments import Pair, check_output, check_tensors, output_size, pair, under_autocast
from gankernels.ops._registration import refuse_transforms, register_op
from gankernels.ops.conv2d import reference

_OP = "conv2d"


def conv2d(
    x: Tensor,  # [N, C_in, H, W] or [C_in, H, W]
    weight: Tensor,  # [C_out, C_in / groups, KH, KW]
    bias: Tensor | None = None,  # [C_out]
    *,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    impl: str | None = None,
) -> Tensor:
    """``torch.nn.functional.conv2d`` whose every order of differentiation is one library call for each operand.

    For gradient penalties by double backprop, above all of grouped convolutions: PyTorch's own double backward makes
    the weight gradient of each group by a convolution of its own.

    Args:
        x: in fp32, bf16, fp16 or fp64. Under autocast the three are cast as PyTorch casts its convolutions' operands.
        weight: of x's dtype.
        bias: of x's dtype; None adds nothing.
        stride, dilation: a number or a pair.
        padding: a number or a pair, ``"valid"``, or ``"same"`` with stride 1.
        groups: divides C_in and C_out.
        impl: force ``"reference"`` or ``"library"``; None lets dispatch choose.

    Returns:
        [N, C_out, OH, OW] in x's dtype; channels_last where x or weight is, as PyTorch's. Differentiable to any order
        in x, weight and bias. Saved for backward: x where weight needs a gradient, weight where x does. On a CPU
        without 16-bit arithmetic, bf16 and fp16 are computed in fp32 and rounded once.

    Raises:
        InputError: a shape, dtype, device or number is not as above.
        ImplementationUnavailable: ``impl`` cannot run on x.
        RuntimeError: called under forward-mode AD or a torch.func transform with the registered ops.

    Example:
        >>> x = torch.randn(8, 96, 16, 16, requires_grad=True)
        >>> y = conv2d(x, torch.randn(96, 8, 3, 3), padding=1, groups=12)
    """
    x, weight, bias = under_autocast(x, weight, bias)
    check_tensors(x, weight, bias, groups, transposed=False)
    strides, dilations = pair("stride", stride, 1), pair("dilation", dilation, 1)
    before, after = _paddings(padding, weight, strides, dilations)
    batch = x if x.dim() == 4 else x.unsqueeze(0)
    if before != after:
        batch = F.pad(batch, (0, after[1] - before[1], 0, after[0] - before[0]))
    size = output_size(batch.shape, weight.shape, strides, before, dilations, False, [0, 0], groups)
    check_output(size, batch, weight)
    if dispatch.choose(_OP, x, impl).impl == "reference":
        return reference.conv2d(x, weight, bias, stride=strides, padding=padding, dilation=dilations, groups=groups)
    refuse_transforms(_OP, x, weight, *(() if bias is None else (bias,)))
    y = convolution(batch, weight, bias, stride=strides, padding=before, dilation=dilations, groups=groups)
    return y if x.dim() == 4 else y.squeeze(0)


def _paddings(
    padding: Pair | str, weight: Tensor, stride: list[int], dilation: list[int]
) -> tuple[list[int], list[int]]:
    """Zeros before and after, for height and width. They differ for ``"same"`` and an even kernel: one more after."""
    if padding == "valid":
        return [0, 0], [0, 0]
    if padding == "same":
        if stride != [1, 1]:
            raise InputError(f"padding: got 'same' with stride {tuple(stride)}, expected stride 1")
        total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        return [t // 2 for t in total], [t - t // 2 for t in total]
    if isinstance(padding, str):
        raise InputError(f"padding: got {padding!r}, expected a number, a pair, 'same' or 'valid'")
    zeros = pair("padding", padding, 0)
    return zeros, zeros


register_op(_OP, {}, lambda ops: {}, impls=("library",))
