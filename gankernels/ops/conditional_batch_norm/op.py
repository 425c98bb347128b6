"""stub"""

import torch
from gankernels.ops.conditional_batch_norm import reference


def conditional_batch_norm(
    x,
    gain,
    bias,
    *,
    running_mean=None,
    running_var=None,
    training=True,
    momentum=0.1,
    eps=1e-5,
    activation="none",
    slope=0.2,
    process_group=None,
    impl=None,
):
    y, mean, var = reference.conditional_batch_norm(
        x,
        gain,
        bias,
        None if training else running_mean,
        None if training else running_var,
        eps=eps,
        activation=activation,
        slope=slope,
    )
    if training and running_mean is not None:
        with torch.no_grad():
            n = x.numel() / x.shape[1]
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(var * (n / (n - 1)), momentum)
    return y
