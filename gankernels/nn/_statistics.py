"""What the norms with batch statistics share."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class BatchStatistics(nn.Module):
    """A norm whose statistics in training are those of the batch, with torch's running statistics.

    Its subclasses have the attributes of ``torch.nn.BatchNorm2d``, and ``activation``, ``slope`` and
    ``process_group``.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    track_running_stats: bool
    momentum: float | None
    eps: float
    activation: str
    slope: float
    process_group: ProcessGroup | None

    def _arguments(self) -> dict[str, Any]:
        """The keyword arguments of the op; counts this batch."""
        momentum: float | Tensor = 0.0 if self.momentum is None else self.momentum
        tracking = self.training and self.track_running_stats
        if tracking and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the average of all batches
                momentum = self.num_batches_tracked.reciprocal()
        use_running = tracking or not self.training
        return {
            "running_mean": self.running_mean if use_running else None,
            "running_var": self.running_var if use_running else None,
            "training": self.training or self.running_mean is None,
            "momentum": momentum,
            "eps": self.eps,
            "activation": self.activation,
            "slope": self.slope,
            "process_group": self.process_group,
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # A process group cannot be copied: a copy of the module is in the same one.
        memo[id(self.process_group)] = self.process_group
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__setstate__(copy.deepcopy(self.__dict__, memo))
        return copied


def affine(norm: nn.modules.batchnorm._NormBase, x: Tensor) -> tuple[Tensor, Tensor]:
    """The weight and bias of a norm of torch's kind, or what stands for them, for x: [N, C], views of one row."""
    weight = norm.weight if norm.weight is not None else torch.ones((), device=x.device)
    bias = norm.bias if norm.bias is not None else torch.zeros((), device=x.device)
    return weight.expand(x.shape[0], norm.num_features), bias.expand(x.shape[0], norm.num_features)
