from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gankernels.errors import InputError
from gankernels.nn._statistics import affine
from gankernels.ops.conditional_batch_norm import conditional_batch_norm


class InstanceNorm2d(torch.nn.InstanceNorm2d):
    """``torch.nn.InstanceNorm2d`` with the activation fused behind it: statistics for each sample and channel.

    The batch norm's kernels, ``per_sample``: no copy in either layout.

    Args:
        num_features: C, the channels of the input.
        eps, momentum, affine, track_running_stats, device, dtype, bias: as torch's, with its defaults (no parameters,
            no running statistics); so are the parameters, the buffers and their names: a state dict fits both.
        activation: ``"none"``, ``"relu"`` or ``"lrelu"``.
        slope: of ``"lrelu"`` below zero.

    Shape:
        x [N, C, H, W] or [C, H, W], contiguous or channels_last, fp32, bf16, fp16 or fp64; the output has x's shape,
        dtype and layout. Differentiable twice.

    Example:
        >>> norm = gankernels.nn.InstanceNorm2d(64, affine=True, activation="relu")
        >>> y = norm(torch.randn(1, 64, 16, 16))
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "none",
        slope: float = 0.2,
        **torchs: Any,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **torchs)  # type: ignore[arg-type]
        self.activation = activation
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` [N, C, H, W] or [C, H, W].

        Raises:
            InputError: another number of dimensions or channels, or one pixel in training.
        """
        if x.dim() not in (3, 4) or x.shape[-3] != self.num_features:
            raise InputError(f"x: got shape {tuple(x.shape)}, expected [N, {self.num_features}, H, W] or without N")
        if x.dim() == 3:
            return self(x.unsqueeze(0)).squeeze(0)
        return conditional_batch_norm(
            x,
            *affine(self, x),
            running_mean=self.running_mean,
            running_var=self.running_var,
            training=self.training or not self.track_running_stats,
            momentum=self.momentum or 0.0,
            eps=self.eps,
            activation=self.activation,
            slope=self.slope,
            per_sample=True,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation}"
