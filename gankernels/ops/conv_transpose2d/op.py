"""The public function. The library's ops are those of :mod:`gankernels.ops._convolution`; Triton's are in fused.py."""

from __future__ import annotations

from torch import Tensor

from gankernels import dispatch
from gankernels.errors import InputError
from gankernels.ops._activation import ACTIVATIONS
from gankernels.ops._convolution_arguments import Pair, check_output, check_tensors, output_size, pair, under_autocast
from gankernels.ops._registration import refuse_transforms, register_op
from gankernels.ops.conv_transpose2d import fused, library, reference

_OP = "conv_transpose2d"


def conv_transpose2d(
    x: Tensor,  # [N, C_in, H, W] or [C_in, H, W]
    weight: Tensor,  # [C_in, C_out / groups, KH, KW]
    bias: Tensor | None = None,  # [C_out]
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
    activation: str = "none",
    slope: float = 0.2,
    impl: str | None = None,
) -> Tensor:
    """``act(torch.nn.functional.conv_transpose2d(x, weight) + bias)``.

    Args:
        x: in fp32, bf16, fp16 or fp64. Under autocast the three are cast as PyTorch casts its convolutions' operands.
        weight: of x's dtype.
        bias: of x's dtype; None adds nothing.
        stride, dilation: a number or a pair.
        padding: ``dilation (kernel - 1) - padding`` zeros stand around x.
        output_padding: rows and columns added at the bottom and the right; smaller than stride or dilation.
        groups: divides C_in and C_out.
        activation: as :func:`gankernels.ops.bias_act`'s; its arithmetic is fp32 (fp64 for fp64).
        slope: of ``"lrelu"`` below zero.
        impl: force ``"reference"``, ``"library"`` or ``"triton"``, which has groups and dilation 1 alone; None lets
            dispatch choose.

    Returns:
        [N, C_out, OH, OW] in x's dtype; channels_last where x or weight is, as PyTorch's. Differentiable to any order
        in x, weight and bias without an activation, twice with one. Saved for backward: x where weight needs a
        gradient, weight where x does, and what bias_act saves.

    Raises:
        InputError: a shape, dtype, device, number or name is not as above.
        ImplementationUnavailable: ``impl`` cannot run on x.
        RuntimeError: called under forward-mode AD or a torch.func transform with the registered ops.

    Example:
        >>> x = torch.randn(8, 128, 8, 8, requires_grad=True)
        >>> y = conv_transpose2d(x, torch.randn(128, 64, 4, 4), stride=2, padding=1, activation="relu")
    """
    activation = "none" if activation == "linear" else activation
    if activation not in ACTIVATIONS:
        raise InputError(f"activation: got {activation!r}, expected one of linear, {', '.join(ACTIVATIONS)}")
    x, weight, bias = under_autocast(x, weight, bias)
    check_tensors(x, weight, bias, groups, transposed=True)
    strides, dilations = pair("stride", stride, 1), pair("dilation", dilation, 1)
    paddings, more = pair("padding", padding, 0), pair("output_padding", output_padding, 0)
    if any(m >= s and m >= d for m, s, d in zip(more, strides, dilations, strict=True)):
        raise InputError(
            f"output_padding: got {output_padding!r}, expected less than the stride {stride!r} or the dilation"
            f" {dilation!r}"
        )
    batch = x if x.dim() == 4 else x.unsqueeze(0)
    check_output(
        output_size(batch.shape, weight.shape, strides, paddings, dilations, True, more, groups), batch, weight
    )
    geometry = (strides, paddings, more, groups, dilations)
    chosen = dispatch.choose(_OP, x, impl).impl
    if chosen == "triton":
        chosen = dispatch.narrowed(_OP, chosen, impl, fused.unsupported(groups, dilations))
    if chosen == "reference":
        y = reference.conv_transpose2d(batch, weight, bias, *geometry, activation=activation, slope=slope)
    else:
        refuse_transforms(_OP, x, weight, *(() if bias is None else (bias,)))
        if chosen == "triton":
            y = fused.conv_transpose2d(batch, weight, bias, strides, paddings, more, activation, slope)
        else:
            y = library.conv_transpose2d(batch, weight, bias, *geometry, activation=activation, slope=slope)
    return y if x.dim() == 4 else y.squeeze(0)


register_op(_OP, {}, lambda ops: {}, impls=("library", "triton"))
