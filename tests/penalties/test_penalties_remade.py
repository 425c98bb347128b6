"""The means of what is kept are made again where the tangents pass, and not kept."""

from __future__ import annotations

import copy

import double_backprop as double
import pytest
import torch
from critics import Calls, conv, pictures
from torch import Tensor, nn

import gankernels
from gankernels.nn import DownsampleConv2d
from gankernels.ops import _resampled_convolution
from gankernels.ops._box_filter import box_mean
from gankernels.penalties import d_step
from gankernels.penalties.closed_form import Passes
from gankernels.penalties.recorder import record
from gankernels.penalties.samples import Rows
from gankernels.penalties.tape import TapeError


@pytest.fixture(autouse=True)
def with_few_channels(monkeypatch):
    monkeypatch.setattr(_resampled_convolution, "BOX_CHANNELS", 0)


class Both(nn.ModuleList):
    """The sum of what two layers make of the same."""

    def forward(self, x: Tensor) -> Tensor:
        return self[0](x) + self[1](x)


def means() -> Calls:
    return Calls(lambda x: box_mean(x, full=True))


#: Behind a convolution and a ReLU of 8 channels at 8 px; back to 8 channels.
MIDDLES = {
    "downsample": lambda: [DownsampleConv2d(8, 8), nn.LeakyReLU(0.2)],
    "unkept input": lambda: [conv(8, 8), DownsampleConv2d(8, 8), nn.ReLU()],
    "uneven padding": lambda: [DownsampleConv2d(8, 8, padding=(0, 1, 1, 2)), nn.ReLU()],
    "written to": lambda: [means(), nn.ReLU(inplace=True)],
    "looked at": lambda: [Calls(lambda x: x + 0 * (box_mean(x, full=False) > 0).double().mean())],
    "twice": lambda: [means(), Both([conv(8, 8), conv(8, 8, 1)])],
    "outside": lambda: [means(), nn.Tanh()],
    "a norm": lambda: [DownsampleConv2d(8, 8), nn.GroupNorm(2, 8), nn.ReLU(), DownsampleConv2d(8, 8)],
}
OUTSIDE = ("outside", "a norm")
#: How many means are made again: not those of what is not kept, a convolution's result or a padded copy, and not those
#: that no weight's gradient takes.
REMADE = {"downsample": 1, "twice": 1, "outside": 1, "a norm": 2}


def discriminator(middle: str) -> nn.Sequential:
    torch.manual_seed(0)
    tail = [nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 1)]
    layers = [conv(3, 8), nn.ReLU(), *MIDDLES[middle](), conv(8, 4), *tail]
    return nn.Sequential(*layers).double().to(memory_format=torch.channels_last)


def drawn(count: int, seed: int = 0) -> Tensor:
    return pictures(count, seed=seed).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("middle", MIDDLES)
def test_exact(middle, others):
    d = discriminator(middle)
    twin, real, fake = copy.deepcopy(d), drawn(3), drawn(3, seed=1)
    method = "auto" if middle in OUTSIDE else "fused"
    value = gankernels.gradient_penalty(d, real, method=method)
    exact = double.penalty(twin, real)
    assert double.relative_error(double.gradient(value, d), double.gradient(exact, twin)) <= 1e-12

    value, total = double.step(twin, real, fake, loss="hinge", penalty="r1", weight=5.0)
    want = double.gradient(value + 5 * total, twin)
    d_step(d, real, fake, penalty="r1", weight=5.0, method=method, joint=True)
    assert double.relative_error(double.accumulated(d), want) <= 1e-12


@pytest.mark.parametrize("middle", MIDDLES)
def test_what_is_kept(middle):
    """Nothing that is made again has numbers on the tape, and behind the tangents nothing has."""
    x = drawn(2).requires_grad_()
    tape = record(discriminator(middle), x, keep_mixed=True)
    variables = [v for node in tape.nodes for v in node.outputs if v is not None]
    assert sum(v.remade for v in variables) == REMADE.get(middle, 0)
    assert all(v.numbers is None for v in variables if v.remade)
    assert any(v.numbers is not None for v in variables)
    passes = Passes(tape, Rows(0, 2, 2))
    t = passes.reverse([torch.ones_like(logit) for logit in tape.logits], retain_graph=False)
    passes.tangents(t, None if middle in OUTSIDE else torch.ones(2, dtype=torch.float64))
    assert all(v.numbers is None for node in tape.nodes for v in node.variables)


def test_a_change_in_place_of_what_is_kept():
    seen = []
    d = discriminator("downsample")
    d.insert(2, Calls(lambda x: seen.append(x) or x))
    tape = record(d, drawn(2).requires_grad_(), keep_mixed=True)
    passes = Passes(tape, Rows(0, 2, 2))
    t = passes.reverse([torch.ones_like(logit) for logit in tape.logits], retain_graph=False)
    with torch.no_grad():
        seen[0].add_(1)
    with pytest.raises(TapeError, match="changed in place later"):
        passes.tangents(t)
