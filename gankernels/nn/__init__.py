"""Drop-in modules on the fused ops."""

from gankernels.nn.bias_act import BiasAct
from gankernels.nn.conditional_batch_norm import ConditionalBatchNorm2d

__all__ = ["BiasAct", "ConditionalBatchNorm2d"]
