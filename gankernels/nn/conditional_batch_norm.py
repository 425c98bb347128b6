from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from gankernels.errors import InputError
from gankernels.nn._statistics import BatchStatistics
from gankernels.ops.conditional_batch_norm import conditional_batch_norm

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class ConditionalBatchNorm2d(BatchStatistics):
    """Batch normalisation whose gain and bias come from a condition, with the activation fused behind it.

    ``y = act((x - mean) / sqrt(var + eps) * gain(cond) + bias(cond))``

    The condition is either a class label (``num_classes``: a table of gains and one of biases, as in SNGAN, looked up
    inside the kernels) or a vector (``cond_features``: two linear maps without bias, ``gain = 1 + W_gain cond``, as in
    BigGAN). A module that is new computes plain batch normalisation for every label.

    Args:
        num_features: C, the channels of the input.
        num_classes: the number of labels; the condition is then an int64 tensor [N].
        cond_features: the length of the condition vector; the condition is then a float tensor [N, cond_features].
        eps: added to the variance.
        momentum: weight of the newest batch in the running statistics; None takes the average of all batches.
        track_running_stats: keep running statistics, and use them in eval mode. Without, every mode uses the batch.
        activation: ``"none"``, ``"relu"`` or ``"lrelu"``.
        slope: of ``"lrelu"`` below zero.
        process_group: take the statistics over the samples of all its ranks; :func:`gankernels.nn.synchronize` sets it
            in a whole model.

    Shape:
        x [N, C, H, W], contiguous or channels_last, fp32, bf16, fp16 or fp64; the output has x's shape, dtype and
        layout. Differentiable twice in x and in the tables.

    State:
        running_mean [C], running_var [C] (unbiased) and num_batches_tracked, as in ``torch.nn.BatchNorm2d``; gain and
        bias hold the tables' or the maps' ``weight``.

    Example:
        >>> norm = gankernels.nn.ConditionalBatchNorm2d(64, num_classes=10, activation="relu")
        >>> y = norm(torch.randn(8, 64, 16, 16), torch.arange(8))
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int | None = None,
        *,
        cond_features: int | None = None,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        track_running_stats: bool = True,
        activation: str = "none",
        slope: float = 0.2,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.num_classes = num_classes
        self.cond_features = cond_features
        self.eps = eps
        self.momentum = momentum
        self.track_running_stats = track_running_stats
        self.activation = activation
        self.slope = slope
        self.process_group = process_group
        self.gain: nn.Module
        self.bias: nn.Module
        if num_classes is not None and cond_features is None:
            self.gain = nn.Embedding(num_classes, num_features)
            self.bias = nn.Embedding(num_classes, num_features)
        elif cond_features is not None and num_classes is None:
            self.gain = nn.Linear(cond_features, num_features, bias=False)
            self.bias = nn.Linear(cond_features, num_features, bias=False)
        else:
            raise InputError(
                f"ConditionalBatchNorm2d: got num_classes={num_classes} and cond_features={cond_features}, "
                "expected exactly one of them"
            )
        if track_running_stats:
            self.register_buffer("running_mean", torch.zeros(num_features))
            self.register_buffer("running_var", torch.ones(num_features))
            self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))
        else:
            self.running_mean = self.running_var = self.num_batches_tracked = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Plain batch normalisation for every condition; running statistics of a standard normal input."""
        for table, start in ((self.gain, 1.0 if self.num_classes else 0.0), (self.bias, 0.0)):
            nn.init.constant_(table.weight, start)  # type: ignore[arg-type]
        self.reset_running_stats()

    def reset_running_stats(self) -> None:
        """Running statistics of a standard normal input, from no batch."""
        if self.running_mean is not None:
            self.running_mean.zero_()
            self.running_var.fill_(1)  # type: ignore[union-attr]
            self.num_batches_tracked.zero_()  # type: ignore[union-attr]

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """Normalise ``x`` [N, C, H, W] under ``cond``: int64 labels [N], or vectors [N, cond_features]."""
        gain, bias, labels = self._affine(x, cond)
        return conditional_batch_norm(x, gain, bias, labels=labels, **self._arguments())

    def _affine(self, x: Tensor, cond: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Gain and bias [N, C] for x, or tables [num_classes, C] of them and the labels that the kernels look up."""
        if self.num_classes is not None:
            return cast(Tensor, self.gain.weight), cast(Tensor, self.bias.weight), cond
        return 1 + self.gain(cond), self.bias(cond), None

    def extra_repr(self) -> str:
        cond = f"num_classes={self.num_classes}" if self.num_classes else f"cond_features={self.cond_features}"
        return f"{self.num_features}, {cond}, eps={self.eps}, momentum={self.momentum}, activation={self.activation}"
