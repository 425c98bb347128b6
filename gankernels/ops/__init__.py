"""The fused ops. Each is differentiable twice, keeps the layout of its input, and takes ``impl=`` to force a kernel."""

from gankernels.ops.bias_act import bias_act
from gankernels.ops.conditional_batch_norm import conditional_batch_norm
from gankernels.ops.conv2d import conv2d
from gankernels.ops.conv_transpose2d import conv_transpose2d
from gankernels.ops.spectral_norm import spectral_norm

__all__ = ["bias_act", "conditional_batch_norm", "conv2d", "conv_transpose2d", "spectral_norm"]
