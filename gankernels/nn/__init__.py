"""Drop-in modules on the fused ops."""

from gankernels.nn.conditional_batch_norm import ConditionalBatchNorm2d

__all__ = ["ConditionalBatchNorm2d"]
