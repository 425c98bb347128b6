from gankernels.ops.conditional_batch_norm.op import conditional_batch_norm

__all__ = ["conditional_batch_norm"]
