from gankernels.ops.conv2d_downsample.op import conv2d_downsample

__all__ = ["conv2d_downsample"]
