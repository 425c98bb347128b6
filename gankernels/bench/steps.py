"""Whole steps of the presets, against the same model written with stock layers.

A penalty is taken by double backprop on the stock side, and by :func:`gankernels.penalties.d_step` on ours.

A step is what one update of a network costs but for the optimizer: the other network's forward, its own, the loss, the
penalty, the gradients of its parameters. The optimizer is the same fused Adam for everyone, and left out so that every
repetition starts from the same weights. Images per second are a row's batch, the first number of its shape, by its ms.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gankernels import dispatch, models, penalties
from gankernels.bench import functional_step
from gankernels.bench.block_step import BLOCKS
from gankernels.bench.declaration import STEP, Benchmark, Case
from gankernels.bench.declarations._convolution import DTYPES
from gankernels.bench.flops import count_flops
from gankernels.bench.functional_step import Called, Game, Made, Settings, Step
from gankernels.bench.penalty_step import PENALTY_STEP
from gankernels.losses import LOSSES

R1_WEIGHT = 10.0
WGAN_GP_WEIGHT = 10.0
R3GAN_WEIGHT = 0.05


def _d(game: Game) -> Tensor:
    fake = game.fake()
    if game.apart:
        return game.loss.d(game.judge(game.real, game.y), game.judge(fake, game.y))
    return game.loss.d(*game.judge(torch.cat([game.real, fake]), game.y.repeat(2)).chunk(2))


def _g(game: Game) -> Tensor:
    fake = game.judge(game.generate(game.z, game.y), game.y)
    if not game.loss.relativistic:
        return game.loss.g(fake)
    with torch.no_grad():
        real = game.judge(game.real, game.y)
    return game.loss.g(fake, real)


def _r1(game: Game) -> Tensor:
    """Mescheder et al., arXiv 1801.04406, equation 9, by double backprop; the loss and the penalty share a forward."""
    generated, x = game.fake(), game.real.detach().requires_grad_()
    real, fake = game.judge(x, game.y), game.judge(generated, game.y)
    (gradient,) = torch.autograd.grad(real.sum(), x, create_graph=True)
    return game.loss.d(real, fake) + R1_WEIGHT * gradient.square().sum((1, 2, 3)).mean() / 2


def _wgan_gp(game: Game) -> Tensor:
    """Gulrajani et al., arXiv 1704.00028, equation 3, by double backprop."""
    generated = game.fake()
    real, fake = game.judge(torch.cat([game.real, generated]), game.y.repeat(2)).chunk(2)
    x = torch.lerp(generated, game.real, game.alpha).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(game.judge(x, game.y).sum(), x, create_graph=True)
    norm = gradient.square().sum((1, 2, 3)).sqrt()
    return fake.mean() - real.mean() + WGAN_GP_WEIGHT * (norm - 1).square().mean()


def _r3gan(game: Game) -> Tensor:
    """Huang et al., arXiv 2501.05441, equations 2 to 4, by double backprop; loss and penalties share a forward."""
    x = torch.cat([game.real, game.fake()]).detach().requires_grad_()
    logits = game.judge(x, game.y.repeat(2))
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    r1, r2 = gradient.square().sum((1, 2, 3)).chunk(2)
    return LOSSES["rpgan"].d(*logits.chunk(2)) + R3GAN_WEIGHT * (r1.mean() + r2.mean()) / 2


def _r1_by_the_engine(game: Game) -> Tensor:
    loss = next(name for name, loss in LOSSES.items() if loss is game.loss)
    return _by_the_engine(game, loss=loss, penalty="r1", weight=R1_WEIGHT)


def _wgan_gp_by_the_engine(game: Game) -> Tensor:
    return _by_the_engine(game, loss="wasserstein", penalty="wgan-gp", weight=WGAN_GP_WEIGHT)


def _r3gan_by_the_engine(game: Game) -> Tensor:
    return _by_the_engine(game, loss="rpgan", penalty="r1+r2", weight=R3GAN_WEIGHT)


def _by_the_engine(game: Game, *, loss: str, penalty: str, weight: float) -> Tensor:
    fake = game.fake()
    points = torch.lerp(fake, game.real, game.alpha) if penalty == "wgan-gp" else None
    scalars = penalties.d_step(
        Called(game.judge),
        game.real,
        fake,
        game.y,
        loss=loss,
        penalty=penalty,
        weight=weight,
        points=points,
        joint=not game.apart,
    )
    return scalars.loss + weight * scalars.penalty


def make_case(
    position: str, preset: str, batch: int, *, loss: str = "hinge", quick: bool = False, **overrides: Any
) -> Case:
    """A preset's networks, at ``batch`` real pictures and as many latents; ``overrides`` as of ``models.build``.

    ``loss`` is that of the steps whose penalty does not come with one.
    """
    settings = tuple(overrides.items())
    stock, ours = (
        Made(functools.partial(functional_step.networks, preset, settings, stock)) for stock in (True, False)
    )
    resolution, channels = models.resolution(preset), overrides.get("channels", models.settings(preset)["channels"])
    shape = (batch, channels, resolution, resolution)
    arguments = {"preset": preset, "settings": settings, "stock": stock, "ours": ours, "loss": loss}
    return Case(position, shape, arguments, quick)


def make_benchmark(step: Step, cases: Sequence[Case]) -> Benchmark:
    """The declaration of one kind of step, for cases of :func:`make_case`."""

    def stock(case: Case, *tensors: Tensor) -> list[Tensor]:
        return functional_step.run(step, case.arguments["stock"].value, tensors, loss=case.arguments["loss"])

    def ours(case: Case, *tensors: Tensor, impl: str) -> list[Tensor]:
        with contextlib.nullcontext() if impl == "auto" else dispatch.use(impl):
            loss = case.arguments["loss"]
            return functional_step.run(step, case.arguments["ours"].value, tensors, loss=loss, engine=True)

    return Benchmark(
        op=step.op,
        cases=cases,
        inputs=_inputs,
        stock=stock,
        ours=ours,
        bytes=functools.partial(_bytes, step),
        flops=functools.partial(_flops, step),
        impls=("auto",),
        dtypes=DTYPES,
        modes=(STEP,),
        kinks_inside=True,
        place=functional_step.place,
        judged=_judged,
    )


def _inputs(case: Case, rng: torch.Generator) -> list[Tensor]:
    # Made here, since their first use may be traced.
    _ = case.arguments["stock"].value, case.arguments["ours"].value
    return functional_step.new_inputs(case.arguments["preset"], case.arguments["settings"], case.shape, rng)


def _judged(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Everything in one vector: errors count against the gradient as a whole.

    That of a bias in front of a batch norm is zero but for rounding, whoever computes it.
    """
    return [torch.cat([output.flatten() for output in outputs])]


def _bytes(step: Step, case: Case, mode: str, itemsize: int) -> float:
    """The weights read, the gradients written and the pictures read, once each; weights and gradients are in fp32."""
    sizes = {name: t.numel() for name, t in case.arguments["stock"].value.parameters.items()}
    updated = sum(size for name, size in sizes.items() if name.startswith(step.updates))
    return 4 * (sum(sizes.values()) + updated) + case.passes(1, itemsize)


def _flops(step: Step, case: Case, mode: str) -> float:
    """Of the stock step's convolutions and matrix products, as torch counts them; nothing is computed for it.

    Who finds the same gradients with fewer can have more than the whole floor.
    """
    return _count(step, *(case.arguments[name] for name in ("preset", "settings", "loss")), case.shape)


@functools.cache
def _count(step: Step, preset: str, settings: Settings, loss: str, shape: tuple[int, ...]) -> float:
    players = functional_step.networks(preset, settings, stock=True)
    tensors = functional_step.inputs_without_numbers(players, shape)
    return count_flops(lambda: functional_step.run(step, players, tensors, loss=loss))


# As examples/demo.sh has it.
_DEMO: dict[str, Any] = {"g_ch": 32, "g_widths": (4, 2, 1, 0.5), "d_ch": 32, "d_widths": (0.5, 1, 2, 2)}

_SNGAN = (
    make_case("sngan-32, the demo's widths", "sngan-32", 64, quick=True, channels=1, **_DEMO),
    make_case("sngan-32", "sngan-32", 64),
)
_BIGGAN = (make_case("biggan-32", "biggan-32", 64), make_case("biggan-128", "biggan-128", 4))
_DCGAN = make_case("dcgan-64", "dcgan-64", 128, loss="non-saturating")
_WGAN_GP = make_case("wgan-gp-64", "wgan-gp-64", 16, loss="wasserstein")
_R3GAN = (
    make_case("r3gan-32, ch 96", "r3gan-32", 16, loss="rpgan", quick=True, ch=96),
    make_case("r3gan-32", "r3gan-32", 16, loss="rpgan"),
)

#: The kinds of step, and the networks that take them in training. One more is a line more.
CASES: dict[Step, tuple[Case, ...]] = {
    Step("d_step", "discriminator", _d): (*_SNGAN, *_BIGGAN, _DCGAN),
    Step("g_step", "generator", _g): (
        *(*_SNGAN, *_BIGGAN, _DCGAN, _WGAN_GP),
        *(replace(case, quick=False) for case in _R3GAN),
    ),
    Step("d_step_r1", "discriminator", _r1, _r1_by_the_engine): (*_SNGAN, _BIGGAN[0]),
    Step("d_step_wgan_gp", "discriminator", _wgan_gp, _wgan_gp_by_the_engine): (_SNGAN[0], _WGAN_GP),
    Step("d_step_r3gan", "discriminator", _r3gan, _r3gan_by_the_engine): _R3GAN,
}

#: One benchmark for each kind of step, the price of a penalty alone, and single blocks.
STEPS = (*(make_benchmark(kind, cases) for kind, cases in CASES.items()), PENALTY_STEP, *BLOCKS)
