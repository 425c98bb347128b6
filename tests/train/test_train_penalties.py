"""Losses and penalties in the trainer: the step's gradients, the statistics, and resuming."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from gankernels import cli
from gankernels.errors import InputError
from gankernels.losses import LOSSES
from gankernels.train import NetworkConfig, checkpoint, train
from gankernels.train.batches import Batches
from gankernels.train.step import build, d_step, g_step, new_state
from gankernels.train.telemetry import read_stats

CPU = torch.device("cpu")
NETWORKS = {
    "wgan-gp-32": {"g": NetworkConfig(ch=4), "d": NetworkConfig(ch=4)},
    "r3gan-32": {"g": NetworkConfig(ch=16), "d": NetworkConfig(ch=16)},
    "sngan-32": {},
    "dcgan-32": {
        "g": NetworkConfig(ch=2, widths=(4, 2, 1)),
        "d": NetworkConfig(ch=2, widths=(1, 2, 4)),
    },
}
RECIPES = {
    "wgan-gp-32": {"loss": "wasserstein", "penalty": "wgan-gp"},
    "r3gan-32": {"loss": "rpgan", "penalty": "r1+r2", "penalty_weight": 0.5},
    "sngan-32": {"loss": "non-saturating", "penalty": "r1"},
    "dcgan-32": {"loss": "ragan", "penalty": "r2"},
}


@pytest.fixture
def make(make_config):
    """``make(preset, ...)``: a penalised config of that preset at its least width."""

    def make(preset: str, **changes: object):
        return make_config(preset=preset, **(NETWORKS[preset] | RECIPES[preset] | changes))

    return make


def penalty_of(config, net, real, fake, alpha, y) -> torch.Tensor:
    """By double backprop, with a graph."""

    def at(pictures):
        x = pictures.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(net(x, y).sum(), x, create_graph=True)
        return gradient.flatten(1)

    if config.penalty == "wgan-gp":
        return (at(alpha * real + (1 - alpha) * fake).norm(dim=1) - 1).square().mean()
    points = [{"r1": real, "r2": fake}[name] for name in config.penalty.split("+")]
    return sum(at(pictures).square().sum(1).mean() / 2 for pictures in points)


@pytest.mark.parametrize("preset", ["wgan-gp-32", "r3gan-32", "sngan-32", "dcgan-32"])
def test_gradients_are_those_of_double_backprop(make, dataset, preset):
    config = make(preset, batch=4)
    state = new_state(config, dataset, CPU, None)
    d_step(state, Batches(dataset, 4, CPU, seed=1).next())  # away from weights that begin with zero
    state.d.net.eval()  # running statistics, and no more iterations: the two sides see one function
    batch = Batches(dataset, 4, CPU, seed=0).next()
    generator, net = build(config, num_classes=3, channels=1)
    generator.load_state_dict(state.g.net.state_dict())
    net.load_state_dict(state.d.net.state_dict())
    net.double().eval()
    rng = torch.Generator()
    rng.set_state(state.rng.get_state())
    with torch.no_grad():
        fake = generator(torch.randn(4, 8, generator=rng), batch.y).double()
    alpha, real = torch.rand(4, 1, 1, 1, generator=rng).double(), batch.x.double()

    scalars = d_step(state, batch)

    penalty = penalty_of(config, net, real, fake, alpha, batch.y)
    loss = LOSSES[config.loss].d(net(real, batch.y), net(fake, batch.y))
    (loss + config.penalty_weight * penalty).backward()
    want = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    got = torch.cat([p.grad.flatten() for p in state.d.net.parameters() if p.grad is not None]).double()
    assert (got - want).norm() <= 3e-6 * want.norm()
    for name, value in {"d_loss": loss, "penalty": penalty, "d_grad_norm": want.norm()}.items():
        torch.testing.assert_close(scalars[name].double(), value.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("preset", ["wgan-gp-32", "r3gan-32"])
def test_a_penalised_run_resumes_to_the_same_bits(make, dataset, tmp_path, preset):
    whole = make(preset, out=str(tmp_path / "whole"), n_dis=2, images=32, penalty_every=2)
    train(whole, dataset=dataset)
    broken = dataclasses.replace(whole, out=str(tmp_path / "broken"))
    train(dataclasses.replace(broken, images=16), dataset=dataset)
    train(broken, dataset=dataset, resume=True)
    stats = [read_stats(Path(config.out) / "stats.jsonl") for config in (whole, broken)]
    assert len(stats[0]) == 2
    for line, other in zip(*stats, strict=True):
        scalars = {name: line[name] for name in ("d_loss", "g_loss", "d_grad_norm", "penalty")}
        assert all(math.isfinite(value) for value in scalars.values())
        assert scalars == {name: other[name] for name in scalars}
    contents = [checkpoint.load_newest(Path(config.out)) for config in (whole, broken)]
    for player in ("g", "d"):
        for a, b in zip(*(content[player]["net"].values() for content in contents), strict=True):
            assert torch.equal(a, b)
    assert torch.equal(*(content["rng"]["latents"] for content in contents))


def test_a_lazy_penalty_has_its_weight_in_one_step_of_k(make, dataset):
    config = make("wgan-gp-32", penalty_every=3, penalty_weight=2.0)
    states = [new_state(c, dataset, CPU, None) for c in (config, make("wgan-gp-32", penalty_weight=6.0))]
    batches = Batches(dataset, 8, CPU, seed=0)
    first = batches.next()
    lazy, eager = (d_step(state, first) for state in states)
    assert all(torch.equal(lazy[name], eager[name]) for name in eager)
    taken = ["penalty" in d_step(states[0], batches.next()) for _ in range(6)]
    assert taken == [False, False, True, False, False, True]
    assert states[0].images == 7 * 8


@pytest.mark.parametrize("preset", ["wgan-gp-32", "r3gan-32"])
def test_bf16_steps_are_near_those_in_fp32(make, dataset, preset):
    batch = Batches(dataset, 8, CPU, seed=0).next()
    gradients = []
    for dtype in (None, torch.bfloat16):
        state = new_state(make(preset), dataset, CPU, dtype)
        scalars = d_step(state, batch) | g_step(state, batch)
        assert all(
            value.dtype == torch.float32 and not value.requires_grad and value.isfinite() for value in scalars.values()
        )
        gradients.append(torch.cat([p.grad.flatten() for p in state.d.net.parameters() if p.grad is not None]))
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.99


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_the_generators_too(make_config, dataset, loss):
    state = new_state(make_config(loss=loss, batch=4), dataset, CPU, None)
    state.d.net.eval()
    batch = Batches(dataset, 4, CPU, seed=0).next()
    rng = torch.Generator()
    rng.set_state(state.rng.get_state())
    fake = state.g.net(torch.randn(4, 8, generator=rng), batch.y)
    want = LOSSES[loss].g(state.d.net(fake, batch.y), state.d.net(batch.x, batch.y))
    torch.testing.assert_close(g_step(state, batch)["g_loss"], want.detach())
    assert all(p.grad is None and p.requires_grad for p in state.d.net.parameters())


def test_spectral_norms_iterate_once_a_step(make_config, dataset):
    """Also where the generator's loss judges real pictures as well."""
    batch = Batches(dataset, 8, CPU, seed=0).next()
    vectors = []
    for loss in ("hinge", "rpgan"):
        state = new_state(make_config(loss=loss), dataset, CPU, None)
        g_step(state, batch)
        vectors.append([b.clone() for name, b in state.d.net.named_buffers() if name.endswith("_u")])
    assert all(torch.equal(a, b) for a, b in zip(*vectors, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "huber"}, "--loss: got huber, expected one of minimax"),
        ({"penalty": "r3"}, "--penalty: got r3, expected None or one of r1"),
        ({"penalty_weight": 0.0}, "--penalty-weight: got 0.0, expected a number above 0"),
        ({"penalty_every": 0}, "--penalty-every: got 0, expected at least 1"),
    ],
)
def test_bad_fields_are_named(make_config, changes, message):
    with pytest.raises(InputError, match=message):
        make_config(**changes).check()


def test_presets_bring_their_penalty(capsys):
    options = ["--data", "digits", "--out", "nowhere", "--dry-run"]
    expected = {
        ("wgan-gp-32",): ("wasserstein", "wgan-gp", 10.0, 1),
        ("r3gan-32",): ("rpgan", "r1+r2", 0.05, 1),
        ("r3gan-64", "--penalty", "None"): ("rpgan", None, 2.0, 1),
        ("sngan-32", "--penalty", "r1", "--penalty-weight", "5", "--penalty-every", "16"): ("hinge", "r1", 5.0, 16),
    }
    for arguments, fields in expected.items():
        assert cli.main(["train", "--preset", *arguments, *options]) == 0
        printed = json.loads(capsys.readouterr().out)
        assert tuple(printed[name] for name in ("loss", "penalty", "penalty_weight", "penalty_every")) == fields
