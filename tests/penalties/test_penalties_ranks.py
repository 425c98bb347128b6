"""Penalties in DistributedDataParallel, against the whole batch in one process.

One launch of three processes runs all checks, over the group of three ranks and over that of the first two. A failed
check names its case; the other ranks are then stopped.
"""

from __future__ import annotations

import copy

import double_backprop as double
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gankernels
from gankernels.penalties import d_step
from ranks import run_in_ranks

pytestmark = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="torch has no gloo")

COUNT = 6  # samples in all, which two and three ranks share evenly
WEIGHT = 3.0


def test_ranks_equal_one_process():
    run_in_ranks(_checks, 3)


def _checks(rank: int) -> None:
    pair = dist.new_group([0, 1])
    for group in (dist.group.WORLD, pair) if rank < 2 else (dist.group.WORLD,):
        for name, discriminator in _discriminators().items():
            for loss, penalty in (("hinge", "r1"), ("wasserstein", "wgan-gp")):
                _check_step(group, name, discriminator, loss, penalty)
            _check_accumulation(group, name, discriminator)
            _check_penalty(group, name, discriminator)


def _discriminators() -> dict[str, nn.Module]:
    """In the class of the closed form, plain and with spectral norms, and outside it; the same on every rank."""
    torch.manual_seed(1)

    def layers(*norm: nn.Module) -> nn.Sequential:
        return nn.Sequential(
            gankernels.nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(4, 5, 3, padding=1), *norm,
            nn.ReLU(), nn.Flatten(), nn.Linear(80, 1),
        ).double()  # fmt: skip

    normed = layers()
    for layer in (normed[0], normed[2], normed[-1]):
        gankernels.nn.spectral_norm(layer)
    grouped = copy.deepcopy(normed)
    gankernels.nn.SpectralNormGroup(grouped)
    return {"plain": layers(), "normed": normed, "grouped": grouped, "outside": layers(nn.GroupNorm(1, 5), nn.SiLU())}


def _batch(seed: int) -> tuple[Tensor, Tensor]:
    """Real and fake pictures, the same on every rank."""
    generator = torch.Generator().manual_seed(seed)
    real, fake = torch.randn(2, COUNT, 3, 8, 8, generator=generator, dtype=torch.float64)
    return real, fake


def _mine(tensors: tuple[Tensor, ...], group: dist.ProcessGroup) -> list[Tensor]:
    return [t.chunk(group.size())[group.rank()] for t in tensors]


def _generators(group: dist.ProcessGroup) -> tuple[torch.Generator, Tensor]:
    """One that draws this rank's interpolates next, and all of them [N, 1, 1, 1]."""
    whole, mine = (torch.Generator().manual_seed(5) for _ in range(2))
    torch.rand(group.rank() * COUNT // group.size(), generator=mine, dtype=torch.float64)
    return mine, torch.rand(COUNT, 1, 1, 1, generator=whole, dtype=torch.float64)


def _wanted(discriminator: nn.Module, real: Tensor, fake: Tensor, loss: str, penalty: str, alpha: Tensor) -> Tensor:
    points = fake + alpha * (real - fake) if penalty == "wgan-gp" else None
    value, total = double.step(discriminator, real, fake, loss=loss, penalty=penalty, weight=WEIGHT, points=points)
    return double.gradient(value + WEIGHT * total, discriminator)


def _assert_equal(module: nn.Module, want: Tensor, group: dist.ProcessGroup, case: str) -> None:
    error = double.relative_error(double.accumulated(module), want)
    assert error <= 1e-12, f"{case}, {group.size()} ranks: relative error {error:.1e}"


def _check_step(group: dist.ProcessGroup, name: str, discriminator: nn.Module, loss: str, penalty: str) -> None:
    module, batch = copy.deepcopy(discriminator), _batch(7)
    rng, alpha = _generators(group)
    want = _wanted(copy.deepcopy(discriminator), *batch, loss, penalty, alpha)
    parallel = DistributedDataParallel(module, process_group=group)
    method = "auto" if name == "outside" else "fused"
    mine = _mine(batch, group)
    d_step(parallel, *mine, loss=loss, penalty=penalty, weight=WEIGHT, method=method, generator=rng)
    _assert_equal(module, want, group, f"{name}, {penalty}")


def _check_accumulation(group: dist.ProcessGroup, name: str, discriminator: nn.Module) -> None:
    """Two batches, the first of which is not reduced by itself."""
    module, twin = copy.deepcopy(discriminator), copy.deepcopy(discriminator)
    batches = _batch(7), _batch(8)
    want = sum(_wanted(twin, *batch, "hinge", "r1", torch.zeros(())) for batch in batches)
    parallel = DistributedDataParallel(module, process_group=group)
    with parallel.no_sync():
        d_step(parallel, *_mine(batches[0], group), weight=WEIGHT)
    d_step(parallel, *_mine(batches[1], group), weight=WEIGHT)
    _assert_equal(module, want, group, f"{name}, accumulated")


def _check_penalty(group: dist.ProcessGroup, name: str, discriminator: nn.Module) -> None:
    """In a loop of one's own: the loss's forward and the penalty's, and one backward."""
    module, twin = copy.deepcopy(discriminator), copy.deepcopy(discriminator)
    batch = _batch(7)
    logits = twin(torch.cat(batch)).chunk(2)
    want = double.gradient(double.LOSSES["hinge"](*logits) + WEIGHT * double.penalty(twin, batch[0]), twin)
    parallel = DistributedDataParallel(module, process_group=group)
    real, fake = _mine(batch, group)
    logits = parallel(torch.cat([real, fake])).chunk(2)
    loss = double.LOSSES["hinge"](*logits) + WEIGHT * gankernels.gradient_penalty(parallel, real)
    loss.backward()
    _assert_equal(module, want, group, f"{name}, penalty")
