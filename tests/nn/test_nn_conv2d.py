"""Conv2d and ConvTranspose2d against torch's."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from convolutions import Calls
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import gankernels
from gankernels.bench.stock import to_stock

CONV = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "stride 2, no bias": {"kernel_size": 4, "stride": 2, "padding": 1, "bias": False},
    "grouped": {"kernel_size": (3, 1), "groups": 2, "padding": (1, 0)},
    "same": {"kernel_size": 3, "padding": "same", "dilation": 2},
    "reflect": {"kernel_size": 3, "padding": (1, 2), "padding_mode": "reflect"},
    "circular, same": {"kernel_size": 3, "padding": "same", "padding_mode": "circular"},
    "replicate": {"kernel_size": 3, "padding": 1, "padding_mode": "replicate", "groups": 4},
}
TRANSPOSE = {
    "4x4 stride 2": {"kernel_size": 4, "stride": 2, "padding": 1},
    "grouped, no bias": {"kernel_size": 3, "stride": 2, "groups": 2, "bias": False},
    "output padding": {"kernel_size": 3, "stride": 3, "output_padding": (2, 0), "dilation": 2},
}
LAYERS = [(gankernels.nn.Conv2d, nn.Conv2d, arguments) for arguments in CONV.values()]
LAYERS += [(gankernels.nn.ConvTranspose2d, nn.ConvTranspose2d, arguments) for arguments in TRANSPOSE.values()]


def pair_of_layers(ours, theirs, arguments, **keywords):
    layers = []
    for cls in (ours, theirs):
        torch.manual_seed(0)
        layers.append(cls(4, 8, **arguments, **(keywords if cls is ours else {})).double())
    return layers


def two_orders(layer, x):
    (dx,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
    return [layer(x).detach(), dx.detach(), *torch.autograd.grad(dx.pow(2).sum(), layer.parameters())]


@pytest.mark.parametrize(("ours", "theirs", "arguments"), LAYERS, ids=[*CONV, *TRANSPOSE])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_as_torchs(ours, theirs, arguments, layout):
    layer, stock = (m.to(memory_format=layout) for m in pair_of_layers(ours, theirs, arguments))
    assert {k: v.tolist() for k, v in layer.state_dict().items()} == {
        k: v.tolist() for k, v in stock.state_dict().items()
    }
    assert repr(layer) == repr(stock)
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    results = [two_orders(m, x) for m in (layer, stock)]
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    assert layer(x).is_contiguous(memory_format=layout)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x[0]), layer(x[0]))


@pytest.mark.parametrize("activation", ["relu", "lrelu"])
def test_the_activation(activation):
    layer, stock = pair_of_layers(
        gankernels.nn.ConvTranspose2d, nn.ConvTranspose2d, TRANSPOSE["4x4 stride 2"], activation=activation, slope=0.1
    )
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    want = F.relu(stock(x)) if activation == "relu" else F.leaky_relu(stock(x), 0.1)
    torch.testing.assert_close(layer(x), want)
    assert repr(layer).endswith(f"activation={activation})")


def test_an_output_size():
    layer, stock = pair_of_layers(gankernels.nn.ConvTranspose2d, nn.ConvTranspose2d, TRANSPOSE["4x4 stride 2"])
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(layer(x, output_size=[7, 6]), stock(x, output_size=[7, 6]))
    with pytest.raises(ValueError, match="requested an output size"):
        layer(x, output_size=[9, 6])


@pytest.mark.parametrize("parametrized", [False, True])
@pytest.mark.parametrize("kind", ["conv", "transpose"])
def test_the_stock_form(kind, parametrized):
    cls = gankernels.nn.Conv2d if kind == "conv" else gankernels.nn.ConvTranspose2d
    layer = cls(4, 4, 3, **({} if kind == "conv" else {"activation": "silu"}))
    layer = (spectral_norm(layer) if parametrized else layer).double().eval()
    stock = to_stock(layer)
    assert not isinstance(stock, gankernels.nn.Conv2d)
    assert list(stock.state_dict()) == list(layer.state_dict())
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(stock(x), layer(x))
    with Calls() as calls:
        stock(x)
    assert calls.of("convolution") == calls.of("aten::convolution") == 1
