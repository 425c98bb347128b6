"""Systems other than SNGAN in the trainer: their settings reach the networks, and come back from a checkpoint."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from gankernels.bench.stock import to_stock
from gankernels.errors import InputError
from gankernels.train import ArchitectureConfig, NetworkConfig, load_generator, train
from gankernels.train.batches import Batch
from gankernels.train.sample import interpolate
from gankernels.train.step import build, d_step, new_state

WIDTHS = (4, 4, 4, 4)


@pytest.fixture
def biggan(make_config):
    """BigGAN at its least width, with the class and the latent as at 128 px."""
    return make_config(
        preset="biggan-32",
        images=16,
        g=NetworkConfig(ch=1, widths=WIDTHS),
        d=NetworkConfig(ch=1, widths=WIDTHS),
        net=ArchitectureConfig(shared_embedding=True, shared_dim=5, hierarchical_z=True),
    )


def test_biggan_with_a_shared_embedding(biggan, dataset):
    outcome = train(biggan, dataset=dataset)
    trained = load_generator(outcome.run)
    generator = trained.generator
    assert trained.config == biggan
    assert generator.embedding.weight.shape == (3, 5)
    rows = interpolate(generator, [0, 2], columns=3, seed=0)
    assert rows.shape == (6, 1, 32, 32)
    with torch.no_grad():
        generator.embedding.weight[1] += 10  # neither end of either row
        again = interpolate(generator, [0, 2], columns=3, seed=0)
        assert torch.equal(rows, again)
        generator.embedding.weight[2] += 10
        again = interpolate(generator, [0, 2], columns=3, seed=0)
    same = (rows == again).flatten(1).all(1).tolist()
    assert same == [True, False, False, False, False, True]  # from class 0 to 2, and from 2 back to 0


def test_networks_of_stock_layers_take_the_same_steps(biggan, dataset, tmp_path):
    # An epsilon far above the gradients: else Adam's first steps are as long where a gradient is rounding alone.
    smooth = dataclasses.replace(biggan.g, lr=0.2, eps=1.0)
    ours = dataclasses.replace(biggan, images=32, g=smooth, d=smooth)
    stock = dataclasses.replace(ours, out=str(tmp_path / "stock"), impl="reference")
    made = []

    def networks(config, **facts):
        made.extend(to_stock(network) for network in build(config, **facts))
        return tuple(made)

    states = [train(ours, dataset=dataset).run, train(stock, dataset=dataset, networks=networks).run]
    expected, trained = (load_generator(run, ema=False).generator.state_dict() for run in states)
    assert len(made) == 2
    torch.testing.assert_close(trained, expected, rtol=1e-4, atol=1e-5)
    initial = new_state(ours, dataset, torch.device("cpu"), None).g.net.state_dict()
    assert not torch.allclose(
        trained["conv.parametrizations.weight.original"], initial["conv.parametrizations.weight.original"]
    )


@pytest.fixture
def dcgan(make_config):
    return make_config(
        preset="dcgan-32",
        images=8,
        g=NetworkConfig(ch=2, widths=(4, 2, 1)),
        d=NetworkConfig(ch=2, widths=(1, 2, 4)),
        loss="non-saturating",
    )


def test_dcgan_becomes_conditional(dcgan, dataset):
    trained = load_generator(train(dcgan, dataset=dataset).run)
    assert trained.generator.num_classes == 3


@pytest.mark.parametrize(("system", "batches"), [("dcgan", [8, 8]), ("biggan", [16])])
def test_batch_statistics_are_of_real_or_of_fake_pictures(system, batches, dataset, request):
    state = new_state(request.getfixturevalue(system), dataset, torch.device("cpu"), None)
    seen = []
    state.d.net.register_forward_hook(lambda net, inputs, output: seen.append(len(inputs[0])))
    d_step(state, Batch(torch.zeros(8, 1, 32, 32), torch.zeros(8, dtype=torch.long)))
    assert seen == batches


def test_a_setting_that_a_system_does_not_have(make_config, dataset):
    config = make_config(
        preset="dcgan-32",
        g=NetworkConfig(ch=2, widths=(4, 2, 1)),
        d=NetworkConfig(ch=2, widths=(1, 2, 4)),
        net=ArchitectureConfig(attention=16),
    )
    with pytest.raises(InputError, match="attention: got 16 for dcgan-32, expected one of its settings: ch, channels"):
        train(config, dataset=dataset)
