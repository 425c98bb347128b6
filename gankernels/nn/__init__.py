"""Drop-in modules on the fused ops."""

from gankernels.nn.batch_norm import BatchNorm2d
from gankernels.nn.bias_act import BiasAct
from gankernels.nn.conditional_batch_norm import ConditionalBatchNorm2d
from gankernels.nn.conv2d import Conv2d, ConvTranspose2d
from gankernels.nn.downsample_conv2d import DownsampleConv2d
from gankernels.nn.instance_norm import InstanceNorm2d
from gankernels.nn.norm_conv_transpose2d import NormConvTranspose2d
from gankernels.nn.residual import ResBlockDown, ResBlockUp
from gankernels.nn.spectral_norm import spectral_norm
from gankernels.nn.spectral_norm_group import SpectralNormGroup
from gankernels.nn.standing_statistics import standing_statistics
from gankernels.nn.synchronize import synchronize
from gankernels.nn.upsample_conv2d import UpsampleConv2d

__all__ = [
    "BatchNorm2d",
    "BiasAct",
    "ConditionalBatchNorm2d",
    "Conv2d",
    "ConvTranspose2d",
    "DownsampleConv2d",
    "InstanceNorm2d",
    "NormConvTranspose2d",
    "ResBlockDown",
    "ResBlockUp",
    "SpectralNormGroup",
    "UpsampleConv2d",
    "spectral_norm",
    "standing_statistics",
    "synchronize",
]
