"""The fused ops. Each is differentiable twice, keeps the layout of its input, and takes ``impl=`` to force a kernel."""

from gankernels.ops.bias_act import bias_act
from gankernels.ops.conditional_batch_norm import conditional_batch_norm
from gankernels.ops.conv2d import conv2d
from gankernels.ops.conv2d_downsample import conv2d_downsample
from gankernels.ops.conv_transpose2d import conv_transpose2d
from gankernels.ops.fold_conv_weight import fold_conv_weight
from gankernels.ops.spectral_norm import spectral_norm
from gankernels.ops.upsample_conv2d import upsample_conv2d

__all__ = [
    "bias_act",
    "conditional_batch_norm",
    "conv2d",
    "conv2d_downsample",
    "conv_transpose2d",
    "fold_conv_weight",
    "spectral_norm",
    "upsample_conv2d",
]
