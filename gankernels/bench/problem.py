"""The numbers that one case puts to every provider, and what the right answers are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from gankernels.bench.declaration import DOUBLE_BACKWARD, STEP, Benchmark, Case
from gankernels.bench.providers import Provider, in_mode, outputs_of
from gankernels.verification import (
    another_function,
    another_function_between_kinks,
    beyond_twice_eager,
    errors,
)

#: Nearer than this to a kink a result may lie on either side of it: in units of the dtype's epsilon, and of the largest
#: error of eager PyTorch's outputs, whichever is more. A sum over a large batch may lose more than its epsilon.
_KINK_EPS, _KINK_ERRORS = 32, 2


class Problem:
    """Inputs, cotangents and exact results of one case in one dtype and mode.

    All are drawn from one seed, rounded as the row's dtype holds them and only then converted, so that providers of
    every precision, and the fp64 reference, see the same numbers. Where the reference is within rounding of a kink no
    cotangent enters, so that the errors that are compared are those of arithmetic.
    """

    def __init__(self, benchmark: Benchmark, case: Case, dtype: torch.dtype, mode: str, device: str) -> None:
        self.benchmark, self.case, self.dtype, self.mode, self.device = benchmark, case, dtype, mode, device
        rng = torch.Generator().manual_seed(0)
        self._inputs = [t.to(device) for t in benchmark.inputs(case, rng)]
        placed = self.inputs(dtype)
        self._inputs = [t.detach().float() if t.is_floating_point() else t for t in placed]
        self.input_bytes = sum(t.nbytes for t in placed)
        if benchmark.reference is None:
            reference = partial(benchmark.stock, case)
        else:
            reference = partial(benchmark.ours, case, impl=benchmark.reference)

        exact_inputs = self.inputs(torch.float64)
        self._keep: list[Tensor | None] = []
        self._cotangents: list[Tensor] = []
        self.output_bytes = 0
        if mode == STEP:
            exact_outputs = []
        else:
            with torch.no_grad():
                exact_outputs = [y for y in outputs_of(reference, exact_inputs) if y.is_floating_point()]
                kink = None if benchmark.kink is None else benchmark.kink(case, *exact_inputs).abs()
        for y in exact_outputs:
            self.output_bytes += y.numel() * dtype.itemsize
            cotangent = torch.randn(y.shape, generator=rng).to(dtype).float().to(device)
            keep = None
            if kink is not None and kink.shape == y.shape:
                keep = kink >= max(_KINK_EPS * torch.finfo(dtype).eps, _KINK_ERRORS * self._eager_error(y))
                cotangent *= keep
            self._cotangents.append(cotangent)
            self._keep.append(keep)
        # Fresh inputs: a function may update one in place.
        self.exact = self._comparable(
            in_mode(reference, mode)(
                self.inputs(torch.float64), [_wanting(c.double(), mode == DOUBLE_BACKWARD) for c in self._cotangents]
            )
        )

    @property
    def has_layout(self) -> bool:
        """Whether an input has four dimensions, so that channels_last differs from contiguous."""
        return any(t.dim() == 4 and t.is_floating_point() for t in self._inputs)

    def inputs(self, dtype: torch.dtype, channels_last: bool = False) -> list[Tensor]:
        """A new set: floating tensors in ``dtype``, asking for gradients; those with four dimensions in the layout."""
        place = self.benchmark.place or _place
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        placed = place([t.clone() for t in self._inputs], dtype, memory_format)
        return [t.requires_grad_() if t.is_floating_point() else t for t in placed]

    def data(self, provider: Provider) -> tuple[list[Tensor], list[Tensor]]:
        """A new set of inputs and cotangents as ``provider`` wants them: a cotangent is like its output."""
        if self.mode == STEP or not self._cotangents:
            return self.inputs(provider.dtype, provider.channels_last), []
        with torch.no_grad():
            outputs = outputs_of(provider.function, self.inputs(provider.dtype, provider.channels_last))
        floating = [y for y in outputs if y.is_floating_point()]
        cotangents = [
            _wanting(torch.empty_like(y).copy_(cotangent), self.mode == DOUBLE_BACKWARD)
            for y, cotangent in zip(floating, self._cotangents, strict=True)
        ]
        return self.inputs(provider.dtype, provider.channels_last), cotangents

    def results(self, provider: Provider) -> list[Tensor]:
        """What ``provider`` returns, without what lies at a kink."""
        return self._comparable(provider.call(*self.data(provider)))

    def rearranged(self, eager: Provider) -> Provider | None:
        """``eager`` in the arrangement of our kernels; None if the declaration has none."""
        if self.benchmark.rearranged is None:
            return None
        function = partial(self.benchmark.rearranged, self.case)
        return replace(eager, function=function, call=in_mode(function, self.mode))

    def flaw(self, provider: Provider, eager: Sequence[Sequence[Tensor]] | None = None) -> str | None:
        """Why the results of ``provider`` are wrong; None if they are right.

        Args:
            provider: to be checked.
            eager: for our providers: results of eager PyTorch in the row's dtype, in each layout and arrangement. A
                peer has none, and neither has an op that eager PyTorch cannot run in this dtype: its rounding is its
                own.
        """
        results = self.results(provider)
        if len(results) != len(self.exact):
            return f"{len(results)} results, expected {len(self.exact)}"
        for index, (got, want) in enumerate(zip(results, self.exact, strict=True)):
            if got.shape != want.shape:
                return f"result {index}: shape {tuple(got.shape)}, expected {tuple(want.shape)}"
        # A whole step's rounding is a matter of chance: one ReLU that flips decides it. Its ops are held to the rule.
        if eager and self.mode != STEP:
            return beyond_twice_eager(results, self.exact, eager)
        if self.benchmark.kinks_inside:
            return another_function_between_kinks(results, self.exact, provider.dtype)
        return another_function(results, self.exact, provider.dtype)

    def sets(self, cache_bytes: int, memory_bytes: int) -> int:
        """How many input sets exceed twice a cache of ``cache_bytes``, and fit ``memory_bytes``; at least 1."""
        size = max(1, self.input_bytes + self.output_bytes)
        return max(1, min(math.ceil(2 * cache_bytes / size), memory_bytes // size, 128))

    def _eager_error(self, exact: Tensor) -> float:
        """Eager PyTorch's largest error in outputs of the shape of ``exact``, in the row's dtype, in either layout."""
        largest = 0.0
        for channels_last in (False, True) if self.has_layout else (False,):
            try:
                with torch.no_grad():
                    outputs = outputs_of(
                        partial(self.benchmark.stock, self.case), self.inputs(self.dtype, channels_last)
                    )
            except Exception:  # the provider's own row will say so
                continue
            found = [errors(y, exact)[0] for y in outputs if y.shape == exact.shape]
            largest = max([largest, *filter(math.isfinite, found)])
        return largest

    def _comparable(self, results: list[Tensor]) -> list[Tensor]:
        """What is held against the exact: at a kink, where either side is right, a cotangent's gradient is zero."""
        if self.benchmark.judged is not None:
            return list(self.benchmark.judged(results))
        if self.mode != DOUBLE_BACKWARD:
            return results
        first = len(results) - len(self._keep)
        masked = [t if keep is None else t * keep for t, keep in zip(results[first:], self._keep, strict=True)]
        return [*results[:first], *masked]


def _place(tensors: Sequence[Tensor], dtype: torch.dtype, memory_format: torch.memory_format) -> list[Tensor]:
    formats = [memory_format if t.dim() == 4 else torch.contiguous_format for t in tensors]
    return [
        t.to(dtype).contiguous(memory_format=layout) if t.is_floating_point() else t
        for t, layout in zip(tensors, formats, strict=True)
    ]


def _wanting(t: Tensor, gradient: bool) -> Tensor:
    return t.requires_grad_() if gradient else t
