"""A discriminator's step with a penalty, against the same step without, on stock layers: the penalty's price alone.

The discriminators are those of :mod:`gankernels.bench.penalised_networks`, in plain PyTorch for everyone: only the way
to the gradient differs. Spectral norms are taken once a step, as the trainer takes them. The times of the cases of one
network compare directly, as all have the same pictures:

- *no penalty*: the loss, forward and backward.
- *R1*: on the real half. *R1 + R2*: on all pictures, as R3GAN takes them. *WGAN-GP*: on interpolates. The peers
  differentiate twice through the graph of the loss, but for WGAN-GP, whose pictures have a graph of their own; ours is
  :func:`gankernels.penalties.d_step`.
- *R1 + R2, peers apart*: the peers' penalties in a pass of their own, as most training loops have them; ours is as in
  *R1 + R2*.
- *R1 + R2 apart*: penalties in a pass of their own for everyone; ours is :func:`gankernels.gradient_penalty`.
- *our layers*: ours with those of ``gankernels.nn`` too, as the presets have them; the peers as before.

Where every picture is penalised, the convolutions of the three ways are as 4 to 6 to 9, and 3 without a penalty. *R1*
leaves the generated half at 3, for everyone, and so compares as 7 to 9; *WGAN-GP* as 10 to 12.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gankernels import gradient_penalty, penalties
from gankernels.bench import penalised_networks
from gankernels.bench.declaration import STEP, Benchmark, Case
from gankernels.bench.declarations._convolution import DTYPES
from gankernels.bench.flops import count_flops
from gankernels.bench.functional_step import INPUTS, Called, Made, full, place
from gankernels.bench.penalised_networks import Judge, Network
from gankernels.losses import LOSSES

WEIGHT = 5.0

#: What is judged: real, fake, y, alpha.
Pictures = tuple[Tensor, Tensor, Tensor, Tensor]
#: logits of real and of fake pictures -> the loss
Loss = Callable[[Tensor, Tensor], Tensor]


def _stock(case: Case, *tensors: Tensor) -> list[Tensor]:
    judge, weights = case.arguments["parts"].value.judge(tensors[INPUTS:], tensors[0].dtype)
    penalised = _STOCK[case.arguments["kind"]]
    value = penalised(judge, LOSSES[case.arguments["loss"]].d, _pictures(tensors))
    return [value.detach(), *torch.autograd.grad(value, weights)]


def _pictures(tensors: Sequence[Tensor]) -> Pictures:
    real, fake, y, alpha = tensors[:INPUTS]
    return full(real).detach(), full(fake).detach(), y, full(alpha).detach()


def _no_penalty(judge: Judge, loss: Loss, pictures: Pictures) -> Tensor:
    real, fake, y, _ = pictures
    return loss(*judge(torch.cat([real, fake]), y.repeat(2)).chunk(2))


def _r1(judge: Judge, loss: Loss, pictures: Pictures) -> Tensor:
    real, fake, y, _ = pictures
    x = real.requires_grad_()
    logits = judge(x, y)
    return loss(logits, judge(fake, y)) + WEIGHT * _squares(logits, x).mean() / 2


def _r1_r2(judge: Judge, loss: Loss, pictures: Pictures) -> Tensor:
    real, fake, y, _ = pictures
    x = torch.cat([real, fake]).requires_grad_()
    logits = judge(x, y.repeat(2))
    return loss(*logits.chunk(2)) + WEIGHT * _squares(logits, x).mean()


def _r1_r2_apart(judge: Judge, loss: Loss, pictures: Pictures) -> Tensor:
    real, fake, y, _ = pictures
    x = torch.cat([real, fake]).requires_grad_()
    return _no_penalty(judge, loss, pictures) + WEIGHT * _squares(judge(x, y.repeat(2)), x).mean()


def _wgan_gp(judge: Judge, loss: Loss, pictures: Pictures) -> Tensor:
    """Gulrajani et al., arXiv 1704.00028, equation 3."""
    real, fake, y, alpha = pictures
    x = torch.lerp(fake, real, alpha).requires_grad_()
    norm = _squares(judge(x, y), x).sqrt()
    return _no_penalty(judge, loss, pictures) + WEIGHT * (norm - 1).square().mean()


def _squares(logits: Tensor, x: Tensor) -> Tensor:
    """``|g|^2`` [N]; half its mean is Mescheder et al., arXiv 1801.04406, equation 9, without its gamma."""
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return gradient.square().sum((1, 2, 3))


_STOCK: dict[str, Callable[[Judge, Loss, Pictures], Tensor]] = {
    "no penalty": _no_penalty,
    "R1": _r1,
    "R1 + R2": _r1_r2,
    "R1 + R2, peers apart": _r1_r2_apart,
    "R1 + R2 apart": _r1_r2_apart,
    "WGAN-GP": _wgan_gp,
}

#: The penalty of d_step; and the convolutions of the closed form, of each layer for each pair of pictures.
_OURS = {
    "no penalty": (None, 6),
    "R1": ("r1", 7),
    "R1 + R2": ("r1+r2", 8),
    "R1 + R2, peers apart": ("r1+r2", 8),
    "R1 + R2 apart": ("r1", 8),
    "WGAN-GP": ("wgan-gp", 10),
}


def _ours(case: Case, *tensors: Tensor, impl: str) -> list[Tensor]:
    judge, weights = case.arguments["ours"].value.judge(tensors[INPUTS:], tensors[0].dtype)
    kind, loss = case.arguments["kind"], case.arguments["loss"]
    discriminator, pictures = Called(judge), _pictures(tensors)
    real, fake, y, alpha = pictures
    penalty, _ = _OURS[kind]
    if kind == "R1 + R2 apart":
        value = _no_penalty(judge, LOSSES[loss].d, pictures)
        both = torch.cat([real, fake])
        value = value + 2 * WEIGHT * gradient_penalty(discriminator, both, y=y.repeat(2), kind="r1")
        return [value.detach(), *torch.autograd.grad(value, weights)]
    points = torch.lerp(fake, real, alpha) if penalty == "wgan-gp" else None
    scalars = penalties.d_step(discriminator, real, fake, y, loss=loss, penalty=penalty, weight=WEIGHT, points=points)
    return [scalars.loss + WEIGHT * scalars.penalty, *(w.grad for w in weights if w.grad is not None)]


def _inputs(case: Case, rng: torch.Generator) -> list[Tensor]:
    """Real and generated pictures, labels and weights of the interpolation; the network's state follows."""
    # made here, since their first use may be traced
    _ = case.arguments["parts"].value, case.arguments["ours"].value
    network: Network = case.arguments["network"]
    return [
        torch.rand(case.shape, generator=rng) * 2 - 1,
        # from elsewhere: of two samples of one distribution the losses' gradients cancel, and leave rounding
        torch.rand(case.shape, generator=rng),
        torch.randint(max(network.num_classes, 1), case.shape[:1], generator=rng),
        torch.rand(case.shape[0], 1, 1, 1, generator=rng),
        *network.state(rng),
    ]


def _judged(outputs: Sequence[Tensor]) -> list[Tensor]:
    return [torch.cat([output.flatten() for output in outputs])]


def _bytes(case: Case, mode: str, itemsize: int) -> float:
    """The weights read, the gradients written and the pictures read, once each; weights and gradients are in fp32."""
    return 4 * 2 * sum(t.numel() for t in case.arguments["parts"].value.parameters.values()) + case.passes(2, itemsize)


def _flops(case: Case, mode: str) -> float:
    """Of the closed form: 3 convolutions a layer for a picture, 4 for one that is penalised."""
    return _OURS[case.arguments["kind"]][1] * _of_forward(case.arguments["network"], case.shape)


@functools.cache
def _of_forward(network: Network, shape: tuple[int, ...]) -> float:
    parts = network.parts()
    with torch.device("meta"):
        x, y = torch.empty(shape), torch.empty(shape[0], dtype=torch.long)
    judge, _ = parts.judge([*parts.parameters.values(), *parts.buffers.values()], torch.float32)
    return count_flops(lambda: judge(x, y))


def make_cases(
    position: str,
    network: Network,
    batch: int,
    kinds: Sequence[str],
    *,
    loss: str,
    quick: str | None = None,
    our_layers: Sequence[str] = (),
) -> list[Case]:
    """The cases of a network at ``batch`` real and as many generated pictures.

    Args:
        position: the network's name.
        kinds: one case for each.
        loss: of :data:`gankernels.losses.LOSSES`.
        quick: the kind that ``--quick`` keeps.
        our_layers: the kinds of which there is one more case, in which ours has the layers of ``gankernels.nn``.
    """
    shape = (batch, 3, network.resolution, network.resolution)
    stock, ours = (Made(functools.partial(network.parts, stock=stock)) for stock in (True, False))
    given: dict[str, Any] = {"network": network, "parts": stock, "ours": stock, "loss": loss}
    return [
        *(Case(f"{position}, {kind}", shape, given | {"kind": kind}, kind == quick) for kind in kinds),
        *(Case(f"{position}, {kind}, our layers", shape, given | {"kind": kind, "ours": ours}) for kind in our_layers),
    ]


_SHARED = ("no penalty", "R1", "R1 + R2")
_APART = (*_SHARED, "R1 + R2, peers apart")

#: The price of penalties for the networks that they were published with.
PENALTY_STEP = Benchmark(
    op="penalty_step",
    cases=(
        *make_cases(
            "strided D, 64 px",
            penalised_networks.strided(),
            16,
            (*_APART, "R1 + R2 apart"),
            loss="non-saturating",
            quick="R1 + R2",
        ),
        *make_cases(
            "StyleGAN2 D, 256 px, 32 to 256 channels, no stddev",
            penalised_networks.stylegan2(256, base=8192, most=256),
            2,
            _APART,
            loss="non-saturating",
        ),
        *make_cases(
            "R3GAN D, 64 px",
            penalised_networks.preset("r3gan-64"),
            1,
            ("no penalty", "R1 + R2"),
            loss="rpgan",
            our_layers=["R1 + R2"],
        ),
        *make_cases(
            "WGAN-GP D, 64 px",
            penalised_networks.preset("wgan-gp-64"),
            4,
            ("no penalty", "WGAN-GP"),
            loss="wasserstein",
            our_layers=["WGAN-GP"],
        ),
        *make_cases("BigGAN D, 32 px", penalised_networks.preset("biggan-32"), 8, _SHARED, loss="hinge"),
    ),
    inputs=_inputs,
    stock=_stock,
    ours=_ours,
    bytes=_bytes,
    flops=_flops,
    impls=("auto",),
    dtypes=DTYPES,
    modes=(STEP,),
    kinks_inside=True,
    place=place,
    judged=_judged,
)
