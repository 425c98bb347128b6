"""Penalties under autocast to bf16 and fp16, with and without a gradient scaler."""

from __future__ import annotations

import copy

import double_backprop as double
import pytest
import torch
from critics import conv, critic, pictures
from torch import nn

import gankernels
from gankernels.penalties import d_step
from gankernels.verification import errors

MIDDLE = {
    "ReLU": nn.ReLU,
    "SiLU": nn.SiLU,
    "group norm": lambda: nn.GroupNorm(4, 32),
    "layer norm": lambda: nn.LayerNorm([32, 5, 5]),
}


@pytest.mark.parametrize("name", MIDDLE)
def test_bf16_autocast(name, others):
    """At most twice the error of eager double backprop under the same autocast."""
    torch.manual_seed(2)
    discriminator = nn.Sequential(
        conv(3, 16),
        nn.ReLU(),
        conv(16, 32, 4, stride=2),
        MIDDLE[name](),
        conv(32, 32),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(1),
    )
    real, fake = pictures(16, torch.float32), pictures(16, torch.float32, seed=1)
    discriminator(real)
    exact = copy.deepcopy(discriminator).double()
    value, total = double.step(exact, real.double(), fake.double(), loss="non-saturating", penalty="r1", weight=50.0)
    want = double.gradient(value + 50 * total, exact)
    with torch.autocast("cpu", torch.bfloat16):
        value, total = double.step(discriminator, real, fake, loss="non-saturating", penalty="r1", weight=50.0)
    eager = double.gradient(value + 50 * total, discriminator)
    with torch.autocast("cpu", torch.bfloat16):
        scalars = d_step(discriminator, real, fake, loss="non-saturating", penalty="r1", weight=50.0)
    assert {scalar.dtype for scalar in scalars} == {torch.float32}
    for error, bound in zip(errors(double.accumulated(discriminator), want), errors(eager, want), strict=True):
        assert error <= 2 * bound


def test_fp16_gradients_survive_where_double_backprop_loses_them():
    """Small logits: the inner gradient, unscaled, is below the range of fp16."""
    torch.manual_seed(0)
    discriminator = nn.Sequential(
        conv(3, 8), nn.LeakyReLU(0.2), conv(8, 8), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(512, 1)
    )
    with torch.no_grad():
        discriminator[-1].weight.mul_(1e-4)
    exact = copy.deepcopy(discriminator).double()
    x = pictures(4, torch.float32)
    want = double.gradient(double.penalty(exact, x.double()), exact)
    with torch.autocast("cpu", torch.float16):
        eager = double.gradient(double.penalty(discriminator, x), discriminator)
        value = gankernels.gradient_penalty(discriminator, x)
    got = double.gradient(value, discriminator)
    assert double.relative_error(got, want) < 0.01 < double.relative_error(eager, want)


def test_gradient_scaler(others):
    """Under autocast to fp16 the gradients carry the scaler's scale, and the step divides by it."""
    discriminator = critic()
    exact = copy.deepcopy(discriminator).double()
    real, fake = pictures(4, torch.float32), pictures(4, torch.float32, seed=1)
    value, total = double.step(exact, real.double(), fake.double(), loss="hinge", penalty="r1", weight=10.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    optimizer = torch.optim.SGD(discriminator.parameters(), lr=1.0)
    before = torch.cat([p.detach().flatten() for p in discriminator.parameters()])
    with torch.autocast("cpu", torch.float16):
        d_step(discriminator, real, fake, scaler=scaler)
    scaler.step(optimizer)
    scaler.update()
    moved = before - torch.cat([p.detach().flatten() for p in discriminator.parameters()])
    assert double.relative_error(moved, double.gradient(value + 10 * total, exact)) < 0.01
