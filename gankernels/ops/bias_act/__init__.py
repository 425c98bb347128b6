from gankernels.ops.bias_act.op import bias_act

__all__ = ["bias_act"]
