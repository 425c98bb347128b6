"""saved_as: another tensor in the place of the one that backward makes again."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from gankernels.bench.memory import saved_mib
from gankernels.ops import _resampled_convolution, conv2d_downsample
from gankernels.ops._saved import saved_as
from gankernels.ops.conv2d_downsample import library


def squared(x, weight, makes=None, wanted_for=None):
    """(exp(x) * weight), saving x in exp(x)'s place."""

    def make(x):
        if makes is not None:
            makes.append(torch.is_grad_enabled())
        return x.exp()

    grown = _Exp.apply(x)
    with saved_as(grown, x, make, wanted_for=wanted_for):
        return grown * weight


class _Exp(torch.autograd.Function):
    """Saves its input, not its result."""

    @staticmethod
    def forward(x):
        return x.exp()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, dy):
        return dy * ctx.saved_tensors[0].exp()


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    return tuple(torch.randn(3, 4, dtype=torch.float64).requires_grad_() for _ in range(2))


def test_any_order(tensors):
    assert torch.autograd.gradcheck(squared, tensors)
    assert torch.autograd.gradgradcheck(squared, tensors)


def test_made_at_every_unpacking_and_only_then(tensors):
    makes = []
    y = squared(*tensors, makes).sum()
    assert makes == []
    first = torch.autograd.grad(y, tensors, retain_graph=True)
    assert makes == [False]
    second = torch.autograd.grad(y, tensors)
    assert makes == [False] * 2
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    with torch.no_grad():
        squared(*tensors, makes)
    assert len(makes) == 2


def test_made_for_the_gradient_that_reads_it_alone(tensors):
    makes = []
    y = squared(*tensors, makes, wanted_for=1).sum()
    x, weight = tensors
    (dx,) = torch.autograd.grad(y, x, retain_graph=True)
    assert makes == []
    (dweight,) = torch.autograd.grad(y, weight, retain_graph=True)
    assert makes == [False]
    y.backward()
    assert makes == [False] * 2
    for got in ((dx, dweight), (x.grad, weight.grad)):
        torch.testing.assert_close(got, (x.exp() * weight, x.exp()))


@pytest.mark.parametrize("which", [0, 1])
def test_a_change_in_place_raises(tensors, which):
    x, weight = (t.detach().clone().requires_grad_() for t in tensors)
    y = squared(x, weight)
    with torch.no_grad():
        (x, weight)[which].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_hooks_around_see_what_is_saved(tensors):
    seen = []
    with saved_tensors_hooks(lambda t: seen.append(t) or t.clone(), lambda t: t):
        y = squared(*tensors)
    x, weight = tensors
    assert len(seen) == 3  # exp's x, then of the product x for exp(x), and the weight
    assert sum(torch.equal(t, x) for t in seen) == 2
    with torch.no_grad():
        x.add_(1), weight.add_(1)  # the hooks have copies
    got = torch.autograd.grad(y.sum(), tensors)
    old = x.detach() - 1
    torch.testing.assert_close(got, (old.exp() * (weight.detach() - 1), old.exp()))


def test_where_hooks_are_disabled(tensors):
    makes = []
    with torch.autograd.graph.disable_saved_tensors_hooks("not here"):
        got = torch.autograd.grad(squared(*tensors, makes).sum(), tensors)
    torch.testing.assert_close(got, torch.autograd.grad(squared(*tensors).sum(), tensors))
    assert makes == []


def test_checkpoint(tensors):
    got = torch.autograd.grad(checkpoint(squared, *tensors, use_reentrant=False).sum(), tensors)
    torch.testing.assert_close(got, torch.autograd.grad(squared(*tensors).sum(), tensors), rtol=0, atol=0)


def test_the_mean_before_a_convolution_is_not_saved(monkeypatch):
    """conv2d_downsample in channels_last keeps x and the weight: nothing of the size of the means, and no fold."""
    monkeypatch.setattr(_resampled_convolution, "BOX_CHANNELS", 0)
    x = torch.randn(2, 8, 16, 16).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(4, 8, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    assert saved_mib(conv2d_downsample, (x, weight)) == 4 * (x.numel() + weight.numel()) / 2**20


def test_the_mean_is_made_for_the_gradient_of_the_weight_alone(monkeypatch):
    monkeypatch.setattr(_resampled_convolution, "BOX_CHANNELS", 0)
    made, make = [], library.box_mean
    monkeypatch.setattr(library, "box_mean", lambda *given, **settings: made.append(1) or make(*given, **settings))
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64).requires_grad_()
    y = conv2d_downsample(x, weight).square().sum()
    (dx,) = torch.autograd.grad(y, x, create_graph=True)
    assert len(made) == 1
    dx.square().sum().backward()
    assert len(made) == 2
    xs, weights = (t.detach().clone().requires_grad_() for t in (x, weight))
    y = torch.nn.functional.avg_pool2d(torch.nn.functional.conv2d(xs, weights, padding=1), 2).square().sum()
    torch.autograd.grad(y, xs, create_graph=True)[0].square().sum().backward()
    for got, want in ((x.grad, xs.grad), (weight.grad, weights.grad)):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
