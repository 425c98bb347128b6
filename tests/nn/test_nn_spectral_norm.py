"""nn.spectral_norm against PyTorch's parametrization."""

from __future__ import annotations

import io

import pytest
import torch
from spectral_normed import batch, network, states_equal
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from gankernels.errors import InputError
from gankernels.nn import SpectralNormGroup, spectral_norm
from gankernels.nn.spectral_norm import SpectralNorm


def test_trains_as_pytorchs():
    ours, theirs = network(), network(parametrizations.spectral_norm)
    states_equal(ours, theirs)
    for step in range(3):
        for model in (ours, theirs):
            model.zero_grad()
            (model(*batch(step)).sum() - model(*batch(step + 9)).square().sum()).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
    states_equal(ours, theirs, rtol=1e-10)
    assert torch.allclose(ours.eval()(*batch()), theirs.eval()(*batch()), rtol=1e-10)


@pytest.mark.parametrize("direction", ["to ours", "to theirs"])
def test_checkpoints_load_both_ways(direction):
    source, target = network(), network(parametrizations.spectral_norm)
    if direction == "to ours":
        source, target = target, source
    source(*batch())
    with torch.no_grad():
        for p in target.parameters():
            p.zero_()
    buffer = io.BytesIO()
    torch.save(source.state_dict(), buffer)
    buffer.seek(0)
    assert target.load_state_dict(torch.load(buffer, weights_only=True)) == ([], [])
    states_equal(source, target)
    torch.testing.assert_close(target.eval()(*batch()), source.eval()(*batch()))


def test_state_names():
    keys = spectral_norm(nn.Linear(3, 4)).state_dict().keys()
    assert set(keys) == {
        "bias",
        "parametrizations.weight.original",
        "parametrizations.weight.0._u",
        "parametrizations.weight.0._v",
    }


@pytest.mark.parametrize("arguments", [{"n_power_iterations": 3}, {"eps": 1e-2}, {"dim": 1}, {"name": "bias"}], ids=str)
def test_arguments_mean_what_they_mean_in_pytorch(arguments):
    layers = []
    for normalise in (spectral_norm, parametrizations.spectral_norm):
        torch.manual_seed(1)
        layers.append(normalise(nn.Conv2d(3, 4, 3), **arguments))
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(layers[0](x), layers[1](x))
    states_equal(*layers, rtol=1e-5)


def test_remove_and_assign():
    layer = spectral_norm(nn.Linear(3, 4)).eval()
    normalised = layer.weight.detach().clone()
    layer.weight = 2 * normalised
    torch.testing.assert_close(layer.parametrizations.weight.original, 2 * normalised)
    layer.weight = normalised
    parametrize.remove_parametrizations(layer, "weight")
    assert isinstance(layer.weight, nn.Parameter)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: spectral_norm(nn.Linear(2, 2), "kernel"), "name: got 'kernel', expected a parameter of Linear"),
        (lambda: spectral_norm(nn.Linear(2, 2, dtype=torch.complex64)), "weight: got dtype torch.complex64"),
        (lambda: SpectralNorm(torch.eye(2).to_sparse()), "weight: got layout torch.sparse_coo"),
        (lambda: spectral_norm(nn.Linear(2, 2), n_power_iterations=0), "n_power_iterations: got 0"),
        (lambda: spectral_norm(nn.Linear(2, 2), dim=2), "dim: got 2"),
        (lambda: SpectralNormGroup(nn.Linear(2, 2)), "model: got one without spectral norms"),
        (lambda: SpectralNormGroup(nn.utils.spectral_norm(nn.Linear(2, 2))), r"torch\.nn\.utils\.spectral_norm"),
    ],
)
def test_bad_input_is_one_line(make, message):
    with pytest.raises(InputError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
