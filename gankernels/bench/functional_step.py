"""One step of a preset as a function of tensors: weights and state are arguments as the pictures are.

So all providers compute from the same numbers, in fp64 too, and every repetition starts where the last one did.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from gankernels import models
from gankernels.bench.stock import to_stock
from gankernels.losses import LOSSES, Loss
from gankernels.models import GeneratorModule
from gankernels.nn import BatchNorm2d
from gankernels.nn.spectral_norm import SpectralNorm
from gankernels.ops import spectral_norm

T = TypeVar("T")

#: A preset's overrides as pairs, so that they can be a key.
Settings = tuple[tuple[str, Any], ...]

_HALF = (torch.bfloat16, torch.float16)
#: What is drawn for a step: pictures, labels, latents and weights of the interpolation; the networks' state follows.
INPUTS = 4


@dataclass(frozen=True, repr=False, eq=False)
class Networks:
    """A preset's networks without the numbers in them, on the meta device: what is done with those that are given.

    Their layers are freed of their spectral norms, which stand apart: each is taken once a step and outside autocast,
    however often the discriminator is called, and let go of behind the forwards, as the trainer has it.
    """

    generator: GeneratorModule
    discriminator: nn.Module
    parameters: Mapping[str, Tensor]  # of both, in order: "generator.linear.weight", ...
    buffers: Mapping[str, Tensor]
    norms: Mapping[str, nn.Module]  # the name of a weight -> its spectral norm
    mixes_samples: bool  # the discriminator has a batch norm, and is trained on real and on fake pictures apart


class Game(NamedTuple):
    """What a loss is computed from: the pictures, and both players with their weights. All floats are fp32 or fp64."""

    real: Tensor  # [N, C, H, W]
    y: Tensor  # int64 [N]
    z: Tensor  # [N, dim_z]
    alpha: Tensor  # [N, 1, 1, 1] in [0, 1)
    generate: Callable[[Tensor, Tensor], Tensor]  # (z, y) -> pictures
    judge: Callable[[Tensor, Tensor], Tensor]  # (pictures, y) -> logits [N]
    loss: Loss
    apart: bool  # judge real and fake pictures each by themselves

    def fake(self) -> Tensor:
        """Generated pictures that no gradient passes."""
        with torch.no_grad():
            return self.generate(self.z, self.y)


class Step(NamedTuple):
    """A kind of step."""

    op: str
    updates: str  # "generator" or "discriminator": whose gradients it makes
    loss: Callable[[Game], Tensor]
    engine: Callable[[Game], Tensor] | None = None  # the same, without graph: its gradients go into ``.grad``


class Made(Generic[T]):
    """What takes long to make, made when it is first asked for; that may not be by what torch.compile traces."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make

    @functools.cached_property
    def value(self) -> T:
        return self._make()


class Called(nn.Module):
    """A function as a module, for what asks for one."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(*args)


@functools.cache
def networks(preset: str, settings: Settings, stock: bool) -> Networks:
    """The networks of a preset, with our kernels or written with stock layers.

    Not to be called from what torch.compile traces.
    """
    with torch.device("meta"):
        pair: tuple[GeneratorModule, nn.Module] = models.build(preset, **dict(settings))
    if stock:
        pair = to_stock(pair[0]), to_stock(pair[1])
    generator, discriminator = pair
    both = nn.ModuleDict({"generator": generator, "discriminator": discriminator})
    parameters, buffers, norms = take_apart(both)
    mixes_samples = any(isinstance(module, BatchNorm2d) for module in discriminator.modules())
    return Networks(generator, discriminator, parameters, buffers, norms, mixes_samples)


def take_apart(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, nn.Module]]:
    """A module's parameters and buffers, and its spectral norms, which it loses, by the names of their weights."""
    parameters: dict[str, Tensor] = dict(module.named_parameters())
    buffers = dict(module.named_buffers())
    norms: dict[str, nn.Module] = {}
    for name, layer in list(module.named_modules()):
        if parametrize.is_parametrized(layer, "weight"):
            (norms[f"{name}.weight"],) = layer.parametrizations.weight
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    return parameters, buffers, norms


def new_inputs(preset: str, settings: Settings, shape: tuple[int, ...], rng: torch.Generator) -> list[Tensor]:
    """Pictures of ``shape``, labels, latents and weights of the interpolation; then the state of new networks.

    That is all parameters, then all buffers, in the order of :class:`Networks`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=rng)))
        generator, discriminator = models.build(preset, **dict(settings))
    players = (generator, discriminator)
    return [
        torch.rand(shape, generator=rng) * 2 - 1,
        torch.randint(max(generator.num_classes, 1), shape[:1], generator=rng),
        torch.randn(shape[0], generator.dim_z, generator=rng),
        torch.rand(shape[0], 1, 1, 1, generator=rng),
        *(t.detach().contiguous() for t in itertools.chain(*(player.parameters() for player in players))),
        *(t.contiguous() for t in itertools.chain(*(player.buffers() for player in players))),
    ]


def inputs_without_numbers(players: Networks, shape: tuple[int, ...]) -> list[Tensor]:
    """What :func:`new_inputs` gives, on the meta device."""
    with torch.device("meta"):
        return [
            torch.empty(shape),
            torch.empty(shape[0], dtype=torch.long),
            torch.empty(shape[0], players.generator.dim_z),
            torch.empty(shape[0], 1, 1, 1),
            *players.parameters.values(),
            *players.buffers.values(),
        ]


def place(tensors: Sequence[Tensor], dtype: torch.dtype, memory_format: torch.memory_format) -> list[Tensor]:
    """Inputs in a row's dtype and layout; beside pictures in 16 bits, weights and state are fp32, as in training."""
    full = torch.float32 if dtype in _HALF else dtype
    return [
        tensor.to(
            dtype if index < INPUTS else full,
            memory_format=memory_format if tensor.dim() == 4 else torch.preserve_format,
        )
        if tensor.is_floating_point()
        else tensor
        for index, tensor in enumerate(tensors)
    ]


def run(
    step: Step, players: Networks, tensors: Sequence[Tensor], *, loss: str = "hinge", engine: bool = False
) -> list[Tensor]:
    """The loss of ``step`` and the gradients of the network that it updates, from what :func:`new_inputs` lists.

    Pictures in a 16-bit dtype ask for autocast to it. ``engine`` takes the step's own way to the gradients, where it
    has one. No input is changed.
    """
    real, y, z, alpha, *state = tensors
    count = len(players.parameters)
    weights = {
        name: tensor.detach().requires_grad_(name.startswith(step.updates))
        for name, tensor in zip(players.parameters, state[:count], strict=True)
    }
    # Running statistics and the vectors of spectral norms move within a step: it has its own.
    buffers = {name: tensor.detach().clone() for name, tensor in zip(players.buffers, state[count:], strict=True)}
    given = {**weights, **buffers}
    # The player whose forwards are running, with its normalised weights: after them, only the graph keeps any.
    held: dict[str, dict[str, Tensor]] = {}

    def call(player: nn.Module, prefix: str, *args: Tensor) -> Tensor:
        if prefix not in held:
            held.clear()
            held[prefix] = _own(prefix, given, players.norms)
        half = real.dtype in _HALF
        with torch.autocast(real.device.type, dtype=real.dtype) if half else contextlib.nullcontext():
            return full(functional_call(player, held[prefix], args, strict=True))

    game = Game(
        full(real),
        y,
        full(z),
        full(alpha),
        generate=functools.partial(call, players.generator, "generator."),
        judge=functools.partial(call, players.discriminator, "discriminator."),
        loss=LOSSES[loss],
        apart=players.mixes_samples,
    )
    updated = [tensor for name, tensor in weights.items() if name.startswith(step.updates)]
    if engine and step.engine is not None:
        value = step.engine(game)
        return [value, *(torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in updated)]
    value = step.loss(game)
    held.clear()
    return [value.detach(), *torch.autograd.grad(value, updated)]


def _own(prefix: str, given: Mapping[str, Tensor], norms: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """What a player's forward takes, without the prefix: its buffers and its weights, normalised where they are."""
    own = {name: tensor for name, tensor in given.items() if name.startswith(prefix)}
    take_spectral_norms(own, {name: norm for name, norm in norms.items() if name.startswith(prefix)})
    return {name.removeprefix(prefix): tensor for name, tensor in own.items()}


def take_spectral_norms(given: dict[str, Tensor], norms: Mapping[str, nn.Module]) -> None:
    """Put the normalised weights in the place of those they are made from: ours by one call, torch's one by one."""
    prefixes = [name.removesuffix("weight") + "parametrizations.weight." for name in norms]
    weights = [given.pop(f"{prefix}original") for prefix in prefixes]
    u, v = ([given.pop(f"{prefix}0.{vector}") for prefix in prefixes] for vector in ("_u", "_v"))
    ours = [norm for norm in norms.values() if isinstance(norm, SpectralNorm)]
    if len(ours) == len(norms) > 0:
        normalised = spectral_norm(weights, u, v, dims=[norm.dim for norm in ours], eps=ours[0].eps)
    else:
        normalised = [
            functional_call(norm, {"_u": u_, "_v": v_}, (weight,))
            for norm, weight, u_, v_ in zip(norms.values(), weights, u, v, strict=True)
        ]
    given.update(zip(norms, normalised, strict=True))


def full(tensor: Tensor) -> Tensor:
    """In fp32; in fp64 as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
