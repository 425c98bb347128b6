"""Forwards that the tape cannot follow, and such as it must follow nevertheless."""

from __future__ import annotations

import copy

import double_backprop as double
import pytest
import torch
import torch.nn.functional as F
from critics import Calls, conv, critic, pictures
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import gankernels
from gankernels import InputError
from gankernels.penalties import d_step


class _Flip(torch.autograd.Function):
    """The identity with another gradient, as gradient reversal has it."""

    @staticmethod
    def forward(ctx, x):
        return x * 1.0

    @staticmethod
    def backward(ctx, g):
        return -2 * g


def _into_a_view(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, ::2] = x[:, ::2]
    return out + x


def _through_another_view(x: Tensor) -> Tensor:
    x = x * 1.0
    view = x.view(-1)
    view.mul_(2.0)
    return x + 1


def _times_hidden(x: Tensor) -> Tensor:
    return x * _Flip.apply(x).cos()


@pytest.mark.parametrize("function", [_Flip.apply, _into_a_view, _through_another_view, _times_hidden])
def test_what_cannot_be_followed_goes_to_double_backward(function, caplog):
    torch.manual_seed(3)
    discriminator = critic(Calls(function)).double()
    twin = copy.deepcopy(discriminator)
    x = pictures(3)
    caplog.set_level("INFO", "gankernels")
    exact = double.penalty(twin, x)
    value = gankernels.gradient_penalty(discriminator, x)
    assert double.relative_error(double.gradient(value, discriminator), double.gradient(exact, twin)) <= 1e-12
    with pytest.raises(InputError, match="outside the class"):
        gankernels.gradient_penalty(discriminator, x, method="fused")


def test_detached_branches_are_constants():
    discriminator = critic(Calls(lambda x: x + F.relu(x.detach()).mean(0) * x)).double()
    twin = copy.deepcopy(discriminator)
    exact = double.penalty(twin, pictures(3))
    value = gankernels.gradient_penalty(discriminator, pictures(3), method="fused")
    assert double.relative_error(double.gradient(value, discriminator), double.gradient(exact, twin)) <= 1e-12


class Checkpointed(nn.Sequential):
    """Layers whose activations are computed again in the backward."""

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


def _trunk() -> list[nn.Module]:
    return [conv(8, 8), nn.LeakyReLU(0.2), nn.Dropout(0.5), conv(8, 8), nn.ReLU(inplace=True)]


@pytest.mark.parametrize("method", ["fused", "double_backward"])
def test_activation_checkpointing(method):
    """The same mask of dropout in both forwards, and the same gradients as without."""
    layers = _trunk()
    discriminator, twin = critic(Checkpointed(*layers)).double(), critic(nn.Sequential(*copy.deepcopy(layers))).double()
    twin.load_state_dict(discriminator.state_dict())
    real, fake = pictures(3), pictures(3, seed=1)
    torch.manual_seed(4)
    value, total = double.step(twin, real, fake, loss="hinge", penalty="r1", weight=5.0)
    want = double.gradient(value + 5 * total, twin)
    torch.manual_seed(4)
    scalars = d_step(discriminator, real, fake, weight=5.0, method=method)
    torch.testing.assert_close(torch.stack(scalars[:2]), torch.stack([value, total]))
    assert double.relative_error(double.accumulated(discriminator), want) <= 1e-12

    exact = double.penalty(twin.eval(), real)
    got = gankernels.gradient_penalty(discriminator.eval(), real, method=method)
    assert double.relative_error(double.gradient(got, discriminator), double.gradient(exact, twin)) <= 1e-12
