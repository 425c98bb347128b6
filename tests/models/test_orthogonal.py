from __future__ import annotations

import pytest
import torch
from torch import nn

from gankernels.models import orthogonal_regularization_


def penalty(weight):
    """1809.11096, equation 3."""
    w = weight.flatten(1)
    return ((w @ w.mT) * (1 - torch.eye(len(w), dtype=w.dtype))).square().sum()


@pytest.mark.parametrize("with_gradients", [True, False])
def test_gradient_is_autograds(with_gradients):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Linear(7, 4), nn.Embedding(6, 3), nn.BatchNorm2d(3)).double()
    net.to(memory_format=torch.channels_last)
    parameters = list(net.parameters())
    excluded = net[2].weight
    given = [torch.randn_like(p) if with_gradients else torch.zeros_like(p) for p in parameters]
    for p, gradient in zip(parameters, given, strict=True):
        p.grad = gradient.clone() if with_gradients else None
    orthogonal_regularization_(net.parameters(), 0.3, exclude=[excluded])
    for p, before in zip(parameters, given, strict=True):
        if p.dim() < 2 or p is excluded:
            assert p.grad is None if not with_gradients else torch.equal(p.grad, before)
            continue
        (wanted,) = torch.autograd.grad(0.3 * penalty(p), p)
        torch.testing.assert_close(p.grad, before + wanted, rtol=1e-12, atol=1e-12)
        assert p.grad.stride() == p.stride()


def test_orthogonal_filters_have_no_gradient():
    layer = nn.init.orthogonal_(nn.Parameter(torch.empty(4, 6, dtype=torch.float64)))
    orthogonal_regularization_([layer])
    torch.testing.assert_close(layer.grad, torch.zeros_like(layer), rtol=0, atol=1e-15)


def test_descent_makes_filters_orthogonal():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 8, dtype=torch.float64) / 8**0.5)
    before = penalty(weight).item()
    for _ in range(200):
        weight.grad = None
        orthogonal_regularization_([weight], 1.0)
        with torch.no_grad():
            weight.sub_(weight.grad, alpha=0.02)
    assert penalty(weight).item() < 1e-6 * before
