"""What the tests of nn.spectral_norm share: a network that has it everywhere, its inputs, and a comparison."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gankernels.nn import spectral_norm


class Network(nn.Module):
    """Every kind of layer; the last linear layer twice, as the projection of real and fake might be."""

    def __init__(self, normalise) -> None:
        super().__init__()
        self.conv = normalise(nn.Conv2d(3, 4, 3))
        self.up = normalise(nn.ConvTranspose2d(4, 5, 4, stride=2))
        self.embedding = normalise(nn.Embedding(7, 5))
        self.linear = normalise(nn.Linear(5, 5))
        self.plain = nn.Linear(5, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.up(F.relu(self.conv(x))).mean((2, 3))
        h = self.linear(self.linear(h).tanh())
        return (self.embedding(y) * h).sum(1) + self.plain(h).squeeze(1)


def network(normalise=spectral_norm, dtype=torch.float64) -> Network:
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return Network(normalise)
    finally:
        torch.set_default_dtype(before)


def batch(seed: int = 0, dtype=torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 6, 6, dtype=dtype, generator=generator), torch.randint(0, 7, (2,), generator=generator)


def states_equal(a: nn.Module, b: nn.Module, rtol: float = 1e-12) -> None:
    assert a.state_dict().keys() == b.state_dict().keys()
    for key, value in a.state_dict().items():
        torch.testing.assert_close(value, b.state_dict()[key], rtol=rtol, atol=rtol, msg=lambda m, k=key: f"{k}: {m}")
