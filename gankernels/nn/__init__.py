"""Drop-in modules on the fused ops."""

from gankernels.nn.conditional_batch_norm import ConditionalBatchNorm2d
from gankernels.nn.spectral_norm import spectral_norm
from gankernels.nn.spectral_norm_group import SpectralNormGroup

__all__ = ["ConditionalBatchNorm2d", "SpectralNormGroup", "spectral_norm"]
