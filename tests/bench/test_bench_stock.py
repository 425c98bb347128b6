from __future__ import annotations

import pytest
import torch
from torch import nn

import gankernels
from gankernels import dispatch, models, ops
from gankernels.bench.stock import to_stock
from gankernels.errors import InputError
from gankernels.ops import conditional_batch_norm


@pytest.fixture
def no_op_of_ours(monkeypatch):
    def refuse(op, *args):
        raise AssertionError(f"{op} ran")

    monkeypatch.setattr(dispatch, "choose", refuse)


class Layers(nn.Module):
    """One layer of ours of each kind."""

    def __init__(self, **settings):
        super().__init__()
        self.table = gankernels.nn.ConditionalBatchNorm2d(6, num_classes=4, **settings)
        self.map = gankernels.nn.ConditionalBatchNorm2d(6, cond_features=5, **settings)
        self.plain = gankernels.nn.BatchNorm2d(6, **settings)
        self.instance = gankernels.nn.InstanceNorm2d(6, affine=True, **settings)

    def forward(self, x, y, vector):
        return self.instance(self.plain(self.map(self.table(x, y), vector)))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {"activation": "relu"},
        {"activation": "lrelu", "slope": 0.3, "momentum": None},
        {"activation": "none", "track_running_stats": False, "eps": 1e-3},
    ],
)
def test_stock_layers_compute_the_same(settings, training):
    torch.manual_seed(0)
    ours = Layers(**settings).double().train(training)
    for p in ours.parameters():
        nn.init.normal_(p)
    theirs = to_stock(ours)
    assert not {id(p) for p in ours.parameters()} & {id(p) for p in theirs.parameters()}, "a copy"
    x = torch.randn(5, 6, 4, 4, dtype=torch.float64).requires_grad_()
    inputs = (x, torch.tensor([0, 1, 2, 3, 1]), torch.randn(5, 5, dtype=torch.float64))
    results = []
    for net in (ours, theirs):
        for _ in range(2):
            y = net(*inputs)
        gradients = torch.autograd.grad(y.sin().sum(), [x, *net.parameters()])
        results.append([y, *gradients, *net.state_dict().values()])
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.fixture(params=models.presets())
def preset(request):
    """A preset's networks: only their shapes."""
    with torch.device("meta"):
        return models.build(request.param)


def test_no_op_of_ours_runs_in_a_stock_preset(preset, no_op_of_ours):
    generator, discriminator = (to_stock(net) for net in preset)
    with torch.device("meta"):
        z, y = torch.empty(2, generator.dim_z), torch.empty(2, dtype=torch.long)
    pictures = generator(z, y)
    assert discriminator(pictures, y).shape == (2,)


class Convolutions(nn.Module):
    """One convolution of ours of each kind, some of them spectrally normed, and what stands behind one."""

    def __init__(self, activation):
        super().__init__()
        self.layers = nn.Sequential(
            gankernels.nn.spectral_norm(gankernels.nn.Conv2d(6, 4, 3, padding=1, groups=2)),
            gankernels.nn.BiasAct(4, activation=activation, slope=0.3, gain=1.5, clamp=1.0),
            gankernels.nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1, activation=activation, slope=0.3),
            gankernels.nn.NormConvTranspose2d(
                gankernels.nn.BatchNorm2d(6), gankernels.nn.ConvTranspose2d(6, 6, 3, 1, 1)
            ),
            gankernels.nn.spectral_norm(gankernels.nn.UpsampleConv2d(6, 4, 3, padding=1)),
            gankernels.nn.spectral_norm(gankernels.nn.DownsampleConv2d(4, 6, 3, padding=1)),
            gankernels.nn.ResBlockUp(6, 4, norm=gankernels.nn.BatchNorm2d, wrap=gankernels.nn.spectral_norm),
            gankernels.nn.ResBlockDown(4, 6),
        )

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize("activation", ["none", "lrelu", "tanh"])
def test_stock_convolutions_compute_the_same(activation, monkeypatch):
    torch.manual_seed(0)
    ours = Convolutions(activation).double()
    theirs = to_stock(ours)
    x = torch.randn(3, 6, 6, 6, dtype=torch.float64).requires_grad_()
    want = ours(x)
    wanted = torch.autograd.grad(want.sin().sum(), [x, *ours.parameters()])
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "choose", None)  # no op of ours runs
        got = theirs(x)
        gradients = torch.autograd.grad(got.sin().sum(), [x, *theirs.parameters()])
    assert list(ours.state_dict()) == list(theirs.state_dict())
    results = zip([got, *gradients, *theirs.buffers()], [want, *wanted, *ours.buffers()], strict=True)
    for mine, other in results:
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)


def test_stock_keeps_layout_precision_and_mode():
    generator, _ = models.build("sngan-32", channels=3, num_classes=4, g_ch=4, d_ch=4, dim_z=8)
    stock = to_stock(generator.eval().bfloat16())
    assert not stock.blocks[0].norm1.training
    weight = stock.blocks[0].conv1.weight
    assert weight.dtype == torch.bfloat16
    assert weight.is_contiguous(memory_format=torch.channels_last)


class ByName(nn.Module):
    def forward(self, x):
        return conditional_batch_norm(x, x.mean((2, 3)), x.mean((2, 3)))


class ByModule(nn.Module):
    def forward(self, x):
        return ops.conditional_batch_norm(x, x.mean((2, 3)), x.mean((2, 3)))


class ByPackage(nn.Module):
    def forward(self, x):
        return gankernels.ops.conditional_batch_norm(x, x.mean((2, 3)), x.mean((2, 3)))


class Derived(gankernels.nn.ConditionalBatchNorm2d):
    pass


@pytest.mark.parametrize("layer", [ByName(), ByModule(), ByPackage(), Derived(4, num_classes=2)], ids=repr)
def test_a_layer_without_stock_form_is_named(layer):
    name = type(layer).__name__
    with pytest.raises(InputError, match=rf"model: got the layer {name} at 1, expected .*ConditionalBatchNorm2d"):
        to_stock(nn.Sequential(nn.ReLU(), layer))
    with pytest.raises(InputError, match=f"model: got the layer {name}, expected"):
        to_stock(layer)
