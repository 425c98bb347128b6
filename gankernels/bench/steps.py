"""Whole steps of the presets, against the same model written with stock layers.

A step is what one update of a network costs but for the optimizer: the other network's forward, its own, the loss, the
penalty, the gradients of its parameters. The optimizer is the same fused Adam for everyone, and left out so that every
repetition starts from the same weights. Images per second are a row's batch, the first number of its shape, by its ms.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from gankernels import dispatch
from gankernels.bench import functional_step
from gankernels.bench.declaration import STEP, Benchmark, Case
from gankernels.bench.functional_step import Game, Settings, Step
from gankernels.losses import hinge_d, hinge_g

R1_WEIGHT = 10.0
WGAN_GP_WEIGHT = 10.0


def _hinge_d(game: Game) -> Tensor:
    real, fake = game.judge(torch.cat([game.real, game.fake()]), game.y.repeat(2)).chunk(2)
    return hinge_d(real, fake)


def _hinge_g(game: Game) -> Tensor:
    return hinge_g(game.judge(game.generate(game.z, game.y), game.y))


def _r1(game: Game) -> Tensor:
    """Mescheder et al., arXiv 1801.04406, equation 9, by double backprop; the loss and the penalty share a forward."""
    x = game.real.detach().requires_grad_()
    real, fake = game.judge(x, game.y), game.judge(game.fake(), game.y)
    (gradient,) = torch.autograd.grad(real.sum(), x, create_graph=True)
    return hinge_d(real, fake) + R1_WEIGHT * gradient.square().sum((1, 2, 3)).mean() / 2


def _wgan_gp(game: Game) -> Tensor:
    """Gulrajani et al., arXiv 1704.00028, equation 3, by double backprop."""
    generated = game.fake()
    real, fake = game.judge(torch.cat([game.real, generated]), game.y.repeat(2)).chunk(2)
    x = torch.lerp(generated, game.real, game.alpha).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(game.judge(x, game.y).sum(), x, create_graph=True)
    norm = gradient.square().sum((1, 2, 3)).sqrt()
    return fake.mean() - real.mean() + WGAN_GP_WEIGHT * (norm - 1).square().mean()


def make_case(position: str, preset: str, batch: int, *, quick: bool = False, **overrides: Any) -> Case:
    """A preset's networks, at ``batch`` real pictures and as many latents; ``overrides`` as of ``models.build``."""
    settings = tuple(overrides.items())
    # Made here, since their first use may be traced.
    stock, ours = (functional_step.networks(preset, settings, stock=stock) for stock in (True, False))
    shape = (batch, ours.generator.channels, ours.generator.resolution, ours.generator.resolution)
    return Case(position, shape, {"preset": preset, "settings": settings, "stock": stock, "ours": ours}, quick)


def make_benchmark(step: Step, cases: Sequence[Case]) -> Benchmark:
    """The declaration of one kind of step, for cases of :func:`make_case`."""

    def stock(case: Case, *tensors: Tensor) -> list[Tensor]:
        return functional_step.run(step, case.arguments["stock"], tensors)

    def ours(case: Case, *tensors: Tensor, impl: str) -> list[Tensor]:
        with contextlib.nullcontext() if impl == "auto" else dispatch.use(impl):
            return functional_step.run(step, case.arguments["ours"], tensors)

    return Benchmark(
        op=step.op,
        cases=cases,
        inputs=_inputs,
        stock=stock,
        ours=ours,
        bytes=functools.partial(_bytes, step),
        flops=functools.partial(_flops, step),
        impls=("auto",),
        modes=(STEP,),
        place=functional_step.place,
        judged=_judged,
    )


def _inputs(case: Case, rng: torch.Generator) -> list[Tensor]:
    return functional_step.new_inputs(case.arguments["preset"], case.arguments["settings"], case.shape, rng)


def _judged(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Everything in one vector: errors count against the gradient as a whole.

    That of a bias in front of a batch norm is zero but for rounding, whoever computes it.
    """
    return [torch.cat([output.flatten() for output in outputs])]


def _bytes(step: Step, case: Case, mode: str, itemsize: int) -> float:
    """The weights read, the gradients written and the pictures read, once each; weights and gradients are in fp32."""
    sizes = {name: t.numel() for name, t in case.arguments["stock"].parameters.items()}
    updated = sum(size for name, size in sizes.items() if name.startswith(step.updates))
    return 4 * (sum(sizes.values()) + updated) + case.passes(1, itemsize)


def _flops(step: Step, case: Case, mode: str) -> float:
    """Of the stock step's convolutions and matrix products, as torch counts them; nothing is computed for it.

    Who finds the same gradients with fewer can have more than the whole floor.
    """
    return _count(step, case.arguments["preset"], case.arguments["settings"], case.shape)


@functools.cache
def _count(step: Step, preset: str, settings: Settings, shape: tuple[int, ...]) -> float:
    players = functional_step.networks(preset, settings, stock=True)
    with _FlopCounter() as counter:
        functional_step.run(step, players, functional_step.inputs_without_numbers(players, shape))
    return float(counter.total)


class _FlopCounter(TorchDispatchMode):
    """Adds up torch's formulas. Torch's own counter follows modules, and so refuses ``autograd.grad``."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.total += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


# As examples/demo.sh has it.
_DEMO = {"g_ch": 32, "g_widths": (4, 2, 1, 0.5), "d_ch": 32, "d_widths": (0.5, 1, 2, 2)}

#: The networks whose steps are measured. One more is a line more.
CASES = (
    make_case("sngan-32, the demo's widths", "sngan-32", 64, quick=True, channels=1, **_DEMO),
    make_case("sngan-32", "sngan-32", 64),
)

_KINDS = (
    Step("d_step", "discriminator", _hinge_d),
    Step("g_step", "generator", _hinge_g),
    Step("d_step_r1", "discriminator", _r1),
    Step("d_step_wgan_gp", "discriminator", _wgan_gp),
)

#: One benchmark for each kind of step.
STEPS = tuple(make_benchmark(kind, CASES) for kind in _KINDS)
