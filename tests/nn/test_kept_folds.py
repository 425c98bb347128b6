"""The folded weights of a SpectralNormGroup: made once for all forwards that it serves, with the same gradients."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import nn

import gankernels
from gankernels.nn import DownsampleConv2d, SpectralNormGroup, UpsampleConv2d, spectral_norm
from gankernels.nn import spectral_norm_group as group_module
from gankernels.ops.fold_conv_weight import kept
from implementations import needs_extension

EXACT = {"rtol": 1e-12, "atol": 1e-12}


class Net(nn.Sequential):
    """One layer of each kind; 9 x 9 pixels are enough to be folded on a CPU."""

    def __init__(self):
        super().__init__(spectral_norm(UpsampleConv2d(2, 3)), nn.ReLU(), spectral_norm(DownsampleConv2d(3, 2)))
        self.double()


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def folds(monkeypatch):
    """Counts them."""
    made = []
    fold = kept.fold_conv_weight

    def counted(weight, *args, **keywords):
        made.append(weight)
        return fold(weight, *args, **keywords)

    monkeypatch.setattr(kept, "fold_conv_weight", counted)
    return made


def pictures(seed=1):
    return torch.randn(2, 2, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradients(net):
    found = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    return found


@pytest.mark.parametrize("held", [False, True], ids=["served", "held"])
def test_one_fold_for_all_forwards_of_a_step(net, folds, held, monkeypatch):
    """Real and fake, and a penalty on the first order's gradient, in one loss."""

    def step(net, group):
        def loss():
            x = pictures().requires_grad_()
            scores = net(x)
            (dx,) = torch.autograd.grad(scores.square().sum(), x, create_graph=True)
            return scores.sum() - net(pictures(2)).square().sum() + dx.square().sum()

        if held:
            with group.hold():
                loss().backward()
        else:
            loss().backward()
        return gradients(net)

    other = copy.deepcopy(net)
    got = step(net, SpectralNormGroup(net))
    assert len(folds) == 2
    with monkeypatch.context() as patch:
        patch.setattr(group_module, "keep_folds", lambda weight: None)
        want = step(other, SpectralNormGroup(other))
    assert len(folds) == 2 + 4
    torch.testing.assert_close(got, want, **EXACT)


def test_every_step_has_its_own(net, folds):
    """Forward, backward, optimizer: as without a group, where each forward iterates too."""
    other = copy.deepcopy(net)
    SpectralNormGroup(net)
    losses = []
    for model in (net, other):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for seed in range(3):
            optimizer.zero_grad()
            loss = model(pictures(seed)).square().sum()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    torch.testing.assert_close(losses[:3], losses[3:], **EXACT)
    assert len(folds) == 2 * 6


def test_two_backwards(net, folds):
    SpectralNormGroup(net)
    y, z = net(pictures()).sum(), net(pictures(2)).sum()
    assert len(folds) == 2
    y.backward(retain_graph=True)
    z.backward()
    together = gradients(net)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0)  # new versions: the group computes anew
    net.eval()  # from the u and v that there are
    first = net(pictures()).sum()
    first.backward()
    net(pictures(2)).sum().backward()
    assert len(folds) == 2 + 4, "what a backward has gone through is not served again"
    torch.testing.assert_close(gradients(net), together, **EXACT)


def test_eval_folds_until_a_weight_changes(net, folds):
    other = copy.deepcopy(net).eval()
    SpectralNormGroup(net.eval())
    with torch.no_grad():
        for _ in range(3):
            y = net(pictures())
        assert len(folds) == 2
        torch.testing.assert_close(y, other(pictures()), **EXACT)
        for model in (net, other):
            model[0].parametrizations.weight.original.mul_(torch.linspace(0.5, 1, 9).view(3, 3).double())
        torch.testing.assert_close(net(pictures()), other(pictures()), **EXACT)


def test_gradient_modes_do_not_share(net, folds):
    group = SpectralNormGroup(net)
    with group.hold():
        with torch.no_grad():
            net(pictures())
        net(pictures()).sum().backward()
        assert len(folds) == 4
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())
    net.zero_grad()
    net.requires_grad_(False)
    with group.hold():
        with torch.inference_mode():
            net(pictures())
        x = pictures().requires_grad_()
        net(x).sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None for p in net.parameters())


def test_under_autocast_in_the_groups_dtype(net, folds):
    group = SpectralNormGroup(net.float(), out_dtype=torch.bfloat16)
    with group.hold(), torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            net(pictures().float())
    assert len(folds) == 2


def test_parameters_are_folded_at_every_call(folds):
    """A write through ``.data`` leaves no trace."""
    layer = UpsampleConv2d(2, 3).double().eval()
    with torch.no_grad():
        y = layer(pictures())
        layer.weight.data.mul_(2)
        layer.bias.data.mul_(2)
        torch.testing.assert_close(layer(pictures()), 2 * y, **EXACT)
    assert len(folds) == 2


@needs_extension
def test_implementations_do_not_share(net, folds):
    SpectralNormGroup(net.eval())
    with torch.no_grad():
        y = net(pictures())
        with gankernels.use("library"):
            assert torch.equal(net(pictures()), y)
        assert len(folds) == 2, "the fold has no such implementation: the same runs"
        weight = net[0].weight
    assert kept.folded_weight(weight, "up", False) is not kept.folded_weight(weight, "up", True)
    with torch.no_grad(), gankernels.use("reference"):
        assert kept.folded_weight(weight, "up", False).shape == (2, 3, 4, 4)
    assert len(kept._folds[weight]) >= 3


def test_folds_live_as_long_as_their_weight(net):
    gc.collect()
    before = len(kept._folds)
    group = SpectralNormGroup(net)
    net(pictures()).sum().backward()
    assert len(kept._folds) == before + 2
    group.refresh()
    gc.collect()
    assert len(kept._folds) == before


def test_compiled(net):
    other = copy.deepcopy(net)
    group, others = SpectralNormGroup(net), SpectralNormGroup(other)
    torch._dynamo.reset()
    with group.hold():
        y = net(pictures())
        compiled = torch.compile(net, backend="aot_eager")(pictures())
    torch.testing.assert_close(compiled, y, **EXACT)
    with others.hold():
        torch.testing.assert_close(other(pictures()), y, **EXACT)
