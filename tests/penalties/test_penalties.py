"""Penalties in the loops that users have: what they may pass, and what comes back."""

from __future__ import annotations

import copy

import double_backprop as double
import pytest
import torch
import torch.nn.functional as F
from critics import Calls, conv, critic, pictures
from torch import Tensor, nn
from torch.nn.utils import parametrize

import gankernels
from gankernels import InputError
from gankernels.penalties import d_step


class Patches(nn.Module):
    """A logit for each patch, at two scales."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = conv(3, 4, stride=2), conv(4, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.leaky_relu(self.body(x), 0.2)
        return self.head(h), self.head(F.avg_pool2d(h, 2))


def test_logits_of_patches_and_heads():
    discriminator = Patches().double()
    twin = copy.deepcopy(discriminator)
    real, fake = pictures(3), pictures(2, seed=1)
    exact = double.penalty(twin, real)
    value = gankernels.gradient_penalty(discriminator, real, method="fused")
    assert double.relative_error(double.gradient(value, discriminator), double.gradient(exact, twin)) <= 1e-12

    heads = zip(twin(real), twin(fake), strict=True)
    loss = sum(double.LOSSES["hinge"](*head) for head in heads)
    want = double.gradient(loss + 7 * double.penalty(twin, real), twin)
    d_step(discriminator, real, fake, weight=7.0)
    assert double.relative_error(double.accumulated(discriminator), want) <= 1e-12
    with pytest.raises(InputError, match=r"one number for each sample"):
        d_step(discriminator, real, fake, method="fused")


class Shared(nn.Module):
    """One convolution, used twice, and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.frozen = conv(3, 4), conv(4, 4), conv(4, 4).requires_grad_(False)
        self.head = nn.Linear(256, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(x))
        h = F.relu(self.twice(F.relu(self.twice(h))))
        return self.head(F.leaky_relu(self.frozen(h), 0.2).flatten(1))


def test_shared_and_frozen_parameters_and_accumulation(others):
    discriminator = Shared().double()
    twin = copy.deepcopy(discriminator)
    want = torch.zeros(())
    for seed in (0, 2):
        real, fake = pictures(3, seed=seed), pictures(2, seed=seed + 1)
        value, total = double.step(twin, real, fake, loss="hinge", penalty="r2", weight=10.0)
        want = want + double.gradient(value + 10 * total, twin)
        d_step(discriminator, real, fake, penalty="r2", method="fused")
    assert double.relative_error(double.accumulated(discriminator), want) <= 1e-12
    assert discriminator.frozen.weight.grad is None
    discriminator.requires_grad_(False)
    value = gankernels.gradient_penalty(discriminator, real)
    torch.testing.assert_close(value, double.penalty(twin, real).detach())
    assert not value.requires_grad


def test_pictures_of_inference_mode_and_views():
    """What a generator made in inference mode, expanded, and channels_last."""
    discriminator = critic().double()
    with torch.inference_mode():
        fake = pictures(3)
    for x in (fake, pictures(1).expand(3, -1, -1, -1), pictures(3).to(memory_format=torch.channels_last)):
        value = gankernels.gradient_penalty(discriminator, x, x, kind="r2")
        exact = double.penalty(discriminator, x.clone())
        assert (
            double.relative_error(double.gradient(value, discriminator), double.gradient(exact, discriminator)) <= 1e-12
        )
        assert not x.requires_grad


def test_gradients_do_not_share_memory_with_each_other(others):
    discriminator = critic()
    d_step(discriminator, pictures(2, torch.float32), pictures(2, torch.float32, seed=1))
    assert len({p.grad.data_ptr() for p in discriminator.parameters()}) == len(list(discriminator.parameters()))


def test_per_sample():
    discriminator = critic().double()
    x = pictures(3)
    each = gankernels.gradient_penalty(discriminator, x, kind="r1", per_sample=True)
    want = torch.stack([double.penalty(discriminator, x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(each, want.detach())
    assert not each.requires_grad


@pytest.mark.parametrize("kind", ["wgan-gp", "wgan-lp", "dragan"])
def test_no_nan_where_the_gradient_is_zero(kind):
    discriminator = critic().double()
    with torch.no_grad():
        discriminator[-1].weight.zero_()
    value = gankernels.gradient_penalty(discriminator, pictures(2), pictures(2, seed=1), kind=kind)
    assert value.item() == (0 if kind == "wgan-lp" else 1)
    assert double.gradient(value, discriminator).count_nonzero() == 0


def test_lazy():
    discriminator = critic().double()
    real, fake = pictures(2), pictures(2, seed=1)
    assert d_step(discriminator, real, fake, lazy=4, step=3).penalty.item() == 0
    discriminator.zero_grad()
    d_step(discriminator, real, fake, weight=1.0, lazy=4, step=8)
    lazy = double.accumulated(discriminator)
    discriminator.zero_grad()
    value, total = double.step(discriminator, real, fake, loss="hinge", penalty="r1", weight=4.0)
    assert double.relative_error(lazy, double.gradient(value + 4 * total, discriminator)) <= 1e-12


class LabelPlane(nn.Module):
    """The label as one more plane of the picture: a concatenated embedding, and a learned one."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.learned = nn.Embedding(3, 64), nn.Parameter(torch.randn(1, 1, 8, 8))
        self.body = critic(width=5)
        self.body[0] = conv(5, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        planes = self.embedding(y).view(-1, 1, 8, 8)
        return self.body(torch.cat([planes, x, self.learned.expand(len(x), -1, -1, -1)], 1))


def test_concatenated_labels(others):
    discriminator = LabelPlane().double()
    twin, y = copy.deepcopy(discriminator), torch.tensor([0, 2, 2])
    real, fake = pictures(3), pictures(3, seed=1)
    exact = double.penalty(twin, real, y)
    value = gankernels.gradient_penalty(discriminator, real, y=y, method="fused")
    assert double.relative_error(double.gradient(value, discriminator), double.gradient(exact, twin)) <= 1e-12
    value, total = double.step(twin, real, fake, y, loss="rpgan", penalty="r1", weight=2.0)
    d_step(discriminator, real, fake, y, loss="rpgan", weight=2.0, method="fused")
    want = double.gradient(value + 2 * total, twin)
    assert double.relative_error(double.accumulated(discriminator), want) <= 1e-12


def test_cached_parametrizations():
    """As the trainer calls its discriminator: spectral norms computed before, and cached."""
    discriminator = critic().double()
    for layer in (discriminator[0], discriminator[2]):
        gankernels.nn.spectral_norm(layer)
    discriminator.eval()
    with parametrize.cached():
        _ = discriminator[0].weight
        value = gankernels.gradient_penalty(discriminator, pictures(3), method="fused")
    exact = double.penalty(discriminator, pictures(3))
    assert double.relative_error(double.gradient(value, discriminator), double.gradient(exact, discriminator)) <= 1e-12


def test_given_points_take_the_place_of_drawn_ones():
    discriminator = critic().double()
    real, fake = pictures(3), pictures(3, seed=1)
    rng = torch.Generator().manual_seed(5)
    drawn = d_step(discriminator, real, fake, penalty="wgan-gp", generator=torch.Generator().manual_seed(5))
    alpha = torch.rand(3, 1, 1, 1, generator=rng, dtype=torch.float64)
    given = d_step(discriminator, real, fake, penalty="wgan-gp", points=torch.lerp(fake, real, alpha))
    assert drawn == given


OURS = {
    "conv2d": lambda: gankernels.nn.Conv2d(6, 4, 3, padding=1, groups=2),
    "conv2d, strided": lambda: gankernels.nn.Conv2d(6, 4, 4, stride=2, padding=1, bias=False),
    "conv2d_downsample": lambda: gankernels.nn.DownsampleConv2d(6, 4, 3, padding=1),
    "residual block": lambda: gankernels.nn.ResBlockDown(6, 4),
    "with spectral norm": lambda: gankernels.nn.ResBlockDown(6, 4, wrap=gankernels.nn.spectral_norm),
}


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("penalty", ["r1", "wgan-gp"])
def test_our_convolutions_are_in_the_class(name, penalty, others):
    torch.manual_seed(0)
    layers = gankernels.nn.Conv2d(3, 6, 3, padding=1), nn.LeakyReLU(0.2), OURS[name](), nn.Flatten(), nn.LazyLinear(1)
    discriminator = nn.Sequential(*layers)
    discriminator(pictures(1, torch.float32))
    discriminator.double().eval()
    real, fake = pictures(3), pictures(3, seed=1)
    points = {"points": (real + fake) / 2} if penalty == "wgan-gp" else {}
    d_step(discriminator, real, fake, penalty=penalty, weight=3.0, method="fused", **points)
    got = double.accumulated(discriminator)
    loss = double.LOSSES["hinge"](discriminator(real), discriminator(fake))
    value = double.penalty(discriminator, points.get("points", real), kind=penalty)
    assert double.relative_error(got, double.gradient(loss + 3 * value, discriminator)) <= 1e-12


def test_bad_input():
    discriminator = critic()
    x = pictures(2, torch.float32)
    for arguments, message in [
        ({"kind": "r3"}, "^kind: got 'r3', expected one of r1, r2"),
        ({"method": "fast"}, "^method: got 'fast', expected one of auto"),
        ({"kind": "r2"}, "^fake: got None, expected generated pictures for r2"),
        ({"kind": "wgan-gp", "fake": x[:1]}, "^fake: got shape"),
    ]:
        with pytest.raises(InputError, match=message):
            gankernels.gradient_penalty(discriminator, x, **arguments)
    with pytest.raises(InputError, match=r"^real: got shape \(0, 3, 8, 8\), expected at least one picture"):
        gankernels.gradient_penalty(discriminator, x[:0])
    with pytest.raises(InputError, match="does not depend on the pictures"):
        gankernels.gradient_penalty(Calls(lambda x: x.detach().sum(1)), x)
    for arguments, message in [
        ({"loss": "best"}, "^loss: got 'best', expected one of minimax"),
        ({"penalty": "r3"}, "^penalty: got 'r3', expected None or one of r1"),
        ({"lazy": 0}, "^lazy: got 0"),
        ({"fake": x[:1], "loss": "rpgan"}, "^fake: got logits"),
        ({"fake": x[..., 1:]}, "^fake: got pictures"),
        ({"points": x}, "^points: got some with penalty='r1', expected None"),
    ]:
        with pytest.raises(InputError, match=message):
            d_step(discriminator, x, **({"fake": x} | arguments))
