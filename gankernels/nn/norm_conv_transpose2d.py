from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gankernels import dispatch
from gankernels.errors import InputError
from gankernels.nn.batch_norm import BatchNorm2d
from gankernels.nn.conditional_batch_norm import ConditionalBatchNorm2d
from gankernels.nn.conv2d import ConvTranspose2d
from gankernels.ops._activation import PIECEWISE_LINEAR
from gankernels.ops._collectives import several_ranks
from gankernels.ops._convolution_arguments import under_autocast
from gankernels.ops._registration import refuse_transforms
from gankernels.ops.conditional_batch_norm.op import update_running_statistics
from gankernels.ops.conv_transpose2d import fused
from gankernels.ops.conv_transpose2d.normalised import conditional_batch_norm_conv_transpose2d

#: Pixels of a picture below which the op's blocks of rows, which hold one picture each, stay half empty.
LEAST_PIXELS = 64


class NormConvTranspose2d(nn.Module):
    """A batch norm with its activation and the transposed convolution behind it: a stage of a DCGAN's generator.

    ``y = conv(norm(x, *condition))``, and on Triton one op: the convolution normalises x while it loads it, so that
    what the norm returns is neither written nor kept for backward. :func:`why_apart` says when it runs the two layers.

    Args:
        norm: a :class:`BatchNorm2d` or a :class:`ConditionalBatchNorm2d`, with its activation.
        conv: a :class:`ConvTranspose2d`, with or without bias and activation, spectrally normed or not.

    Shape:
        x [N, C_in, H, W] -> [N, C_out, OH, OW] in the dtypes of both layers; the output is channels_last where x or the
        weight is. Differentiable twice in x, the condition and all parameters.

    State:
        norm and conv, as they are.

    Raises:
        InputError: the layers are not such, or do not have the same number of channels between them.

    Example:
        >>> norm = ConditionalBatchNorm2d(128, num_classes=10, activation="relu")
        >>> stage = NormConvTranspose2d(norm, ConvTranspose2d(128, 64, 4, stride=2, padding=1))
        >>> y = stage(torch.randn(8, 128, 8, 8), torch.arange(8))  # [8, 64, 16, 16]
    """

    def __init__(self, norm: BatchNorm2d | ConditionalBatchNorm2d, conv: ConvTranspose2d) -> None:
        super().__init__()
        if not isinstance(norm, BatchNorm2d | ConditionalBatchNorm2d):
            raise InputError(f"norm: got {type(norm).__name__}, expected BatchNorm2d or ConditionalBatchNorm2d")
        if not isinstance(conv, ConvTranspose2d):
            raise InputError(f"conv: got {type(conv).__name__}, expected gankernels.nn.ConvTranspose2d")
        if norm.num_features != conv.in_channels:
            raise InputError(f"conv: got {conv.in_channels} channels in, expected {norm.num_features}, as the norm has")
        self.norm = norm
        self.conv = conv

    def forward(self, x: Tensor, *condition: Tensor) -> Tensor:
        """The stage of x [N, C_in, H, W]; ``condition`` is what the norm takes besides: labels [N], or vectors."""
        return norm_conv_transpose2d(self.norm, self.conv, x, *condition)


def norm_conv_transpose2d(norm: nn.Module, conv: nn.Module, x: Tensor, *condition: Tensor) -> Tensor:
    """``conv(norm(x, *condition))``, as :class:`NormConvTranspose2d`, of layers that stand apart in a model."""
    if why_apart(norm, conv, x) is not None:
        return conv(norm(x, *condition))
    assert isinstance(norm, BatchNorm2d | ConditionalBatchNorm2d)
    assert isinstance(conv, ConvTranspose2d)
    # Read once: a spectral norm iterates with every read.
    _, weight, bias = under_autocast(x, conv.weight, conv.bias)
    if weight.dtype != x.dtype:
        return conv(norm(x, *condition))  # which raises
    gain, shift, labels = norm._affine(x, *condition)
    if labels is not None:
        gain, shift = F.embedding(labels, gain), F.embedding(labels, shift)
    refuse_transforms("conv_transpose2d", x, gain, shift, weight)
    given = norm._arguments()
    running_mean, running_var, training = given["running_mean"], given["running_var"], given["training"]
    block = conditional_batch_norm_conv_transpose2d(
        x,
        gain,
        shift,
        None if training else running_mean,
        None if training else running_var,
        training,
        norm.eps,
        norm.activation,
        norm.slope,
        weight,
        bias,
        conv.stride,
        conv.padding,  # type: ignore[arg-type]
        conv.output_padding,
        conv.activation,
        conv.slope,
    )
    if training and running_mean is not None:
        count = x.shape[0] * x.shape[2] * x.shape[3]
        update_running_statistics(running_mean, running_var, block.mean, block.var, count, given["momentum"])
    return block.y


def why_apart(norm: nn.Module, conv: nn.Module, x: Tensor) -> str | None:
    """Why the two layers run one after the other on x, in a few words; None if they are one op.

    Besides what is asked here, dispatch decides: the op is Triton's, and runs where Triton is chosen (measured to be
    fastest by ``gankernels tune``, or forced) for the transposed convolution of x.
    """
    if type(norm).forward not in (BatchNorm2d.forward, ConditionalBatchNorm2d.forward):
        return f"the norm is a {type(norm).__name__}"
    if type(conv).forward is not ConvTranspose2d.forward:
        return f"the convolution is a {type(conv).__name__}"
    assert isinstance(norm, BatchNorm2d | ConditionalBatchNorm2d)
    assert isinstance(conv, ConvTranspose2d)
    chosen = dispatch.choose("conv_transpose2d", x).impl
    if chosen != "triton":
        return f"transposed convolutions run on {chosen}"
    if why_not := fused.unsupported(conv.groups, conv.dilation):
        return why_not
    if conv.activation not in PIECEWISE_LINEAR or (conv.activation == "lrelu" and conv.slope <= 0):
        return f"the output does not tell the sign of what {conv.activation} was given"
    if _hooked(norm) or _hooked(conv):
        return "a hook wants to see the layers"
    if (norm.training or norm.running_mean is None) and several_ranks(norm.process_group):
        return "the statistics are those of several ranks"
    # What is wrong is said by the layers.
    if x.dim() != 4 or x.shape[1] != conv.in_channels or x.numel() == x.shape[1] or x.numel() == 0:
        return f"x has shape {tuple(x.shape)}"
    if x.shape[2] * x.shape[3] < LEAST_PIXELS:
        return f"{x.shape[2] * x.shape[3]} pixels a picture, of which {LEAST_PIXELS} fill a block of the kernel"
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype not in (torch.get_autocast_dtype(device), torch.float64):
        return f"the norm is in {x.dtype}, the convolution in {torch.get_autocast_dtype(device)}"
    return None


def _hooked(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or nn.modules.module._has_any_global_hook()
