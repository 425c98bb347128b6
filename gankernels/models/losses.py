"""Losses on the discriminator's logits. Each takes and returns fp32."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


def hinge_d(real: Tensor, fake: Tensor) -> Tensor:
    """``E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(z)))]``. Lim and Ye, arXiv 1705.02894; Miyato et al., 1802.05957.

    Args:
        real, fake: logits [N] and [M] of real and generated pictures.
    """
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_g(fake: Tensor) -> Tensor:
    """``-E[D(G(z))]``, the generator's side of :func:`hinge_d`, for logits [N]."""
    return -fake.mean()


def non_saturating_d(real: Tensor, fake: Tensor) -> Tensor:
    """``E[-log s(D(x))] + E[-log(1 - s(D(G(z))))]``, s the sigmoid. Goodfellow et al., arXiv 1406.2661, equation 1.

    Args:
        real, fake: logits [N] and [M] of real and generated pictures.
    """
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def non_saturating_g(fake: Tensor) -> Tensor:
    """``E[-log s(D(G(z)))]`` for logits [N]. Goodfellow et al., arXiv 1406.2661, end of section 3."""
    return F.softplus(-fake).mean()


class Loss(NamedTuple):
    """The two sides of a game."""

    d: Callable[[Tensor, Tensor], Tensor]
    g: Callable[[Tensor], Tensor]


#: The trainer's ``--loss`` by name.
LOSSES = {"hinge": Loss(hinge_d, hinge_g), "non-saturating": Loss(non_saturating_d, non_saturating_g)}
