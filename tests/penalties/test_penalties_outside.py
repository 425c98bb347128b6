"""Penalties of discriminators outside the class: refused by name, and right by the hybrid."""

from __future__ import annotations

import copy
import functools

import double_backprop as double
import pytest
import torch
import torch.nn.functional as F
from critics import conv, critic, pictures
from torch import Tensor, nn

import gankernels
from gankernels import InputError
from gankernels.penalties import d_step


class MinibatchStddev(nn.Module):
    """Karras et al., arXiv 1710.10196, with groups of half the batch."""

    def forward(self, x: Tensor) -> Tensor:
        h = x.reshape(2, -1, *x.shape[1:])
        h = (h - h.mean(0)).square().mean(0).add(1e-8).sqrt().mean((1, 2, 3)).view(-1, 1, 1, 1)
        return torch.cat([x, h.repeat(2, 1, *x.shape[2:])], 1)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.gain = conv(8, 24, 1), nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, -1)
        return x + self.gain * F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2).reshape(x.shape)


class SelfGated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean((2, 3), keepdim=True) / (1 + x.abs())


OUTSIDE = {
    "BatchNorm2d": lambda: nn.BatchNorm2d(8),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(8, affine=True),
    "GroupNorm": lambda: nn.GroupNorm(2, 8),
    "LayerNorm": lambda: nn.LayerNorm([8, 8, 8]),
    "MinibatchStddev": MinibatchStddev,
    "Attention": Attention,
    "SelfGated": SelfGated,
    "SiLU": lambda: nn.SiLU(inplace=True),
    "GELU": nn.GELU,
    "Tanh": nn.Tanh,
    "ELU": lambda: nn.ELU(inplace=True),
    "LPPool2d": lambda: nn.LPPool2d(2, 1),
    "BiasAct": lambda: gankernels.nn.BiasAct(8, activation="silu"),
    "our BatchNorm2d": lambda: gankernels.nn.BatchNorm2d(8, activation="relu"),
    "our InstanceNorm2d": lambda: gankernels.nn.InstanceNorm2d(8, affine=True, activation="lrelu"),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_outside_the_class(name):
    """Refused by name, and right by auto, with running statistics updated once."""
    torch.manual_seed(1)
    discriminator = critic(OUTSIDE[name](), after=9 if name == "MinibatchStddev" else None).double()
    twin, another = copy.deepcopy(discriminator), copy.deepcopy(discriminator)
    x = pictures(4)
    exact = double.penalty(twin, x)

    value = gankernels.gradient_penalty(discriminator, x)
    torch.testing.assert_close(value, exact)
    assert double.relative_error(double.gradient(value, discriminator), double.gradient(exact, twin)) <= 1e-12
    for got, want in zip(discriminator.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(got, want)

    with pytest.raises(InputError, match=rf"3 \({name.removeprefix('our ')}\)"):
        gankernels.gradient_penalty(another, x, method="fused")


@pytest.mark.parametrize("name", ["BatchNorm2d", "MinibatchStddev", "SiLU", "Attention"])
@pytest.mark.parametrize("penalty", ["r1+r2", "wgan-gp"])
def test_step_outside_the_class(name, penalty):
    torch.manual_seed(1)
    discriminator = critic(OUTSIDE[name](), after=9 if name == "MinibatchStddev" else None).double()
    twins = copy.deepcopy(discriminator), copy.deepcopy(discriminator)
    real, fake = pictures(4), pictures(4, seed=1)
    if penalty == "wgan-gp":
        # apart: each of the three is a batch of its own
        alpha = torch.rand(4, 1, 1, 1, generator=torch.Generator().manual_seed(5), dtype=real.dtype)
        value = double.LOSSES["ragan"](twins[0](real), twins[0](fake))
        total = double.penalty(twins[0], fake + alpha * (real - fake), kind="wgan-gp")
    else:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            value, total = double.step(twins[0], real, fake, loss="ragan", penalty=penalty, weight=3.0)
    want = double.gradient(value + 3 * total, twins[0])
    for method, module in (("auto", discriminator), ("double_backward", twins[1])):
        rng = torch.Generator().manual_seed(5)
        scalars = d_step(
            module, real, fake, loss="ragan", penalty=penalty, weight=3.0, method=method, generator=rng,
            joint=penalty != "wgan-gp",
        )  # fmt: skip
        torch.testing.assert_close(torch.stack(scalars[:2]), torch.stack([value, total]))
        assert double.relative_error(double.accumulated(module), want) <= 1e-12


class Tokens(nn.Module):
    """A layer norm over the channels of each pixel."""

    def __init__(self, **arguments) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8, **arguments)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


NORMS = {
    "one group": lambda: nn.GroupNorm(1, 8),
    "a group for each channel": lambda: nn.GroupNorm(8, 8),
    "no gain": lambda: nn.Sequential(nn.GroupNorm(4, 8, affine=False), nn.LayerNorm([8, 8], elementwise_affine=False)),
    "no bias": lambda: nn.LayerNorm([8, 8, 8], bias=False, eps=0.1),
    "tokens": Tokens,
    "frozen": lambda: nn.GroupNorm(2, 8).requires_grad_(False),
    "vectors": lambda: nn.Sequential(
        nn.Flatten(),
        nn.Linear(512, 16),
        nn.GroupNorm(4, 16),
        nn.LayerNorm(16),
        nn.Linear(16, 512),
        nn.Unflatten(1, (8, 8, 8)),
    ),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_norms_are_written_out(name, memory_format, monkeypatch):
    """Twice, the second with a mean far from zero; nothing is differentiated twice."""
    torch.manual_seed(1)
    norm = NORMS[name]()
    discriminator = critic(norm, Shift(), copy.deepcopy(norm)).double().to(memory_format=memory_format)
    for p in discriminator.parameters():
        nn.init.normal_(p)
    twin = copy.deepcopy(discriminator)
    real, fake = (pictures(3, seed=seed).contiguous(memory_format=memory_format) for seed in (0, 1))
    value, total = double.step(twin, real, fake, loss="hinge", penalty="r1", weight=3.0)
    want = double.gradient(value + 3 * total, twin)
    monkeypatch.setattr(torch.autograd, "grad", functools.partial(_without_graph, torch.autograd.grad))
    d_step(discriminator, real, fake, weight=3.0)
    assert double.relative_error(double.accumulated(discriminator), want) <= 1e-12


class Shift(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 30


def _without_graph(grad, *args, create_graph=False, **keywords):
    assert not create_graph
    return grad(*args, **keywords)
