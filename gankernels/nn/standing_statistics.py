from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from gankernels.errors import InputError
from gankernels.nn._statistics import BatchStatistics


@contextlib.contextmanager
def standing_statistics(model: nn.Module) -> Iterator[None]:
    """Re-estimate the running statistics of a model's batch norms from the forward passes in this block.

    In the block the batch norms (ours and torch's) are in training mode, the rest of the model stays as it is; behind
    it, the running statistics are the plain average over the block's batches, and every module is in the mode that it
    was in. BigGAN samples with such "standing statistics", of 16 batches or more (arXiv 1809.11096, appendix A): those
    that training leaves lag behind the weights, and an average of weights (EMA) has none of its own. A block that
    raises, or that ran no forward pass through a norm, leaves that norm's statistics as they were.

    Args:
        model: holds at least one batch norm with running statistics.

    Raises:
        InputError: it does not.

    Example:
        >>> generator.eval()
        >>> with torch.no_grad(), gankernels.nn.standing_statistics(generator):
        ...     for _ in range(16):
        ...         generator(torch.randn(64, generator.dim_z), torch.randint(10, (64,)))
        >>> pictures = generator(z, y)
    """
    norms = [m for m in model.modules() if _keeps_statistics(m)]
    if not norms:
        raise InputError(f"model: got {type(model).__name__} without a batch norm that has running statistics")
    before = [([b.clone() for b in norm.buffers(recurse=False)], norm.momentum, norm.training) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()  # type: ignore[operator]
        norm.momentum = None  # type: ignore[assignment]  # the average of all batches
        norm.training = True  # of the norm alone, not of what it holds
    done = False
    try:
        yield
        done = True
    finally:
        for norm, (buffers, momentum, training) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.training = training
            if not done or norm.num_batches_tracked == 0:
                with torch.no_grad():
                    for buffer, old in zip(norm.buffers(recurse=False), buffers, strict=True):
                        buffer.copy_(old)


def _keeps_statistics(module: nn.Module) -> bool:
    is_batch_norm = isinstance(module, (BatchStatistics, nn.modules.batchnorm._BatchNorm))
    return is_batch_norm and module.running_mean is not None
