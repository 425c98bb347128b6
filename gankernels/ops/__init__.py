"""The fused ops. Each is differentiable twice, keeps the layout of its input, and takes ``impl=`` to force a kernel."""

from gankernels.ops.bias_act import bias_act
from gankernels.ops.conditional_batch_norm import conditional_batch_norm
from gankernels.ops.fold_conv_weight import fold_conv_weight
from gankernels.ops.spectral_norm import spectral_norm

__all__ = ["bias_act", "conditional_batch_norm", "fold_conv_weight", "spectral_norm"]
