"""Sampler, average, precision, steps."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import gankernels
from gankernels.errors import InputError
from gankernels.train import EMAConfig, precision
from gankernels.train.batches import Batches, Sampler
from gankernels.train.ema import decay
from gankernels.train.step import Player, d_step, g_step, new_state

CPU = torch.device("cpu")


def test_sampler_covers_each_epoch_once():
    sampler = Sampler(10, seed=3)
    stream = torch.cat([sampler.next(4) for _ in range(10)]).view(4, 10)
    for epoch in stream:
        assert sorted(epoch.tolist()) == list(range(10))
    assert not torch.equal(stream[0], stream[1])
    assert torch.equal(Sampler(10, seed=3).next(40), stream.flatten())
    assert not torch.equal(Sampler(10, seed=4).next(40), stream.flatten())


def test_a_batch_may_be_larger_than_the_data_set():
    assert Sampler(3, seed=0).next(8).bincount().tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])


@pytest.mark.parametrize("taken", [3, 10, 17])
def test_sampler_goes_on_from_its_state(taken):
    sampler, other = Sampler(10, seed=3), Sampler(10, seed=0)
    sampler.next(taken)
    other.load_state_dict(sampler.state_dict())
    assert torch.equal(sampler.next(25), other.next(25))


def test_batches_are_floats_in_range(dataset):
    x, y = Batches(dataset, 24, CPU, seed=0).next()
    assert x.dtype == torch.float32
    assert -1 <= x.min() < x.max() <= 1
    order = y.argsort(stable=True)
    assert x[order[0]].mean() < x[order[-1]].mean()


def test_half_life_of_the_average():
    config = EMAConfig(kimg=10, ramp_up=None)
    # After as many images as the half-life, half of the old average is left, whatever the batch.
    for batch in (50, 1000):
        kept = decay(config, images=10**9, images_per_update=batch) ** (10_000 / batch)
        assert kept == pytest.approx(0.5)
    ramped = EMAConfig(kimg=10, ramp_up=0.05)
    assert decay(ramped, images=1000, images_per_update=50) == pytest.approx(0.5)
    assert decay(ramped, images=10**9, images_per_update=50) == decay(config, images=0, images_per_update=50)


def test_average_of_the_weights(make_config, dataset):
    state = new_state(make_config(ema=EMAConfig(kimg=0.05, ramp_up=None)), dataset, CPU, None)
    before = state.ema.generator.conv.weight.clone()
    with torch.no_grad():
        state.g.net.conv.weight.add_(1)
    state.ema.update(decay(state.config.ema, images=50, images_per_update=50))
    torch.testing.assert_close(state.ema.generator.conv.weight, before + 0.5)


def test_standing_statistics_are_those_of_the_averaged_generator(make_config, dataset):
    state = new_state(make_config(ema=EMAConfig(statistics_images=64)), dataset, CPU, None)
    g = state.ema.generator
    seen = []
    g.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0].var((0, 2, 3))))
    state.ema.estimate_statistics(batch=16, seed=5)
    assert len(seen) == 4
    torch.testing.assert_close(g.norm.running_var, torch.stack(seen).mean(0))
    assert g.norm.momentum == 0.1
    assert not g.training
    first = g.norm.running_var.clone()
    state.ema.estimate_statistics(batch=16, seed=5)
    assert torch.equal(g.norm.running_var, first)


def test_precision():
    assert precision.resolve("fp32", CPU)[0] is None
    assert precision.resolve("bf16", CPU)[0] == torch.bfloat16
    auto, reason = precision.resolve("auto", CPU)
    assert auto == (torch.bfloat16 if precision.computes_in_bf16(CPU) else None)
    assert reason.split()[0] == ("fp32" if auto is None else "bf16")
    with pytest.raises(InputError, match="precision: got fp16 on cpu"):
        precision.resolve("fp16", CPU)


def test_steps_update_one_side_each(make_config, dataset):
    state = new_state(make_config(), dataset, CPU, None)
    batch = Batches(dataset, 8, CPU, seed=0).next()

    def weights(player):
        return [p.detach().clone() for p in player.net.parameters()]

    def same(a, b):
        return [torch.equal(x, y) for x, y in zip(a, b, strict=True)]

    g, d = weights(state.g), weights(state.d)
    scalars = d_step(state, batch)
    assert all(same(weights(state.g), g))
    assert not any(same(weights(state.d), d)[-2:])
    assert set(scalars) == {"d_loss", "d_real", "d_fake", "d_grad_norm"}
    assert all(p.grad is None for p in state.g.net.parameters())

    d = weights(state.d)
    for p in state.d.net.parameters():
        p.grad = None
    scalars = g_step(state, batch)
    assert all(same(weights(state.d), d))
    assert all(p.grad is None and p.requires_grad for p in state.d.net.parameters())
    assert not all(same(weights(state.g), g))
    assert set(scalars) == {"g_loss", "g_grad_norm"}
    assert all(value.dtype == torch.float32 and not value.requires_grad for value in scalars.values())


def test_gradient_norm_is_that_of_all_gradients(make_config, dataset):
    state = new_state(make_config(), dataset, CPU, None)
    norm = g_step(state, Batches(dataset, 8, CPU, seed=0).next())["g_grad_norm"]
    together = torch.cat([p.grad.flatten() for p in state.g.net.parameters()])
    torch.testing.assert_close(norm, together.norm())


def test_spectral_norms_stay_fp32_under_autocast(make_config, dataset):
    """The power iteration, and so the state, of a bf16 step equals that of an fp32 step."""
    batch = Batches(dataset, 8, CPU, seed=0).next()
    vectors = []
    for dtype in (None, torch.bfloat16):
        state = new_state(make_config(), dataset, CPU, dtype)
        d_step(state, batch)
        vectors.append([b.clone() for name, b in state.d.net.named_buffers() if name.endswith("_u")])
    assert all(torch.equal(a, b) for a, b in zip(*vectors, strict=True))


@pytest.mark.parametrize("normed", [parametrizations.spectral_norm, gankernels.nn.spectral_norm], ids=["torch", "ours"])
def test_spectral_norms_of_a_player_are_taken_together(make_config, normed):
    """Once a block, in the dtype of autocast, with the numbers and the state names of PyTorch's."""

    def net():
        torch.manual_seed(0)
        return nn.Sequential(normed(nn.Conv2d(2, 3, 3)), nn.ReLU(), normed(nn.Conv2d(3, 1, 3)))

    stock, player = net(), Player(net(), make_config().d, CPU, torch.bfloat16)
    assert player.net.state_dict().keys() == stock.state_dict().keys()
    assert [id(p) for p in player.optimizer.param_groups[0]["params"]] == [id(p) for p in player.net.parameters()]
    with player.hold():
        weight = player.net[0].weight
        assert player.net[0].weight is weight
        assert weight.dtype == torch.bfloat16
        torch.testing.assert_close(weight.float(), stock[0].weight, rtol=1e-2, atol=1e-2)
        _ = stock[2].weight
    for (name, ours), theirs in zip(player.net.state_dict().items(), stock.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda text, name=name: f"{name}: {text}")
    loss = weight.float().square().sum()
    player.update(loss)
    assert player.net[0].parametrizations.weight.original.grad is not None
    # As a checkpoint of a run before, or after, this one.
    player.net.load_state_dict(stock.state_dict())
    stock.load_state_dict(player.net.state_dict())


def losses(config, dataset, steps: int, dtype: torch.dtype | None, impl: str | None) -> torch.Tensor:
    """[steps, 2]: the losses of discriminator and generator."""
    state, batches = new_state(config, dataset, CPU, dtype), Batches(dataset, config.batch, CPU, seed=config.seed)
    rows = []
    with gankernels.use(impl):
        for _ in range(steps):
            batch = batches.next()
            rows.append(torch.stack([d_step(state, batch)["d_loss"], g_step(state, batch)["g_loss"]]))
    return torch.stack(rows)


def test_kernels_train_as_the_reference_does(make_config, dataset):
    """50 steps from one seed: apart by no more than what one rounding to bf16 makes of the losses."""
    config = make_config(g=dataclasses.replace(make_config().g, ch=8))
    reference = losses(config, dataset, 50, None, "reference")
    kernels = losses(config, dataset, 50, None, None)
    assert (kernels - reference).abs().max() <= 2**-8 * reference.abs().max()


def test_bf16_kernels_train_as_the_reference_does(make_config, dataset):
    """In bf16 the kernels' losses over 50 steps are no further from those of fp32 than twice the reference's."""
    config = make_config(batch=4)
    exact = losses(config, dataset, 50, None, "reference")
    reference = losses(config, dataset, 50, torch.bfloat16, "reference")
    kernels = losses(config, dataset, 50, torch.bfloat16, None)
    assert (kernels - exact).square().mean().sqrt() <= 2 * (reference - exact).square().mean().sqrt()
