"""When the gradient of a weight takes the memory of its cotangent, and when it must not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gankernels import _native
from gankernels.bench.memory import _silent_stderr, peak_mib
from gankernels.nn import SpectralNormGroup
from gankernels.nn import spectral_norm as normed
from gankernels.ops import spectral_norm

pytestmark = pytest.mark.skipif(_native.extension is None, reason=f"no native extension: {_native.why_no_cpu}")

IN_PLACE, APART = "gankernels::spectral_norm_backward_", "gankernels::spectral_norm_backward"
SHAPES = ((6, 4, 3, 3), (5, 7), (8, 6, 1, 1))


class Weights:
    """Weights, what is normalised of them, and factors: the loss is the sum of factor * normalised."""

    def __init__(self, impl: str, layout: torch.memory_format = torch.channels_last) -> None:
        generator = torch.Generator().manual_seed(0)

        def drawn(*shape: int) -> Tensor:
            t = torch.randn(shape, generator=generator, dtype=torch.float64)
            return t.contiguous(memory_format=layout) if t.dim() == 4 else t

        self.weights = [drawn(*shape).requires_grad_() for shape in SHAPES]
        self.factors = [drawn(*shape) for shape in SHAPES]
        vectors = [
            [drawn(size) for size in (s[0], w.numel() // s[0])] for s, w in zip(SHAPES, self.weights, strict=True)
        ]
        u, v = ([pair[i] / pair[i].norm() for pair in vectors] for i in (0, 1))
        self.y = spectral_norm(self.weights, u, v, eps=1e-6, impl=impl)

    def loss(self) -> Tensor:
        return sum((y * factor).sum() for y, factor in zip(self.y, self.factors, strict=True))


def both(step: Callable[[Weights], object], **settings) -> tuple[Weights, set[str], object]:
    """A step on our op, whose gradients are those of the reference; the backwards that ran; what the step returned."""
    ours, reference = Weights("cpu", **settings), Weights("reference", **settings)
    with ran() as names:
        result = step(ours)
    step(reference)
    for got, want in zip(ours.weights, reference.weights, strict=True):
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-12, atol=1e-12)
    return ours, names, result


@contextlib.contextmanager
def ran() -> Iterator[set[str]]:
    """Which backwards run in this block."""
    names: set[str] = set()
    with _silent_stderr(), torch.autograd.profiler.profile() as profiler:
        yield names
    names |= {event.name for event in profiler.function_events if event.name in (IN_PLACE, APART)}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_gradient_takes_the_memory_of_its_cotangent(layout):
    ours, names, _ = both(lambda weights: weights.loss().backward(), layout=layout)
    assert names == {IN_PLACE}
    assert [w.grad.stride() for w in ours.weights] == [w.stride() for w in ours.weights]


def test_the_backward_allocates_the_cotangents_alone():
    weights = [torch.randn(64, 32, 3, 3).requires_grad_(), torch.randn(128, 96).requires_grad_()]
    vectors = [[torch.randn(w.shape[0]) for w in weights], [torch.randn(w[0].numel()) for w in weights]]
    factors = [torch.randn_like(w) for w in weights]
    y = spectral_norm(weights, *vectors, impl="cpu")
    loss = sum((a * b).sum() for a, b in zip(y, factors, strict=True))

    def backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, weights, retain_graph=True)

    backward()
    own = sum(w.nbytes for w in weights)
    assert own <= peak_mib(backward, "cpu") * 2**20 <= own + 64


@pytest.mark.parametrize("held", [True, False])
def test_a_group_too(held):
    torch.manual_seed(0)
    model = nn.Sequential(normed(nn.Conv2d(3, 4, 3)), normed(nn.Conv2d(4, 2, 3))).to(memory_format=torch.channels_last)
    group = SpectralNormGroup(model, impl="cpu")
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    with group.hold() if held else contextlib.nullcontext():
        loss = model(x).square().sum()
    with ran() as names:
        loss.backward()
    # Its hook, which watches for backwards, keeps nothing.
    assert names == {IN_PLACE}


# ---- Not where somebody could see it ----


def kept_by_a_hook(weights: Weights) -> list[tuple[Tensor, Tensor]]:
    kept = []
    for y in weights.y:
        y.register_hook(lambda dy: kept.append((dy, dy.clone())) or None)
    weights.loss().backward()
    return kept


def kept_by_its_memory(weights: Weights) -> list[tuple[Tensor, Tensor]]:
    kept: list[Tensor] = []
    for y in weights.y:
        y.register_hook(lambda dy: kept.append(dy.detach()))
    weights.loss().backward()
    return [(dy, next(f for f in weights.factors if f.shape == dy.shape)) for dy in kept]


def given_by_the_user(weights: Weights) -> list[tuple[Tensor, Tensor]]:
    dy = [factor.clone() for factor in weights.factors]
    torch.autograd.backward(weights.y, dy)
    return list(zip(dy, weights.factors, strict=True))


def of_a_sum(weights: Weights) -> list[tuple[Tensor, Tensor]]:
    """One number, expanded to the shape of each weight."""
    ones = torch.ones((), dtype=torch.float64)
    sum(y.sum() for y in weights.y).backward(ones)
    return [(ones, torch.ones_like(ones))]


def with_a_graph(weights: Weights) -> list[tuple[Tensor, Tensor]]:
    gradients = torch.autograd.grad(weights.loss(), weights.weights, create_graph=True)
    sum(g.square().sum() for g in gradients).backward()
    return []


def shown_to_a_hook_of_the_node(weights: Weights) -> list[tuple[Tensor, Tensor]]:
    kept: list[Tensor] = []
    for node in {y.grad_fn for y in weights.y} - {None}:
        node.register_hook(lambda _, cotangents: kept.extend(t for t in cotangents if t is not None) or None)
    weights.loss().backward()
    return list(zip(kept, weights.factors, strict=False))


class FromNumpy(torch.autograd.Function):
    """The identity, whose gradient lies in memory of NumPy's."""

    memory: ClassVar[dict[int, np.ndarray]] = {}

    @staticmethod
    def forward(ctx, x: Tensor, index: int) -> Tensor:
        ctx.index = index
        return x.clone()

    @staticmethod
    def backward(ctx, dy: Tensor):
        memory = np.empty(dy.shape)
        memory[...] = dy.numpy()
        FromNumpy.memory[ctx.index] = memory
        return torch.from_numpy(memory), None


def in_memory_of_numpys(weights: Weights) -> list[tuple[Tensor, Tensor]]:
    y = [FromNumpy.apply(t, i) for i, t in enumerate(weights.y)]
    sum((t * factor).sum() for t, factor in zip(y, weights.factors, strict=True)).backward()
    return [(torch.from_numpy(FromNumpy.memory[i]), factor) for i, factor in enumerate(weights.factors)]


@pytest.mark.parametrize(
    "step",
    [
        kept_by_a_hook,
        kept_by_its_memory,
        given_by_the_user,
        of_a_sum,
        with_a_graph,
        shown_to_a_hook_of_the_node,
        in_memory_of_numpys,
    ],
)
def test_what_others_hold_is_not_written_to(step):
    _, names, held = both(step)
    assert names == {APART}
    for now, before in held:
        torch.testing.assert_close(now, before, rtol=0, atol=0)


def test_what_retain_grad_keeps():
    def step(weights: Weights) -> None:
        for y in weights.y:
            y.retain_grad()
        weights.loss().backward()

    ours, _, _ = both(step)
    for y, factor in zip(ours.y, ours.factors, strict=True):
        torch.testing.assert_close(y.grad, factor, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(4, 5), (5, 4)], ids=["one tensor", "two views"])
def test_one_cotangent_of_two_weights(shape):
    """An addition hands the same memory to both, and behind a reshape to two tensors of which nobody else knows."""

    def step(impl: str) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        a, b, factor, *vectors = (
            torch.randn(size, generator=generator, dtype=torch.float64)
            for size in ((4, 5), shape, (4, 5), 4, shape[0], 5, shape[1])
        )
        weights = [a.requires_grad_(), b.requires_grad_()]
        y = spectral_norm(weights, vectors[:2], vectors[2:], training=False, impl=impl)
        return list(torch.autograd.grad(((y[0] + y[1].view(4, 5)) * factor).sum(), weights))

    with ran() as names:
        ours = step("cpu")
    assert names == {APART}
    for got, want in zip(ours, step("reference"), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_two_forwards_with_a_weight_and_two_backwards():
    def step(weights: Weights) -> None:
        loss = weights.loss() + sum((y.square() * f).sum() for y, f in zip(weights.y, weights.factors, strict=True))
        loss.backward(retain_graph=True)
        loss.backward()

    both(step)


def test_a_cotangent_in_another_layout_or_dtype_is_left_alone():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 4, 3, 3, generator=generator).requires_grad_()
    x = torch.randn(2, 4, 5, 5, generator=generator)
    for out_dtype in (torch.float32, torch.bfloat16):
        gradients = []
        for impl in ("cpu", "reference"):
            u, v = torch.ones(6) / 6**0.5, torch.ones(36) / 6
            (y,) = spectral_norm([weight], [u], [v], training=False, out_dtype=out_dtype, impl=impl)
            loss = F.conv2d(x.to(memory_format=torch.channels_last), y.float()).square().sum()
            gradients += torch.autograd.grad(loss, weight)
        assert gradients[0].dtype == torch.float32
        torch.testing.assert_close(*gradients, rtol=1e-2 if out_dtype == torch.bfloat16 else 1e-5, atol=1e-4)


def test_registration():
    ops = torch.ops.gankernels
    w, dy = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    u, v, sigma = torch.randn(4, dtype=torch.float64), torch.randn(6, dtype=torch.float64), torch.ones(1).double()
    (want,) = ops.spectral_norm_backward([dy], [w], [u], [v], sigma, [0])
    assert ops.spectral_norm_backward_([dy], [w], [u], [v], sigma, [0]) is None
    torch.testing.assert_close(dy, want, rtol=0, atol=0)
    for other in (torch.zeros(4, 6), torch.zeros(6, 4, dtype=torch.float64).mT):
        with pytest.raises(RuntimeError, match=r"dy\[0\]: got another dtype or other strides|out_dtype: got"):
            ops.spectral_norm_backward_([other], [w], [u], [v], sigma, [0])
