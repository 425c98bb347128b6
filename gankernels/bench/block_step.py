"""Forward and backward of one block of a network, with all that belongs to it: what a fusion is worth in its place.

- ``up_block``: a residual block of BigGAN's generator, with the spectral norms of its three convolutions.
- ``down_block``: one of BigGAN's discriminator, likewise.
- ``dcgan_block``: a conditional batch norm, its ReLU and the transposed convolution behind it, with bias.

The peers have the layers one after the other in stock PyTorch, as a careful user has them: the 1x1 skip works on the
small side of the resampling. Ours are the public layers. A step takes one power iteration for each spectral norm, from
given vectors, and returns the block's output and the gradients of its input, its condition and its parameters.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from gankernels.bench.declaration import STEP, Benchmark, Case
from gankernels.bench.declarations._convolution import DTYPES
from gankernels.bench.declarations.spectral_norm import stock_spectral_norm
from gankernels.nn import ConditionalBatchNorm2d, ConvTranspose2d, NormConvTranspose2d, ResBlockDown, ResBlockUp
from gankernels.ops import spectral_norm

_EPS = 1e-6  # of spectral norms, as BigGAN's
_CONDITION = 128 + 20  # BigGAN-128: the shared embedding of the class, and the block's part of the latent
_CLASSES = 10
_HALF = (torch.bfloat16, torch.float16)
_ACTIVATIONS = 3  # x, dy and the condition; the block's parameters, u and v follow

#: A block by what it is given: its parameters by name, x and the condition.
Forward = Callable[[Mapping[str, Tensor], Tensor, Tensor], Tensor]


# ---- The same in stock PyTorch ----


def _stock_up(given: Mapping[str, Tensor], x: Tensor, condition: Tensor) -> Tensor:
    h = _stock_conv(given, "conv1", _nearest_x2(_stock_norm(given, "norm1", x, condition)))
    h = _stock_conv(given, "conv2", _stock_norm(given, "norm2", h, condition))
    return h + _nearest_x2(_stock_conv(given, "skip", x))


def _stock_down(given: Mapping[str, Tensor], x: Tensor, condition: Tensor) -> Tensor:
    h = _stock_conv(given, "conv2", F.relu(_stock_conv(given, "conv1", F.relu(x))))
    return F.avg_pool2d(h, 2) + _stock_conv(given, "skip", F.avg_pool2d(x, 2))


def _stock_dcgan(given: Mapping[str, Tensor], x: Tensor, labels: Tensor) -> Tensor:
    gain, bias = (F.embedding(labels, given[f"norm.{name}.weight"]) for name in ("gain", "bias"))
    h = _normalised(x, gain, bias)
    return F.conv_transpose2d(h, given["conv.weight"], given["conv.bias"], stride=2, padding=1)


def _stock_norm(given: Mapping[str, Tensor], name: str, x: Tensor, condition: Tensor) -> Tensor:
    gain, bias = (F.linear(condition, given[f"{name}.{part}.weight"]) for part in ("gain", "bias"))
    return _normalised(x, 1 + gain, bias)


def _normalised(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    return F.relu(F.batch_norm(x, None, None, training=True) * gain[:, :, None, None] + bias[:, :, None, None])


def _stock_conv(given: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    weight = given[f"{name}.weight"]
    return F.conv2d(x, weight, given[f"{name}.bias"], padding=weight.shape[2] // 2)


def _nearest_x2(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


# ---- A step ----


def _stock(forward: Forward, case: Case, *tensors: Tensor) -> list[Tensor]:
    def norm(weights: Sequence[Tensor], u: Sequence[Tensor], v: Sequence[Tensor]) -> list[Tensor]:
        return [stock_spectral_norm(*each, eps=_EPS) for each in zip(weights, u, v, strict=True)]

    return _step(case, forward, norm, tensors)


def _ours(case: Case, *tensors: Tensor, impl: str) -> list[Tensor]:
    block: nn.Module = case.arguments["block"]
    half = tensors[0].dtype if tensors[0].dtype in _HALF else None

    def forward(given: Mapping[str, Tensor], x: Tensor, condition: Tensor) -> Tensor:
        inputs = (x,) if isinstance(block, ResBlockDown) else (x, condition)
        return functional_call(block, dict(given), inputs, strict=True)

    def norm(weights: Sequence[Tensor], u: Sequence[Tensor], v: Sequence[Tensor]) -> list[Tensor]:
        # As SpectralNormGroup takes them; u and v, which move, are the step's own.
        u, v = ([t.detach().clone() for t in vectors] for vectors in (u, v))
        return spectral_norm(weights, u, v, eps=_EPS, out_dtype=half)

    return _step(case, forward, norm, tensors)


def _step(case: Case, forward: Forward, norm: Callable[..., list[Tensor]], tensors: Sequence[Tensor]) -> list[Tensor]:
    """y, dx, and the gradients of the condition (where it has one) and of the parameters, in their order."""
    names, normed = case.arguments["names"], case.arguments["normed"]
    x, dy, condition, *state = tensors
    parameters, vectors = state[: len(names)], state[len(names) :]
    leaves = [t.detach().requires_grad_() if t.is_floating_point() else t for t in (x, condition, *parameters)]
    given = dict(zip(names, leaves[2:], strict=True))
    if normed:
        weights = norm([given[name] for name in normed], vectors[: len(normed)], vectors[len(normed) :])
        given.update(zip(normed, weights, strict=True))
    half = x.dtype in _HALF
    with torch.autocast(x.device.type, dtype=x.dtype) if half else contextlib.nullcontext():
        y = forward(given, leaves[0], leaves[1])
    wanted = [t for t in leaves if t.is_floating_point()]
    gradients = torch.autograd.grad(y, wanted, dy.detach().to(y.dtype), allow_unused=True, materialize_grads=True)
    return [y.detach(), *gradients]


def _judged(results: Sequence[Tensor]) -> list[Tensor]:
    """y, dx, and all else in one vector: the gradient of a bias in front of a batch norm is zero but for rounding."""
    y, dx, *others = results
    return [y, dx, torch.cat([t.flatten() for t in others])]


def _place(tensors: Sequence[Tensor], dtype: torch.dtype, memory_format: torch.memory_format) -> list[Tensor]:
    """Activations in the row's dtype; beside those in 16 bits, which ask for autocast, all else in fp32."""
    full = torch.float32 if dtype in _HALF else dtype
    placed = []
    for index, t in enumerate(tensors):
        layout = memory_format if t.dim() == 4 else torch.preserve_format
        floating = dtype if index < _ACTIVATIONS - 1 else full
        placed.append(t.to(floating, memory_format=layout) if t.is_floating_point() else t)
    return placed


# ---- Cases ----


def _dcgan(c_in: int, c_out: int) -> nn.Module:
    """A stage of a conditional DCGAN's generator."""
    norm = ConditionalBatchNorm2d(c_in, _CLASSES, activation="relu", track_running_stats=False)
    return NormConvTranspose2d(norm, ConvTranspose2d(c_in, c_out, 4, stride=2, padding=1))


def _norm(channels: int) -> nn.Module:
    return ConditionalBatchNorm2d(channels, cond_features=_CONDITION, activation="relu", track_running_stats=False)


def _case(
    position: str, kind: Callable[..., nn.Module], c_in: int, c_out: int, size: int, batch: int, quick: bool = False
) -> Case:
    """``batch`` is that of a CPU, which makes a step take some 0.1 to 1 s on two cores; a GPU has 64."""
    with torch.device("meta"):
        block = kind(c_in, c_out)
    names = [name for name, _ in block.named_parameters()]
    residual = not isinstance(block, NormConvTranspose2d)
    arguments: dict[str, Any] = {
        "c_out": c_out,
        "block": block,
        "names": names,
        "normed": [name for name in names if residual and block.get_parameter(name).dim() == 4],
    }
    return Case(position, (64 if torch.cuda.is_available() else batch, c_in, size, size), arguments, quick)


def _inputs(case: Case, rng: torch.Generator) -> list[Tensor]:
    block: nn.Module = case.arguments["block"]
    n = case.shape[0]
    if isinstance(block, NormConvTranspose2d):
        condition = torch.randint(_CLASSES, (n,), generator=rng)
    else:
        condition = torch.randn(n, _CONDITION, generator=rng)
    drawn = [torch.randn(case.shape, generator=rng), torch.randn(_output(case), generator=rng), condition]
    drawn += [_drawn(name, parameter.shape, rng) for name, parameter in block.named_parameters()]
    shapes = [block.get_parameter(name).shape for name in case.arguments["normed"]]
    for sizes in ([shape[0] for shape in shapes], [math.prod(shape[1:]) for shape in shapes]):
        drawn += [F.normalize(torch.randn(size, generator=rng), dim=0) for size in sizes]
    return drawn


def _drawn(name: str, shape: torch.Size, rng: torch.Generator) -> Tensor:
    """Weights that keep the variance about as it is, gains of tables around one."""
    drawn = torch.randn(shape, generator=rng)
    if len(shape) == 4:
        return drawn * (2 / math.prod(shape[1:])) ** 0.5
    return drawn / 16 + 1 if "gain" in name and shape[0] == _CLASSES else drawn / 16


def _output(case: Case) -> tuple[int, int, int, int]:
    n, _, height, width = case.shape
    if isinstance(case.arguments["block"], ResBlockDown):
        return n, case.arguments["c_out"], height // 2, width // 2
    return n, case.arguments["c_out"], 2 * height, 2 * width


def _bytes(case: Case, mode: str, itemsize: int) -> float:
    """x and dy read, y and dx written, and x again for the weights; each parameter read, its gradient written."""
    parameters = sum(p.numel() for p in case.arguments["block"].parameters())
    return case.passes(3, itemsize) + 2 * math.prod(_output(case)) * itemsize + 4 * 2 * parameters


def _flops(taps: Callable[[int, int], float], case: Case, mode: str) -> float:
    """Forward, and as much for each of the two gradients; a multiply-add is two.

    ``taps`` are those for a pixel of the small side, with the resampled 3x3 as a 3x3 of stride 2 beside a box filter,
    the fewest that are known, and the skip on that side.
    """
    small = min(case.shape[2], _output(case)[2]) ** 2
    return 6.0 * case.shape[0] * small * taps(case.shape[1], case.arguments["c_out"])


def _block(op: str, stock: Forward, taps: Callable[[int, int], float], cases: Sequence[Case]) -> Benchmark:
    return Benchmark(
        op=op,
        cases=cases,
        inputs=_inputs,
        stock=functools.partial(_stock, stock),
        ours=_ours,
        bytes=_bytes,
        flops=functools.partial(_flops, taps),
        impls=("auto",),
        dtypes=DTYPES,
        modes=(STEP,),
        kinks_inside=True,
        place=_place,
        judged=_judged,
    )


_up = functools.partial(ResBlockUp, norm=_norm)

#: One benchmark for each kind of block.
BLOCKS = (
    _block(
        "up_block",
        _stock_up,
        lambda c_in, c_out: 9 * c_in * c_out + 4 * 9 * c_out**2 + c_in * c_out,
        (
            _case("BigGAN-128 G block 3", _up, 768, 384, 16, 4),
            _case("BigGAN-128 G block 5", _up, 192, 96, 64, 4, quick=True),
        ),
    ),
    _block(
        "down_block",
        _stock_down,
        lambda c_in, c_out: 4 * 9 * c_in * c_out + 9 * c_out**2 + c_in * c_out,
        (
            _case("BigGAN-128 D block 2", ResBlockDown, 96, 192, 64, 8, quick=True),
            _case("BigGAN-128 D block 4", ResBlockDown, 384, 768, 16, 8),
        ),
    ),
    _block(
        "dcgan_block",
        _stock_dcgan,
        lambda c_in, c_out: 16 * c_in * c_out,
        (
            _case("DCGAN-64 G norm 2, conv 3", _dcgan, 512, 256, 8, 64),
            _case("DCGAN-64 G norm 3, conv 4", _dcgan, 256, 128, 16, 64, quick=True),
        ),
    ),
)
