"""Whether results are right: the rules by which tests, benchmarks, ``tune`` and the self-check judge a kernel.

All hold results against an *exact* one, which the reference computed in fp64 from the same numbers. Rounding is judged
by what PyTorch itself does, never by a tolerance somebody set: at most twice the error of eager PyTorch in the same
precision, as the largest and as the root mean square error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_FACTOR = 2.0


def errors(got: Tensor, exact: Tensor) -> tuple[float, float]:
    """The largest and the root mean square error of ``got``; infinite where only one of the two is finite."""
    if got.shape != exact.shape:
        return math.inf, math.inf
    if got.numel() == 0:
        return 0.0, 0.0
    finite = exact.isfinite()
    if not torch.equal(got.isfinite(), finite):
        return math.inf, math.inf
    error = torch.where(finite, got.to(exact.dtype) - exact, 0).abs()
    return error.amax().item(), error.square().mean().sqrt().item()


def beyond_twice_eager(
    results: Sequence[Tensor], exact: Sequence[Tensor], eager: Sequence[Sequence[Tensor]]
) -> str | None:
    """Why ``results`` break the rule for our kernels, in a few words; None if they keep it.

    Args:
        results: of the kernel.
        exact: the same from the reference in fp64.
        eager: the same from eager PyTorch in the kernel's dtype, once for each layout; the worse of them counts.
    """
    for index, (got, want) in enumerate(zip(results, exact, strict=True)):
        found = errors(got, want)
        allowed = [max(pair) for pair in zip(*(errors(run[index], want) for run in eager), strict=True)]
        for name, error, bound in zip(("largest", "rms"), found, allowed, strict=True):
            if not error <= _FACTOR * bound:
                return f"result {index}: {name} error {error:.2e}, eager's is {bound:.2e}"
    return None


def another_function(results: Sequence[Tensor], exact: Sequence[Tensor], dtype: torch.dtype) -> str | None:
    """Why ``results`` are not those of the same function, in a few words; None if they are.

    The rule for peers, whose rounding is their own business: errors up to the square root of the dtype's epsilon,
    relative to the largest exact value.
    """
    for index, (got, want) in enumerate(zip(results, exact, strict=True)):
        largest, _ = errors(got, want)
        scale = torch.where(want.isfinite(), want, 0).abs().amax().item() if want.numel() else 0.0
        if not largest <= torch.finfo(dtype).eps ** 0.5 * scale:
            return f"result {index}: error {largest:.2e} on values up to {scale:.2e}"
    return None


def another_function_between_kinks(
    results: Sequence[Tensor], exact: Sequence[Tensor], dtype: torch.dtype
) -> str | None:
    """The rule of :func:`another_function` for gradients of what has ReLUs inside.

    Rounding puts about a share epsilon of the ReLUs on the other side. Each changes a few numbers wholly, all of them
    a gradient by about the square root of epsilon of its norm. So errors count as root mean square: up to the cube root
    of epsilon, relative to that of the exact values.
    """
    for index, (got, want) in enumerate(zip(results, exact, strict=True)):
        _, rms = errors(got, want)
        _, scale = errors(torch.zeros_like(want), want)
        if not rms <= torch.finfo(dtype).eps ** (1 / 3) * scale:
            return f"result {index}: rms error {rms:.2e} on values of rms {scale:.2e}"
    return None
