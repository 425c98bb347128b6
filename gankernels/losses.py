"""Losses on the discriminator's logits: both sides of each game, one small function a side.

The logits are of any one shape with the samples in front; a loss is the mean over all of them. Compute them in fp32.
The discriminator's side takes ``(real, fake)``, the generator's ``(fake, real)``, of which only the relativistic ones
look at ``real``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from gankernels.errors import InputError


def hinge_d(real: Tensor, fake: Tensor) -> Tensor:
    """``E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(z)))]``. Lim and Ye, arXiv 1705.02894; Miyato et al., 1802.05957.

    Args:
        real, fake: logits [N] and [M] of real and generated pictures.
    """
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_g(fake: Tensor, real: Tensor | None = None) -> Tensor:
    """``-E[D(G(z))]``, the generator's side of :func:`hinge_d`, for logits [N]."""
    return -fake.mean()


def non_saturating_d(real: Tensor, fake: Tensor) -> Tensor:
    """``E[-log s(D(x))] + E[-log(1 - s(D(G(z))))]``, s the sigmoid. Goodfellow et al., arXiv 1406.2661, equation 1.

    Args:
        real, fake: logits [N] and [M] of real and generated pictures.
    """
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def non_saturating_g(fake: Tensor, real: Tensor | None = None) -> Tensor:
    """``E[-log s(D(G(z)))]`` for logits [N]. Goodfellow et al., arXiv 1406.2661, end of section 3."""
    return F.softplus(-fake).mean()


def minimax_g(fake: Tensor, real: Tensor | None = None) -> Tensor:
    """``E[log(1 - s(D(G(z))))]`` for logits [N]. Goodfellow et al., arXiv 1406.2661, equation 1.

    The discriminator's side is :func:`non_saturating_d`.
    """
    return -F.softplus(fake).mean()


def least_squares_d(real: Tensor, fake: Tensor) -> Tensor:
    """``E[(D(x) - 1)^2] / 2 + E[D(G(z))^2] / 2``. Mao et al., arXiv 1611.04076, equation 9."""
    return (real - 1).square().mean() / 2 + fake.square().mean() / 2


def least_squares_g(fake: Tensor, real: Tensor | None = None) -> Tensor:
    """``E[(D(G(z)) - 1)^2] / 2``. Mao et al., arXiv 1611.04076, equation 9."""
    return (fake - 1).square().mean() / 2


def wasserstein_d(real: Tensor, fake: Tensor) -> Tensor:
    """``E[D(G(z))] - E[D(x)]``. Arjovsky et al., arXiv 1701.07875, equation 2, as a loss."""
    return fake.mean() - real.mean()


def wasserstein_g(fake: Tensor, real: Tensor | None = None) -> Tensor:
    """``-E[D(G(z))]``. Arjovsky et al., arXiv 1701.07875, algorithm 1."""
    return -fake.mean()


def rsgan_d(real: Tensor, fake: Tensor) -> Tensor:
    """``E[-log s(D(x) - D(G(z)))]`` over pairs. Jolicoeur-Martineau, arXiv 1807.00734, section 4.1.

    As ``rpgan`` it is the loss of Huang et al., arXiv 2501.05441 (R3GAN), equation 2, with f(t) = -log(1 + e^-t).

    Args:
        real, fake: logits of one shape; entry i of one is paired with entry i of the other.
    """
    return F.softplus(-(_paired(real, fake))).mean()


def rsgan_g(fake: Tensor, real: Tensor | None = None) -> Tensor:
    """``E[-log s(D(G(z)) - D(x))]`` over pairs, the generator's side of :func:`rsgan_d`."""
    return F.softplus(_paired(_given(real), fake)).mean()


def ragan_d(real: Tensor, fake: Tensor) -> Tensor:
    """``E[-log s(D(x) - E[D(G(z))])] + E[-log(1 - s(D(G(z)) - E[D(x)]))]``. Jolicoeur-Martineau, arXiv 1807.00734.

    Section 4.2 (RaSGAN).
    """
    return F.softplus(-(real - fake.mean())).mean() + F.softplus(fake - real.mean()).mean()


def ragan_g(fake: Tensor, real: Tensor | None = None) -> Tensor:
    """The generator's side of :func:`ragan_d`: the same with real and generated exchanged."""
    return ragan_d(fake, _given(real))


def _paired(real: Tensor, fake: Tensor) -> Tensor:
    if real.shape != fake.shape:
        raise InputError(f"fake: got logits {list(fake.shape)}, expected {list(real.shape)}, one for each real one")
    return real - fake


def _given(real: Tensor | None) -> Tensor:
    if real is None:
        raise InputError("real: got None, expected the logits of real pictures")
    return real


class Loss(NamedTuple):
    """The two sides of a game."""

    d: Callable[[Tensor, Tensor], Tensor]
    g: Callable[..., Tensor]
    relativistic: bool = False  # the generator's side asks for the real logits too


#: All of them by name.
LOSSES = {
    "minimax": Loss(non_saturating_d, minimax_g),
    "non-saturating": Loss(non_saturating_d, non_saturating_g),
    "least-squares": Loss(least_squares_d, least_squares_g),
    "hinge": Loss(hinge_d, hinge_g),
    "wasserstein": Loss(wasserstein_d, wasserstein_g),
    "rsgan": Loss(rsgan_d, rsgan_g, relativistic=True),
    "ragan": Loss(ragan_d, ragan_g, relativistic=True),
    "rpgan": Loss(rsgan_d, rsgan_g, relativistic=True),
}
