"""A model of ours, written with stock PyTorch: the peer that a whole step is compared with."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gankernels.errors import InputError
from gankernels.nn import BatchNorm2d, ConditionalBatchNorm2d, Conv2d, ConvTranspose2d, InstanceNorm2d
from gankernels.ops._activation import activate

_Model = TypeVar("_Model", bound=nn.Module)


def to_stock(model: _Model) -> _Model:
    """A copy of ``model`` in which no op of gankernels runs: the same function from the same parameters and state.

    The copy has its own parameters and buffers, under the same names, with the same values, dtypes and layouts. Each
    layer of ours computes what it did, forward, backward and in its statistics, as a user writes it in plain PyTorch.

    Args:
        model: any module. It may itself be a layer of ours.

    Raises:
        InputError: a layer of ours whose stock form is not known here.
    """
    stock = copy.deepcopy(model)
    for name, layer in stock.named_modules():
        stock_class = _stock_class(layer)
        if stock_class is not None:
            # The state stays as it is: only what is done with it changes.
            layer.__class__ = stock_class
        elif _is_ours(layer):
            known = ", ".join(cls.__name__ for cls in _STOCK)
            where = f" at {name}" if name else ""
            raise InputError(f"model: got the layer {type(layer).__name__}{where}, expected stock layers or {known}")
    return stock


class StockConditionalBatchNorm2d(ConditionalBatchNorm2d):
    """Batch norm without gain and bias, those of each sample after it, then the activation."""

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """As :meth:`ConditionalBatchNorm2d.forward`."""
        momentum = self.momentum or 0.0
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                momentum = 1 / float(self.num_batches_tracked)
        gain, bias = self.gain(cond), self.bias(cond)
        if self.num_classes is None:
            gain = 1 + gain
        training = self.training or self.running_mean is None
        x_hat = F.batch_norm(x, self.running_mean, self.running_var, training=training, momentum=momentum, eps=self.eps)
        # In x's dtype: an fp32 gain would make everything up to the next convolution fp32 under autocast.
        z = x_hat * gain.to(x.dtype)[:, :, None, None] + bias.to(x.dtype)[:, :, None, None]
        return activate(z, self.activation, self.slope)


class StockBatchNorm2d(BatchNorm2d):
    """PyTorch's batch norm, then the activation."""

    def forward(self, x: Tensor) -> Tensor:
        """As :meth:`BatchNorm2d.forward`."""
        return activate(nn.BatchNorm2d.forward(self, x), self.activation, self.slope)


class StockInstanceNorm2d(InstanceNorm2d):
    """PyTorch's instance norm, then the activation."""

    def forward(self, x: Tensor) -> Tensor:
        """As :meth:`InstanceNorm2d.forward`."""
        return activate(nn.InstanceNorm2d.forward(self, x), self.activation, self.slope)


class StockConvTranspose2d(ConvTranspose2d):
    """PyTorch's transposed convolution, then the activation."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """As :meth:`ConvTranspose2d.forward`."""
        return activate(nn.ConvTranspose2d.forward(self, input, output_size), self.activation, self.slope)


_STOCK: dict[type[nn.Module], type[nn.Module]] = {
    ConditionalBatchNorm2d: StockConditionalBatchNorm2d,
    BatchNorm2d: StockBatchNorm2d,
    InstanceNorm2d: StockInstanceNorm2d,
    Conv2d: nn.Conv2d,
    ConvTranspose2d: StockConvTranspose2d,
}


def _stock_class(layer: nn.Module) -> type[nn.Module] | None:
    """The class that a layer of ours takes; None where it is not ours, or no stock form is known."""
    ours = type(layer)
    if ours in _STOCK or not parametrize.is_parametrized(layer):
        return _STOCK.get(ours)
    # torch gives a parametrized layer a class of its own, derived from the layer's.
    stock = _STOCK.get(ours.__bases__[0])
    return stock and type(ours.__name__, (stock,), {k: v for k, v in vars(ours).items() if k != "__doc__"})


def _is_ours(layer: nn.Module) -> bool:
    """Whether a layer is one of ``gankernels.nn``, or its own forward names an op of gankernels."""
    if type(layer) in _STOCK.values():
        return False
    forward = type(layer).forward
    code = getattr(forward, "__code__", None)
    if code is None:
        return False
    named = [forward.__globals__.get(name) for name in code.co_names]
    origins = [getattr(value, "__name__" if isinstance(value, ModuleType) else "__module__", None) for value in named]
    return (
        forward.__module__.startswith("gankernels.nn")
        or any(str(origin).startswith("gankernels.ops") for origin in origins)
        or ("gankernels" in origins and "ops" in code.co_names)
    )
