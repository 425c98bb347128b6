"""The closed form on 200 random discriminators of its class, in fp64, against double backprop."""

from __future__ import annotations

import copy

import double_backprop as double
import torch
from critics import taken_apart
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from random_discriminators import CLASSES, discriminators

import gankernels
from gankernels.penalties import KINDS, d_step

_SETTINGS = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
_TOLERANCE = 1e-10


def _pictures(count: int, shape: tuple[int, ...], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *shape, generator=rng, dtype=torch.float64)
    return x, torch.randint(CLASSES, (count,), generator=rng)


@_SETTINGS
@given(discriminators(), st.sampled_from(KINDS), st.integers(1, 4))
def test_penalty(drawn, kind, count):
    discriminator, shape = drawn
    twin = copy.deepcopy(discriminator)
    real, y = _pictures(count, shape, 0)
    fake, _ = _pictures(count, shape, 1)
    rng = torch.Generator().manual_seed(5)
    points = {"r1": real, "r2": fake}.get(kind)
    if kind == "dragan":
        points = real + 0.5 * real.std() * torch.randn(real.shape, generator=rng, dtype=real.dtype)
    elif points is None:
        alpha = torch.rand(count, 1, 1, 1, generator=rng, dtype=real.dtype)
        points = fake + alpha * (real - fake)
    exact = double.penalty(twin, points, y, kind=kind, target=0.3)

    value = gankernels.gradient_penalty(
        discriminator, real, fake, y, kind=kind, method="fused", target=0.3, generator=rng.manual_seed(5)
    )
    torch.testing.assert_close(value, exact, rtol=1e-12, atol=1e-14)
    error = double.relative_error(double.gradient(3 * value, discriminator), double.gradient(3 * exact, twin))
    assert error <= _TOLERANCE


@_SETTINGS
@given(
    discriminators(),
    st.sampled_from(list(double.LOSSES)),
    st.sampled_from([None, "r1", "r2", "r1+r2", "wgan-gp", "wgan-lp"]),
    st.integers(1, 3),
    st.booleans(),
)
def test_step(drawn, loss, penalty, count, apart):
    discriminator, shape = drawn
    twin = copy.deepcopy(discriminator)
    real, y = _pictures(count, shape, 0)
    fake, _ = _pictures(count, shape, 1)
    points = None
    if penalty in ("wgan-gp", "wgan-lp"):
        alpha = torch.rand(count, 1, 1, 1, generator=torch.Generator().manual_seed(5), dtype=real.dtype)
        points = fake + alpha * (real - fake)
    exact = double.step(twin, real, fake, y, loss=loss, penalty=penalty, weight=2.5, points=points, target=0.3)

    with taken_apart(apart):
        scalars = d_step(
            discriminator,
            real,
            fake,
            y,
            loss=loss,
            penalty=penalty,
            weight=2.5,
            method="fused",
            target=0.3,
            generator=torch.Generator().manual_seed(5),
        )
    torch.testing.assert_close(torch.stack(scalars[:2]), torch.stack(exact), rtol=1e-10, atol=1e-12)
    want = double.gradient(exact[0] + 2.5 * exact[1], twin)
    assert double.relative_error(double.accumulated(discriminator), want) <= _TOLERANCE
