"""Loss and penalty of a discriminator in one go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gankernels.errors import InputError
from gankernels.losses import LOSSES
from gankernels.penalties import kinds
from gankernels.penalties._eager import eager
from gankernels.penalties.penalty import check
from gankernels.penalties.run import Block, Roots, Run

#: The penalties by name: the kinds, and both of R3GAN's.
PENALTIES = (*kinds.KINDS, "r1+r2")

_AT_PICTURES = ("r1", "r2", "r1+r2")


class DStep(NamedTuple):
    """What a step computed: detached scalars in fp32 (fp64 for fp64), on the discriminator's device."""

    loss: Tensor
    penalty: Tensor  # the mean over samples, before its weight; 0 if there was none
    real: Tensor  # the mean logit of real pictures
    fake: Tensor  # and of generated ones


@eager
def d_step(
    discriminator: nn.Module,
    real: Tensor,  # [N, ...]
    fake: Tensor,  # [M, ...]
    y: Tensor | None = None,  # [N, ...]
    *,
    y_fake: Tensor | None = None,  # [M, ...]
    loss: str = "hinge",
    penalty: str | None = "r1",
    weight: float = 10.0,
    method: str = "auto",
    target: float = 1.0,
    generator: torch.Generator | None = None,
    points: Tensor | None = None,  # [N, ...]
    scaler: torch.amp.GradScaler | None = None,
    lazy: int = 1,
    step: int = 0,
    joint: bool = True,
) -> DStep:
    """Accumulate the exact gradient of ``loss + weight * penalty`` into the parameters' ``.grad``.

    One forward serves both. In the closed form, loss and penalty share the reverse pass and the weight gradients too:
    4 convolutions a layer where a step without a penalty takes 3 and double backprop 6, and these only for the pictures
    that are penalised.

    Args:
        discriminator: as for :func:`gankernels.gradient_penalty`. The loss is a mean over logits, summed over heads.
        real, fake: pictures of one shape and dtype; constants.
        y, y_fake: labels of the real and of the generated pictures; ``y_fake`` None takes ``y``.
        loss: ``"minimax"``, ``"non-saturating"``, ``"least-squares"``, ``"hinge"``, ``"wasserstein"``, ``"rsgan"``,
            ``"ragan"`` or ``"rpgan"``; :mod:`gankernels.losses` has the formulas.
        penalty: a kind of :func:`gankernels.gradient_penalty`, ``"r1+r2"`` for both, or None.
        weight: of the penalty: lambda of WGAN-GP, gamma of R1 and R2.
        method, target, generator: as for :func:`gankernels.gradient_penalty`.
        points: where ``wgan-gp``, ``wgan-lp`` or ``dragan`` takes the gradient; None draws them from ``generator``.
        scaler: of a loop in fp16: the gradients are multiplied by its scale, for ``scaler.step`` to divide by.
        lazy, step: only where ``step`` is a multiple of ``lazy`` is the penalty taken, with ``lazy`` times the weight
            (Karras et al., arXiv 1912.04958, section 3.1).
        joint: run all pictures in one batch, as ``discriminator(cat(real, fake, interpolates))``; False runs the
            three apart, which differs where the discriminator mixes samples (batch norm, minibatch standard deviation).
            There, g is the gradient of the logits of the penalised pictures.

    Returns:
        The loss, the penalty and the mean logits.

    Raises:
        InputError, RuntimeError: as :func:`gankernels.gradient_penalty`.

    Example:
        >>> optimizer.zero_grad()
        >>> scalars = gankernels.penalties.d_step(discriminator, real, fake, loss="rpgan", penalty="r1+r2", weight=0.05)
        >>> optimizer.step()
    """
    if loss not in LOSSES:
        raise InputError(f"loss: got {loss!r}, expected one of {', '.join(LOSSES)}")
    if penalty is not None and penalty not in PENALTIES:
        raise InputError(f"penalty: got {penalty!r}, expected None or one of {', '.join(PENALTIES)}")
    if points is not None and penalty in (None, *_AT_PICTURES):
        raise InputError(f"points: got some with penalty={penalty!r}, expected None, or a penalty that draws them")
    if lazy < 1:
        raise InputError(f"lazy: got {lazy}, expected at least 1")
    check("d_step", discriminator, method, real=real, fake=fake)
    if real.shape[1:] != fake.shape[1:] or real.dtype != fake.dtype:
        got, expected = (f"{list(x.shape[1:])} in {x.dtype}" for x in (fake, real))
        raise InputError(f"fake: got pictures {got}, expected {expected}, as real's")
    kind = penalty if step % lazy == 0 else None
    if points is None and kind is not None and kind not in _AT_PICTURES:
        points = kinds.points(kind, real, fake, generator)
    blocks = _blocks(real, fake, points, y, y if y_fake is None else y_fake, kind, weight * lazy, target)
    groups = [blocks] if joint else [[block] for block in blocks]
    runs = [Run(discriminator, group, method, with_loss=True) for group in groups]

    parts = [part for run in runs for part in run.parts()]  # of real, fake, and interpolates
    value, slopes = _loss_and_slopes(loss, parts[0], parts[1], parts[2:])
    scale: Tensor | float = 1.0 if scaler is None else scaler.scale(torch.ones((), device=real.device))
    roots: Roots = []
    for run in runs:
        mine, slopes = slopes[: len(run.blocks)], slopes[len(run.blocks) :]
        roots += run.roots([torch.cat(heads) for heads in zip(*mine, strict=True)], scale)[0]
    _backward(runs, roots)
    each = [mean for run in runs for mean in run.means()]
    means = [torch.cat([head.detach().flatten() for head in part]).mean() for part in parts[:2]]
    return DStep(value, sum(each[1:], each[0]) if each else torch.zeros_like(value), *means)


def _blocks(
    real: Tensor,
    fake: Tensor,
    points: Tensor | None,
    y: Tensor | None,
    y_fake: Tensor | None,
    kind: str | None,
    weight: float,
    target: float,
) -> list[Block]:
    """Real, fake, and where the penalty is at neither, its own pictures."""
    at_real, at_fake = ("r1" if kind in ("r1", "r1+r2") else None), ("r2" if kind in ("r2", "r1+r2") else None)
    blocks = [Block(real, y, at_real, weight, target), Block(fake, y_fake, at_fake, weight, target)]
    if kind is not None and points is not None:
        blocks.append(Block(points, y, kind, weight, target))
    return blocks


def _loss_and_slopes(
    loss: str, real: list[Tensor], fake: list[Tensor], others: Sequence[list[Tensor]]
) -> tuple[Tensor, list[list[Tensor]]]:
    """The loss, and its gradient in the logits of each block and head; 0 for those that it does not look at."""
    with torch.enable_grad():
        for head in (*real, *fake):
            head.requires_grad_()
        pairs = zip(real, fake, strict=True)
        value = torch.stack([LOSSES[loss].d(*pair) for pair in pairs]).sum()
        slopes = torch.autograd.grad(value, [*real, *fake])
    zeros = [[torch.zeros_like(head) for head in part] for part in others]
    return value.detach(), [list(slopes[: len(real)]), list(slopes[len(real) :]), *zeros]


def _backward(runs: list[Run], roots: Roots) -> None:
    """One reverse pass of autograd from the roots to the parameters, hooks of DDP and accumulation included."""
    pictures = [run.x for run in runs]
    leaves = [leaf for leaf in runs[0].leaves(roots) if not any(leaf is x for x in pictures)]
    if leaves:
        edges, gradients = zip(*roots, strict=True)
        torch.autograd.backward(edges, gradients, inputs=leaves)
