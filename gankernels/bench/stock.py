"""A model of ours, written with stock PyTorch: the peer that a whole step is compared with."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from gankernels.errors import InputError
from gankernels.models.attention import SelfAttention
from gankernels.nn import (
    BatchNorm2d,
    BiasAct,
    ConditionalBatchNorm2d,
    Conv2d,
    ConvTranspose2d,
    DownsampleConv2d,
    InstanceNorm2d,
    NormConvTranspose2d,
    ResBlockDown,
    ResBlockUp,
    UpsampleConv2d,
)
from gankernels.nn.residual import _Conv2d
from gankernels.nn.spectral_norm import SpectralNorm
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


class StockNormConvTranspose2d(NormConvTranspose2d):
    """The two layers, one after the other."""

    def forward(self, x: Tensor, *condition: Tensor) -> Tensor:
        """As :meth:`NormConvTranspose2d.forward`."""
        return self.conv(self.norm(x, *condition))


class StockUpsampleConv2d(UpsampleConv2d):
    """Each pixel four times, the convolution, the activation."""

    def forward(self, input: Tensor) -> Tensor:
        """As :meth:`UpsampleConv2d.forward`."""
        y = nn.Conv2d.forward(self, F.interpolate(input, scale_factor=2.0, mode="nearest"))
        return activate(y, self.activation, self.slope)


class StockDownsampleConv2d(DownsampleConv2d):
    """The convolution, the mean of 2x2, the activation."""

    def forward(self, input: Tensor, *, with_bias: bool = True) -> Tensor:
        """As :meth:`DownsampleConv2d.forward`."""
        y = self._conv_forward(input, self.weight, self.bias if with_bias else None)
        return activate(F.avg_pool2d(y, 2), self.activation, self.slope)


class StockResBlockUp(ResBlockUp):
    """The layers one after the other; the 1x1 skip on the small side, as a careful user has it too."""

    def forward(self, x: Tensor, *condition: Tensor) -> Tensor:
        """As :meth:`ResBlockUp.forward`."""
        h = self.conv2(self.norm2(self.conv1(self.norm1(x, *condition)), *condition))
        skip = self.skip(x)
        return h + (F.interpolate(skip, scale_factor=2.0, mode="nearest") if self.upsample else skip)


class StockResBlockDown(ResBlockDown):
    """The layers one after the other; the 1x1 skip on the small side, as a careful user has it too."""

    def forward(self, x: Tensor) -> Tensor:
        """As :meth:`ResBlockDown.forward`."""
        h = self.conv2(F.relu(self.conv1(F.relu(x) if self.activate_input else x)))
        return h + self.skip(F.avg_pool2d(x, 2) if self.downsample else x)


class StockSelfAttention(SelfAttention):
    """PyTorch's attention."""

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None], scale=1.0).squeeze(1)


class StockBiasAct(BiasAct):
    """The bias, the activation, gain and clamp."""

    def forward(self, x: Tensor) -> Tensor:
        """As :meth:`BiasAct.forward`."""
        shape = [1] * x.dim()
        shape[self.dim] = self.num_channels
        y = activate(x + self.bias.to(x.dtype).view(shape), self.activation, self.slope)
        if self.gain != 1:
            y = y * self.gain
        return y if self.clamp is None else y.clamp(-self.clamp, self.clamp)


_STOCK: dict[type[nn.Module], type[nn.Module]] = {
    ConditionalBatchNorm2d: StockConditionalBatchNorm2d,
    BatchNorm2d: StockBatchNorm2d,
    InstanceNorm2d: StockInstanceNorm2d,
    Conv2d: nn.Conv2d,
    _Conv2d: nn.Conv2d,
    ConvTranspose2d: StockConvTranspose2d,
    NormConvTranspose2d: StockNormConvTranspose2d,
    UpsampleConv2d: StockUpsampleConv2d,
    DownsampleConv2d: StockDownsampleConv2d,
    ResBlockUp: StockResBlockUp,
    ResBlockDown: StockResBlockDown,
    BiasAct: StockBiasAct,
    SelfAttention: StockSelfAttention,
    SpectralNorm: parametrizations._SpectralNorm,
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
