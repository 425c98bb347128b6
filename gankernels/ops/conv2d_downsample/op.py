"""The public function and its routes. It is made of registered ops, and needs no autograd formula of its own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from gankernels import dispatch
from gankernels.ops._registration import refuse_transforms, register_op
from gankernels.ops._resampled_convolution import checked, refuse_empty, route_of
from gankernels.ops.conv2d_downsample import library, reference

_OP = "conv2d_downsample"


def conv2d_downsample(
    x: Tensor,  # [N, I, H, W]
    weight: Tensor,  # [O, I, KH, KW]
    bias: Tensor | None = None,  # [O]
    *,
    padding: int | Sequence[int] = 1,
    activation: str = "none",
    slope: float = 0.2,
    impl: str | None = None,
) -> Tensor:  # [N, O, (H + padding - KH + 1) // 2, (W + padding - KW + 1) // 2]
    """``act(avg_pool2d(conv2d(x, weight, bias, padding), 2))`` without the picture in between.

    A 3x3 convolution and a 2x2 mean are one 4x4 convolution of stride 2, exactly, with 2.25 times fewer
    multiplications; K x K becomes (K+1) x (K+1). See :func:`gankernels.ops.fold_conv_weight` and :func:`route`. On a
    CPU in channels_last the kernel stays K x K, with 4 times fewer, and a 2x2 box filter runs on the large side.
    The mean drops a last odd row or column, as torch's does.

    Args:
        x: contiguous or channels_last, in fp32, bf16, fp16 or fp64; other strides are copied.
        weight: of x's dtype (under autocast, of any). A square odd kernel is folded, others are not: see
            :func:`route`.
        bias: added to the convolution, or None.
        padding: zeros around x: a number, (height, width) or (left, right, top, bottom); x is copied where two opposite
            sides differ.
        activation: behind the mean, as :func:`gankernels.ops.bias_act`'s, with ``"none"`` for none; bias and activation
            are then one pass over the output.
        slope: of ``"lrelu"`` below zero.
        impl: force ``"reference"`` or ``"library"`` (cuDNN's or oneDNN's convolution); None lets dispatch choose.

    Returns:
        y in x's dtype, channels_last where x or weight is. Differentiable to any order in x, weight and bias, and
        twice with an activation. Saved for backward: x, the weight as it is convolved (folded, or not), and y where
        there is an activation (x and bias of :func:`bias_act` for a smooth one). Weight gradients obey
        :func:`gankernels.no_weight_gradients`.

    Raises:
        InputError: a shape, dtype, device, number or name is not as above.
        ImplementationUnavailable: ``impl`` is not one of the two.
        RuntimeError: called under forward-mode AD or a torch.func transform with ``"library"``.

    Example:
        >>> x, weight = torch.randn(8, 32, 32, 32), torch.randn(64, 32, 3, 3)
        >>> y = conv2d_downsample(x, weight, torch.zeros(64), activation="lrelu")  # [8, 64, 16, 16]
    """
    call = checked(x, weight, bias, padding, activation, slope)
    left, right, top, bottom = call.padding
    size = (
        (x.shape[2] + top + bottom - weight.shape[2] + 1) // 2,
        (x.shape[3] + left + right - weight.shape[3] + 1) // 2,
    )
    refuse_empty(x, "the kernel and the mean", size if x.shape[2] and x.shape[3] else (0, 0))
    choice = dispatch.choose(_OP, x, impl)
    if choice.impl == "reference":
        return reference.conv2d_downsample(
            call.x, call.weight, call.bias, padding=call.padding, activation=call.activation, slope=slope
        )
    refuse_transforms(_OP, x, weight, *(() if bias is None else (bias,)))
    pixels = x.shape[0] * size[0] * size[1]
    kernel_size, channels = (weight.shape[2], weight.shape[3]), weight.shape[0]
    chosen = route(
        kernel_size, call.padding, pixels, x.device.type, channels=channels, channels_last=call.channels_last
    )
    return _ROUTES[chosen.name](call)


#: Which way a call goes, and why: as :func:`route_of` says, where the small side is the output.
route = partial(
    route_of,
    small_side="a 1x1 convolution commutes with a mean",
    boxed="means of 2x2 before a convolution of stride 2",
    folded="one convolution of stride 2",
)

_ROUTES = {"folded": library.folded, "boxed": library.boxed, "small side": library.small_side, "plain": library.plain}

register_op(_OP, {}, lambda ops: {}, impls=("library",))
