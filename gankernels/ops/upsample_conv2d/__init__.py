from gankernels.ops.upsample_conv2d.op import upsample_conv2d

__all__ = ["upsample_conv2d"]
