from gankernels.ops.conv_transpose2d.op import conv_transpose2d

__all__ = ["conv_transpose2d"]
