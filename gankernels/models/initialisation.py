"""How the published systems start their weights."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

Layer = TypeVar("Layer", bound=nn.Module)


def xavier(layer: Layer, gain: float = 1.0) -> Layer:
    """Uniform weights of variance ``2 gain^2 / (fan_in + fan_out)``, no bias. Glorot and Bengio, AISTATS 2010."""
    return _start(layer, functools.partial(nn.init.xavier_uniform_, gain=gain))


def orthogonal(layer: Layer, gain: float = 1.0) -> Layer:
    """Rows (or columns, of a tall matrix) that are orthonormal, no bias: Saxe et al., arXiv 1312.6120.

    ``gain`` is taken and not used: BigGAN starts every layer alike (1809.11096, appendix B).
    """
    return _start(layer, nn.init.orthogonal_)


def he(layer: Layer, gain: float = 1.0) -> Layer:
    """Uniform weights of variance ``gain^2 / fan_in``, no bias. He et al., arXiv 1502.01852, equation 10."""
    bound = gain * math.sqrt(3 / layer.weight[0].numel())  # type: ignore[index]
    return _start(layer, functools.partial(nn.init.uniform_, a=-bound, b=bound))


def normal(layer: Layer, std: float, mean: float = 0.0) -> Layer:
    """Normal weights, no bias."""
    return _start(layer, functools.partial(nn.init.normal_, mean=mean, std=std))


def _start(layer: Layer, fill: Callable[[Tensor], Tensor]) -> Layer:
    fill(layer.weight)  # type: ignore[arg-type]
    bias = getattr(layer, "bias", None)
    if bias is not None:
        nn.init.zeros_(bias)
    return layer
