from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gankernels.nn._statistics import BatchStatistics, affine
from gankernels.ops.conditional_batch_norm import conditional_batch_norm

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class BatchNorm2d(BatchStatistics, torch.nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d`` with the activation fused behind it, and statistics of several ranks.

    The conditional norm's kernels, with one gain and one bias for all samples.

    Args:
        num_features: C, the channels of the input.
        eps, momentum, affine, track_running_stats, device, dtype, bias: as torch's; so are the parameters, the buffers
            and their names: a state dict fits both.
        activation: ``"none"``, ``"relu"`` or ``"lrelu"``.
        slope: of ``"lrelu"`` below zero.
        process_group: take the statistics over the samples of all its ranks; :func:`gankernels.nn.synchronize` sets it
            in a whole model. (torch's ``convert_sync_batchnorm`` would drop the activation.)

    Shape:
        x [N, C, H, W], contiguous or channels_last, fp32, bf16, fp16 or fp64; the output has x's shape, dtype and
        layout. Differentiable twice.

    Example:
        >>> norm = gankernels.nn.BatchNorm2d(64, activation="relu")
        >>> y = norm(torch.randn(8, 64, 16, 16))
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "none",
        slope: float = 0.2,
        process_group: ProcessGroup | None = None,
        **torchs: Any,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **torchs)
        self.activation = activation
        self.slope = slope
        self.process_group = process_group

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` [N, C, H, W]."""
        self._check_input_dim(x)
        gain, bias, _ = self._affine(x)
        return conditional_batch_norm(x, gain, bias, **self._arguments())

    def _affine(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """As :meth:`ConditionalBatchNorm2d._affine`."""
        return *affine(self, x), None

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation}"
