from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from gankernels.errors import InputError
from gankernels.nn._statistics import BatchStatistics

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_Module = TypeVar("_Module", bound=nn.Module)


def synchronize(model: _Module, process_group: ProcessGroup | None = None) -> _Module:
    """Let the batch norms of a model take their statistics over all ranks of a process group, in place.

    One collective forward and one backward for each norm; a group of one rank costs nothing. All ranks must run the
    same passes. Wrap the model in ``DistributedDataParallel`` afterwards, with ``broadcast_buffers=False``: the running
    statistics are the same on all ranks.

    Args:
        model: its :class:`BatchNorm2d` and :class:`ConditionalBatchNorm2d` are set, all others are left alone.
        process_group: None takes the default group, of all ranks.

    Returns:
        The model.

    Raises:
        InputError: there is no default group, or the model has a batch norm of torch's that would stay unsynchronised.
    """
    if process_group is None:
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            raise InputError("process_group: got None, expected a group, or torch.distributed to be initialised")
        process_group = torch.distributed.group.WORLD
    for name, module in model.named_modules():
        if isinstance(module, BatchStatistics):
            module.process_group = process_group
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
            raise InputError(
                f"model: got a {type(module).__name__} at {name!r}, expected gankernels.nn.BatchNorm2d, which can be "
                "synchronised, or torch.nn.SyncBatchNorm"
            )
    return model
