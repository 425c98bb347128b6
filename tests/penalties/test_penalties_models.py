"""Penalties of the discriminators that this package ships, on its own ops: all in the class of the closed form.

Held against double backprop of the same modules on their references, which are plain PyTorch.
"""

from __future__ import annotations

import contextlib
import copy

import double_backprop as double
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import gankernels
import gankernels.models
from gankernels.ops import bias_act, conv_transpose2d
from gankernels.penalties import d_step
from gankernels.verification import errors
from implementations import kernels_of

WIDTHS = {"sngan-32": 3, "biggan-32": 2, "wgan-gp-32": 3, "r3gan-32": 8}
CASES = [
    *((preset, "hinge", "r1") for preset in WIDTHS),
    ("sngan-32", "non-saturating", "r2"),
    ("wgan-gp-32", "wasserstein", "wgan-gp"),
    ("r3gan-32", "rpgan", "r1+r2"),
]


def built(preset: str) -> tuple[nn.Module, list[Tensor]]:
    """A discriminator with no weight at zero, and real and fake pictures with labels or without."""
    torch.manual_seed(0)
    settings = {"blocks": 1} if preset.startswith("r3gan") else {}
    _, discriminator = gankernels.models.build(preset, ch=WIDTHS[preset], **settings)
    discriminator = discriminator.double()
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    pictures = [torch.randn(2, 3, 32, 32, dtype=torch.float64) for _ in range(2)]
    classes = gankernels.models.settings(preset)["num_classes"]
    return discriminator, [*pictures, torch.tensor([3, 7])] if classes else pictures


def wanted(discriminator: nn.Module, arguments: list[Tensor], loss: str, penalty: str, weight: float) -> Tensor:
    """The gradient of the step by double backprop on the references."""
    real, fake, *y = arguments
    points = None
    if penalty == "wgan-gp":
        alpha = torch.rand(len(real), 1, 1, 1, generator=torch.Generator().manual_seed(5), dtype=real.dtype)
        points = fake + alpha * (real - fake)
    with gankernels.use("reference"):
        value, total = double.step(
            discriminator, real, fake, *y, loss=loss, penalty=penalty, weight=weight, points=points
        )
        return double.gradient(value + weight * total, discriminator)


class _Convolutions(TorchDispatchMode):
    """Counts the pictures that go through our convolutions and their two gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = dict.fromkeys(("convolution", "convolution_input_gradient", "convolution_weight_gradient"), 0)

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        namespace, _, name = op._schema.name.partition("::")
        if namespace == "gankernels_library" and name in self.calls:
            self.calls[name] += len(args[0])
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize(("preset", "loss", "penalty"), CASES)
def test_our_discriminators(preset, loss, penalty, others):
    """In the class, exact, and 3 convolutions a layer for each picture, and the tangent's where there is a penalty."""
    discriminator, arguments = built(preset)
    want = wanted(copy.deepcopy(discriminator), arguments, loss, penalty, 3.0)
    rng = torch.Generator().manual_seed(5)
    with _Convolutions() as count:
        d_step(discriminator, *arguments, loss=loss, penalty=penalty, weight=3.0, method="fused", generator=rng)
    assert double.relative_error(double.accumulated(discriminator), want) <= 1e-10
    layers = sum(isinstance(module, nn.Conv2d) for module in discriminator.modules())
    every, penalised = {"r1+r2": (4, 4), "wgan-gp": (6, 2)}.get(penalty, (4, 2))
    assert list(count.calls.values()) == [layers * n for n in (every + penalised, every, every)]


@pytest.mark.parametrize("preset", ["sngan-32", "r3gan-32"])
def test_bf16_autocast(preset):
    """At most twice the error of eager double backprop on the references under the same autocast."""
    discriminator, (real, fake, y) = built(preset)
    # a batch in which no one kink decides
    real, fake = (torch.cat([t, *(torch.randn_like(t) for _ in range(3))]) for t in (real, fake))
    arguments = [real, fake, y.repeat(4)]
    want = wanted(copy.deepcopy(discriminator), arguments, "non-saturating", "r1", 3.0)
    discriminator, arguments = discriminator.float(), [real.float(), fake.float(), y.repeat(4)]
    with torch.autocast("cpu", torch.bfloat16):
        eager = wanted(copy.deepcopy(discriminator), arguments, "non-saturating", "r1", 3.0)
        d_step(discriminator, *arguments, loss="non-saturating", weight=3.0, method="fused")
    for error, bound in zip(errors(double.accumulated(discriminator), want), errors(eager, want), strict=True):
        assert error <= 2 * bound


@pytest.mark.parametrize("held", [False, True])
def test_spectral_norm_groups(held):
    """Weights that a group has computed, before the step or in it: one call for all, and one backward behind all."""
    discriminator, arguments = built("sngan-32")
    want = wanted(copy.deepcopy(discriminator), arguments, "hinge", "r1", 3.0)
    group = gankernels.nn.SpectralNormGroup(discriminator)
    with group.hold() if held else contextlib.nullcontext():
        d_step(discriminator, *arguments, weight=3.0, method="fused")
    assert double.relative_error(double.accumulated(discriminator), want) <= 1e-10


class UpAndDown(nn.Module):
    """A transposed convolution between convolutions, as the discriminators of autoencoders have."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.first, self.last = gankernels.nn.Conv2d(3, 2, 3, stride=2), nn.Linear(2 * 5 * 5, 1)
        self.weight, self.bias = nn.Parameter(torch.randn(2, 2, 3, 3)), nn.Parameter(torch.randn(2))
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.first(x), 0.2)
        h = conv_transpose2d(h, self.weight, self.bias, stride=2, activation=self.activation)
        return self.last(h.flatten(1))


@pytest.mark.parametrize("activation", ["none", "lrelu"])
@pytest.mark.parametrize(("device", "impl"), kernels_of("conv_transpose2d"))
def test_transposed_convolutions(device, impl, activation):
    discriminator = UpAndDown(activation).to(device, torch.float64)
    real, fake = (torch.randn(2, 3, 5, 5, dtype=torch.float64, device=device) for _ in range(2))
    want = wanted(discriminator, [real, fake], "hinge", "r1", 3.0)
    with gankernels.use(impl):
        d_step(discriminator, real, fake, weight=3.0, method="fused")
    assert double.relative_error(double.accumulated(discriminator), want) <= 1e-10


class Biases(nn.Module):
    """bias_act on the pictures, on what others use too, along other dimensions, on vectors, and on many samples."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear, self.last = gankernels.nn.Conv2d(3, 4, 1), nn.Linear(4 * 5, 6), nn.Linear(6, 1)
        self.biases = nn.ParameterList(torch.randn(size) for size in (3, 4, 4, 5, 6))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(bias_act(x, self.biases[0], gain=2**0.5))
        h = bias_act(h, self.biases[1]) + h
        h = bias_act(h * 1.5, self.biases[2], activation="linear")
        h = bias_act(h.flatten(0, 1), self.biases[3], clamp=1.0, dim=2).unflatten(0, (-1, 4))
        return self.last(bias_act(self.linear(h.mean(3).flatten(1)), self.biases[4], activation="relu"))


def test_biases():
    discriminator = Biases().double()
    real, fake = (torch.randn(3, 3, 5, 5, dtype=torch.float64) for _ in range(2))
    want = wanted(discriminator, [real, fake], "hinge", "r1", 3.0)
    d_step(discriminator, real, fake, weight=3.0, method="fused")
    assert double.relative_error(double.accumulated(discriminator), want) <= 1e-10
    value = gankernels.gradient_penalty(discriminator, real, method="fused")
    exact = double.gradient(double.penalty(discriminator, real), discriminator)
    assert double.relative_error(double.gradient(value, discriminator), exact) <= 1e-10
