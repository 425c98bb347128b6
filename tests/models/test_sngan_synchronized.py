"""Training on several ranks: the weights of two ranks with half the batch each are those of one with all of it."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from gankernels import losses, models
from gankernels.nn import synchronize
from ranks import run_in_ranks

STEPS, BATCH, CLASSES = 10, 32, 3


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="torch has no gloo")
def test_two_ranks_with_half_the_batch_train_as_one():
    run_in_ranks(_check, 2)


def _check(rank: int) -> None:
    half = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
    ranks = _train(half, synchronized=True)
    if rank == 0:
        one = _train(slice(None))
        # The yardstick of rounding: the same batch in one process, its samples in another order.
        rounding = max(_distance(_train(order), one) for order in (torch.arange(BATCH).flip(0), _shuffled()))
        assert 0 < rounding < 1e-5
        assert _distance(ranks, one) <= 2 * rounding
    apart = _train(half, synchronized=False)
    if rank == 0:
        assert _distance(apart, one) > 1000 * rounding


def _train(mine: slice | Tensor, synchronized: bool | None = None) -> dict[str, Tensor]:
    """SGD on both networks, alternating; None: all in this process. The hinge's loss would turn rounding into steps."""
    torch.manual_seed(0)
    generator, discriminator = networks = models.build(
        "sngan-32", num_classes=CLASSES, g_ch=8, d_ch=8, g_widths=(1, 1, 0.5, 0.5), dim_z=8
    )
    if synchronized:
        synchronize(generator)
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.5) for net in networks]
    for step in range(STEPS):
        torch.manual_seed(step)
        real, z, y = torch.rand(BATCH, 3, 32, 32) * 2 - 1, torch.randn(BATCH, 8), torch.arange(BATCH) % CLASSES
        real, z, y = real[mine], z[mine], y[mine]
        with torch.no_grad():
            fake = generator(z, y)
        loss = losses.non_saturating_d(discriminator(real, y), discriminator(fake, y))
        _update(discriminator, optimizers[1], loss, synchronized is not None)
        loss = losses.non_saturating_g(discriminator(generator(z, y), y))
        _update(generator, optimizers[0], loss, synchronized is not None)
    return {name: t.detach() for net in networks for name, t in _named(net)}


def _update(net: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, average: bool) -> None:
    optimizer.zero_grad()
    loss.backward()
    for p in net.parameters():
        if average and p.grad is not None:
            dist.all_reduce(p.grad)
            p.grad /= dist.get_world_size()
    optimizer.step()


def _named(net: nn.Module) -> list[tuple[str, Tensor]]:
    return [(f"{type(net).__name__}.{k}", t) for k, t in net.state_dict().items() if t.is_floating_point()]


def _distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Of all weights and running statistics, relative to their size."""
    difference, size = (sum(t.square().sum().item() for t in ts) for ts in ([a[k] - b[k] for k in b], b.values()))
    return (difference / size) ** 0.5


def _shuffled() -> Tensor:
    return torch.randperm(BATCH, generator=torch.Generator().manual_seed(1))
