from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gankernels.errors import InputError
from gankernels.nn._statistics import affine
from gankernels.ops.conditional_batch_norm import conditional_batch_norm


class InstanceNorm2d(torch.nn.InstanceNorm2d):
    """``torch.nn.InstanceNorm2d`` with the activation fused behind it: statistics for each sample and channel.

    The batch norm's kernels, to which a batch of N pictures is one picture of N C channels. That is a view of
    contiguous x, and of x with one sample. Several samples in channels_last are copied to contiguous and back, which
    costs 4 passes over x more, forward and backward alike.

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
            return self._normalize(x.unsqueeze(0)).squeeze(0)
        return self._normalize(x)

    def _normalize(self, x: Tensor) -> Tensor:
        gain, bias = affine(self, x)
        formula: dict[str, Any] = {"eps": self.eps, "activation": self.activation, "slope": self.slope}
        running = (self.running_mean, self.running_var)
        if self.track_running_stats and not self.training:
            return conditional_batch_norm(
                x, gain, bias, running_mean=running[0], running_var=running[1], training=False, **formula
            )
        n, c, h, w = x.shape
        if h * w == 1:
            raise InputError(f"x: got shape {tuple(x.shape)}, expected more than one pixel when training")
        # Running statistics for each sample, and then their mean over the samples, as torch's.
        mean, var = (None if s is None else s.detach().repeat(n) for s in running)
        picture = x if n == 1 else x.reshape(1, n * c, h, w)
        y = conditional_batch_norm(
            picture,
            gain.reshape(1, n * c),
            bias.reshape(1, n * c),
            running_mean=mean,
            running_var=var,
            momentum=self.momentum or 0.0,
            **formula,
        )
        for of_all, of_each in zip(running, (mean, var), strict=True):
            if of_all is not None and of_each is not None and n > 0:
                of_all.copy_(of_each.view(n, c).mean(0))
        y = y.reshape(x.shape)
        channels_last = x.stride(1) == 1 and not x.is_contiguous()
        return y.contiguous(memory_format=torch.channels_last) if channels_last else y

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation}"
