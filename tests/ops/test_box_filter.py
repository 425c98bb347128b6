"""The 2x2 box filters and the transposed weight that resampled convolutions are made of on a CPU, in fp64."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

import gankernels
from gankernels import _native
from gankernels.nn import DownsampleConv2d, SpectralNormGroup, UpsampleConv2d, spectral_norm
from gankernels.nn import spectral_norm_group as group_module
from gankernels.ops import _resampled_convolution, conv2d_downsample, upsample_conv2d
from gankernels.ops._box_filter import box_mean, box_sum
from gankernels.ops.fold_conv_weight import kept
from gankernels.ops.fold_conv_weight.transpose import transpose_conv_weight
from implementations import needs_extension

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
layouts = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.fixture(autouse=True)
def with_few_channels(monkeypatch):
    monkeypatch.setattr(_resampled_convolution, "BOX_CHANNELS", 0)


def drawn(*shape, layout="channels_last", dtype=torch.float64):
    t = torch.randn(shape, dtype=torch.float64).to(dtype)
    return t.contiguous(memory_format=LAYOUTS[layout]).requires_grad_()


def shifted(x):
    """By no, one row, one column, both."""
    return x[:, :, :-1, :-1], x[:, :, :-1, 1:], x[:, :, 1:, :-1], x[:, :, 1:, 1:]


@layouts
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4)], ids=str)
def test_sums_and_means(layout, size, poisoned):
    x = drawn(2, 3, *size, layout=layout)
    filters = [(lambda x: box_mean(x, full=True), lambda x: sum(shifted(F.pad(x, (1, 1, 1, 1)))) / 4)]
    if min(size) > 1:
        filters += [
            (box_sum, lambda x: sum(shifted(x))),
            (lambda x: box_mean(x, full=False), lambda x: sum(shifted(x)) / 4),
        ]
    for ours, plain in filters:
        y, want = ours(x), plain(x)
        assert y.is_contiguous(memory_format=LAYOUTS[layout]) or size == (1, 1)  # which has no layout
        torch.testing.assert_close(y, want, rtol=1e-14, atol=1e-14)
        dy = torch.randn_like(y)
        torch.testing.assert_close(torch.autograd.grad(y, x, dy), torch.autograd.grad(want, x, dy))
        assert gradcheck(ours, x, fast_mode=True)
        assert gradgradcheck(ours, x, fast_mode=True)


@layouts
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (5, 3, 3, 3), (33, 70, 3, 3), (3, 2, 5, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_transposed_weight(layout, shape, dtype, poisoned):
    weight = drawn(*shape, layout=layout, dtype=dtype)
    for channels_last in (True, False):
        turned = transpose_conv_weight(weight, channels_last)
        assert turned.is_contiguous(memory_format=LAYOUTS["channels_last" if channels_last else "contiguous"])
        assert torch.equal(turned, weight.transpose(0, 1).flip(2, 3))
        with gankernels.use("reference"):
            assert torch.equal(turned, transpose_conv_weight(weight, channels_last))
        (back,) = torch.autograd.grad(turned, weight, turned.detach())
        assert torch.equal(back, weight)
        # without the kernel, the layout of gradients is autograd's
        assert back.is_contiguous(memory_format=LAYOUTS[layout]) or _native.extension is None


def test_transposed_weight_twice():
    weight = drawn(3, 2, 3, 3)
    assert gradcheck(lambda w: transpose_conv_weight(w, True), weight)
    assert gradgradcheck(lambda w: transpose_conv_weight(w, False), weight)


@needs_extension
def test_opcheck():
    x, weight = drawn(2, 3, 4, 5, dtype=torch.float32), drawn(3, 2, 3, 3, dtype=torch.float32)
    for full in (True, False):
        torch.library.opcheck(torch.ops.gankernels_library.box_filter.default, (x, full, 4))
    for channels_last in (True, False):
        torch.library.opcheck(torch.ops.gankernels.transpose_conv_weight.default, (weight, channels_last))


@pytest.mark.parametrize("op", [upsample_conv2d, conv2d_downsample])
@pytest.mark.parametrize("retain", [True, False])
def test_two_backwards(op, retain):
    x, weight = drawn(2, 3, 6, 6), drawn(4, 3, 3, 3)
    y = op(x, weight).square().sum()
    first = torch.autograd.grad(y, (x, weight), retain_graph=retain)
    if not retain:
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(y, (x, weight))
    else:
        torch.testing.assert_close(torch.autograd.grad(y, (x, weight)), first, rtol=0, atol=0)


def test_groups_keep_transposed_weights(monkeypatch):
    """One for all forwards of a step, with the gradients of one for each."""
    made, make = [], kept.transpose_conv_weight
    monkeypatch.setattr(kept, "transpose_conv_weight", lambda *given: made.append(given) or make(*given))
    torch.manual_seed(0)
    net = spectral_norm(UpsampleConv2d(2, 3)).double().to(memory_format=torch.channels_last)
    other = copy.deepcopy(net)
    for model in (net, other):
        if model is other:
            monkeypatch.setattr(group_module, "keep_folds", lambda weight: None)
        with SpectralNormGroup(model).hold():
            (model(drawn_as(1)).square().sum() - model(drawn_as(2)).square().sum()).backward()
    assert len(made) == 1 + 2
    for got, want in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-12, atol=1e-12)


def drawn_as(seed):
    return torch.randn(2, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["r1", "wgan-gp"])
def test_penalty_by_the_engine(kind):
    torch.manual_seed(0)
    discriminator = torch.nn.Sequential(
        DownsampleConv2d(2, 3, activation="lrelu"), UpsampleConv2d(3, 2, activation="relu"), torch.nn.Flatten()
    )
    discriminator.append(torch.nn.Linear(2 * 6 * 6, 1)).double().to(memory_format=torch.channels_last)
    real, fake = (torch.randn(3, 2, 6, 6, dtype=torch.float64) for _ in range(2))
    gradients = []
    for method in ("fused", "double_backward"):
        generator = torch.Generator().manual_seed(1)
        penalty = gankernels.gradient_penalty(discriminator, real, fake, kind=kind, method=method, generator=generator)
        gradients.append(torch.autograd.grad(penalty, list(discriminator.parameters()), materialize_grads=True))
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
