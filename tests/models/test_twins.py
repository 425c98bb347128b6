"""Every system against the same network in stock layers: outputs, gradients, and those of a gradient penalty."""

from __future__ import annotations

import functools

import pytest
import stock_twins as twins
import torch
from torch.nn.utils.parametrizations import spectral_norm

from gankernels import models

SN = {"wrap": spectral_norm}
_128 = {"num_classes": 3, "dim_z": 6}

#: preset, its overrides, the twin generator, the twin discriminator. Widths are the least that the systems allow.
TWINS = {
    "sngan-32": (
        {"num_classes": 3, "g_ch": 4, "d_ch": 4, "d_widths": (1, 2, 2, 1), "dim_z": 6},
        lambda: twins.ResidualGenerator((4, 4, 4, 4), num_classes=3, dim_z=6),
        lambda: twins.ResidualDiscriminator((4, 8, 8, 4), downs=2, num_classes=3, wide=False, **SN),
    ),
    "sngan-128": (
        {"num_classes": 3, "ch": 1, "dim_z": 6},
        lambda: twins.ResidualGenerator((16, 16, 8, 4, 2, 1), num_classes=3, dim_z=6),
        lambda: twins.ResidualDiscriminator((1, 2, 4, 8, 16, 16), downs=5, num_classes=3, **SN),
    ),
    "sagan-128": (
        {"num_classes": 3, "g_widths": (1, 1, 1, 1, 1, 1), "d_widths": (1,) * 6, "ch": 8, "dim_z": 6},
        lambda: twins.ResidualGenerator((8,) * 6, num_classes=3, dim_z=6, attention=64, **SN),
        lambda: twins.ResidualDiscriminator((8,) * 6, downs=5, num_classes=3, attention_on=0, **SN),
    ),
    "biggan-32": (
        {"num_classes": 3, "ch": 1, "dim_z": 6},
        lambda: twins.ResidualGenerator((4,) * 4, num_classes=3, dim_z=6, **SN),
        lambda: twins.ResidualDiscriminator((4,) * 4, downs=2, num_classes=3, **SN),
    ),
    "biggan-64": (
        {"num_classes": 3, "g_ch": 2, "d_ch": 8, "d_widths": (1, 1, 1, 2, 1), "dim_z": 10, "shared_dim": 5},
        lambda: twins.ResidualGenerator(
            (32, 32, 16, 8, 4), num_classes=3, dim_z=10, shared=5, hierarchical=True, attention=32, **SN
        ),
        lambda: twins.ResidualDiscriminator((8, 8, 8, 16, 8), downs=4, num_classes=3, attention_on=0, **SN),
    ),
    "biggan-deep-128": (
        {
            "num_classes": 3,
            "ch": 4,
            "dim_z": 6,
            "shared_dim": 5,
            "g_widths": (4, 4, 3, 2, 2, 1),
            "d_widths": (1, 2, 2, 3, 4, 4),
        },
        lambda: twins.DeepGenerator((16, 16, 12, 8, 8, 4), num_classes=3, dim_z=6, shared=5, depth=2, attention=64),
        lambda: twins.DeepDiscriminator((4, 8, 8, 12, 16, 16), num_classes=3, depth=2, attention=64),
    ),
    "wgan-gp-32": (
        {"ch": 4, "dim_z": 6},
        lambda: twins.ResidualGenerator((4,) * 4, num_classes=0, dim_z=6),
        lambda: twins.ResidualDiscriminator((4,) * 4, downs=2, num_classes=0, wide=False, mean=True),
    ),
    "wgan-gp-64": (
        {"num_classes": 3, "ch": 2, "dim_z": 6},
        lambda: twins.ResidualGenerator((16, 16, 8, 4, 2), num_classes=3, dim_z=6),
        lambda: twins.ResidualDiscriminator((4, 8, 16, 16), downs=4, num_classes=3, wide=False, mean=True),
    ),
    "dcgan-32": (
        {"num_classes": 3, "ch": 2, "dim_z": 6},
        lambda: twins.ConvolutionalGenerator((8, 4, 2), num_classes=3, dim_z=6),
        lambda: twins.ConvolutionalDiscriminator((2, 4, 8), num_classes=3),
    ),
    "dcgan-64": (
        {"ch": 2, "dim_z": 6},
        lambda: twins.ConvolutionalGenerator((16, 8, 4, 2), num_classes=0, dim_z=6),
        lambda: twins.ConvolutionalDiscriminator((2, 4, 8, 16), num_classes=0),
    ),
    "r3gan-32": (
        {"num_classes": 3, "ch": 16, "dim_z": 6},
        lambda: twins.BottleneckGenerator((16,) * 4, num_classes=3, dim_z=6),
        lambda: twins.BottleneckDiscriminator((16,) * 4, num_classes=3),
    ),
    "r3gan-64": (
        {"ch": 16, "dim_z": 6},
        lambda: twins.BottleneckGenerator((16, 16, 16, 16, 8), num_classes=0, dim_z=6),
        lambda: twins.BottleneckDiscriminator((8, 16, 16, 16, 16), num_classes=0),
    ),
}
PENALISED = ("wgan-gp", "dcgan", "r3gan")


@functools.cache
def ours(preset):
    """The preset's networks in fp64, moved a little off their initial weights: some of those are zero."""
    torch.manual_seed(0)
    networks = [net.double() for net in models.build(preset, **TWINS[preset][0])]
    with torch.no_grad():
        for net in networks:
            for p in net.parameters():
                p.add_(torch.randn_like(p), alpha=0.1)
    return networks


def twin_of(net, make):
    twin = make().double()
    twin.load_state_dict(net.state_dict())  # strict: the same names and shapes
    return twin


def gradients(net, value, inputs):
    return torch.autograd.grad(value, [*inputs, *dict(sorted(net.named_parameters())).values()])


def assert_equal(got, want):
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-10 * max(1.0, theirs.abs().max().item()))


@pytest.mark.parametrize("preset", TWINS)
def test_generator_equals_its_twin(preset):
    net = ours(preset)[0]
    twin = twin_of(net, TWINS[preset][1])
    z = torch.randn(3, net.dim_z, dtype=torch.float64).requires_grad_()
    y = torch.tensor([2, 0, 1])
    pictures = net(z, y)
    weights = torch.randn_like(pictures)
    results = []
    for network, made in ((net, pictures), (twin, twin(z, y))):
        results.append([made, *gradients(network, (made * weights).sum(), [z])])
    assert_equal(*results)
    states = (dict(sorted(network.state_dict().items())).values() for network in (net, twin))
    assert_equal(*states)  # running statistics and the vectors of spectral norms
    assert pictures.shape == (3, 3, net.resolution, net.resolution)


@pytest.mark.parametrize("preset", TWINS)
def test_discriminator_equals_its_twin(preset):
    generator, net = ours(preset)
    twin = twin_of(net, TWINS[preset][2])
    x = torch.rand(3, 3, generator.resolution, generator.resolution, dtype=torch.float64).mul_(2).sub_(1)
    x = x.requires_grad_()
    y = torch.tensor([2, 0, 1])
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    results = []
    for network in (net, twin):
        logits = network(x, y)
        assert logits.shape == (3,)
        results.append([logits, *gradients(network, (logits * weights).sum(), [x])])
    assert_equal(*results)
    states = (dict(sorted(network.state_dict().items())).values() for network in (net, twin))
    assert_equal(*states)


@pytest.mark.parametrize("preset", [preset for preset in TWINS if preset.startswith(PENALISED)])
def test_penalised_discriminator_equals_its_twin(preset):
    generator, net = ours(preset)
    twin = twin_of(net, TWINS[preset][2])
    x = torch.rand(2, 3, generator.resolution, generator.resolution, dtype=torch.float64).mul_(2).sub_(1)
    y = torch.tensor([2, 0])
    results = []
    for network in (net, twin):
        pictures = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(network(pictures, y).sum(), pictures, create_graph=True)
        penalty = gradient.square().sum((1, 2, 3)).mean()
        penalty.backward()
        # A bias behind which only piecewise linear layers stand has no second derivative, and no gradient.
        named = sorted(network.named_parameters())
        results.append([penalty, *(torch.zeros_like(p) if p.grad is None else p.grad for _, p in named)])
        network.zero_grad()
    assert_equal(*results)
