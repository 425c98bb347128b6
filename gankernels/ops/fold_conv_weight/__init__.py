from gankernels.ops.fold_conv_weight.op import fold_conv_weight

__all__ = ["fold_conv_weight"]
