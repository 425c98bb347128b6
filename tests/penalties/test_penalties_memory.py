"""What lies between the passes: no more than they need, and of samples without a penalty nothing."""

from __future__ import annotations

import pytest
import torch
from critics import Calls, conv, critic, pictures, taken_apart
from torch import nn

from gankernels.bench.memory import peak_mib
from gankernels.penalties import d_step
from gankernels.penalties.recorder import record
from gankernels.penalties.run import Block, Run
from gankernels.penalties.samples import Rows


def narrow() -> nn.Sequential:
    """A discriminator whose activations outweigh its weights."""
    layers = [layer for _ in range(8) for layer in (conv(16, 16), nn.ReLU())]
    return nn.Sequential(conv(3, 16), nn.ReLU(), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 1))


def test_peak_memory():
    """Apart, the inputs and cotangents of layers are never there for all samples."""
    discriminator = narrow()
    real, fake = torch.randn(8, 3, 32, 32), torch.randn(8, 3, 32, 32)

    def step() -> None:
        d_step(discriminator, real, fake, penalty="r1")

    peaks = []
    for apart in (False, True):
        with taken_apart(apart):
            step()
            peaks.append(peak_mib(step, "cpu"))
    layer = 16 * 16 * 32 * 32 * 4 / 2**20  # MiB of all samples
    # an input for each layer but the first, whose pictures were there, and a cotangent; apart, the inputs and what the
    # reverse pass has in hand
    assert 17 * layer < peaks[0]
    assert peaks[1] < (9 + 4) * layer


@pytest.mark.parametrize(
    ("penalised", "size", "dtype", "want"),
    [
        (range(2), 32, torch.float32, True),
        (range(2, 4), 32, torch.bfloat16, True),
        (range(2), 1, torch.float32, False),  # a gradient of the weights is larger
        (range(4), 32, torch.float32, False),  # there are no others
        (range(1, 3), 32, torch.float32, False),  # they do not stand beside each other
        (range(2), 32, torch.float16, False),  # without a scaler, it may need a second attempt
    ],
)
def test_when_samples_are_taken_apart(penalised, size, dtype, want):
    blocks = [Block(torch.randn(1, 3, size, size), kind="r1" if i in penalised else None) for i in range(4)]
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        run = Run(narrow(), blocks, "fused", with_loss=True)
    rows = Rows(run.penalised[0], run.penalised[1] - run.penalised[0], 4)
    assert run._others_apart(rows, attempts=len(run._scales_of_seeds(run.tape, 1.0))) == want


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("activation", [lambda i: nn.LeakyReLU(0.2, i), lambda i: nn.Hardtanh(inplace=i)])
def test_kinks_keep_what_is_there_anyhow(activation, in_place):
    """The output where a layer with weights takes it; else the input, which autograd has too; never both."""
    middle = [activation(in_place), conv(8, 8), activation(in_place), Calls(lambda x: 2 * x)]
    tape = record(critic(*middle), pictures(2, torch.float32).requires_grad_(), keep_mixed=True)
    taken, doubled, _ = [node for node in tape.nodes if node.rule is not None and node.rule.either]
    assert taken.keeps == ("result",)
    assert taken["self"].numbers is None
    assert doubled.keeps == (("result",) if in_place else ("self",))
    assert (doubled["self"].numbers is None) == in_place != (doubled.result.numbers is None)
