"""Launchers of the Triton kernels in device.py: lists of tensors in and out, weight by weight.

The fallback of the CUDA C++ kernels, which take all weights in one launch. They run compiled on CUDA tensors, and on
CPU tensors in Triton's interpreter (TRITON_INTERPRET=1, set before triton is imported). They are asynchronous, allocate
by shape alone, and add in an order that depends on shapes alone. Arguments are trusted; op.py checks them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from gankernels.ops._launch import FUSION, Specialisation, on_device_of
from gankernels.ops.spectral_norm import device
from gankernels.ops.spectral_norm.layout import Matrix, empty_like, is_dense, matrix_of

_OPTIONS = {"num_warps": 4} | FUSION
# Tiles of the products with a vector: 16 numbers a thread, runs of 512 bytes and more.
_TILE_NUMBERS, _MOST_COLUMNS = 2048, 512
_BLOCK = 1024  # numbers of a program that has no tile
# Sums are split into so many programs at most. A constant, so that they are added in the same order everywhere.
_PROGRAMS = 512


class _Launcher(NamedTuple):
    """One weight, its matrix and its vectors, and the launches that it needs."""

    weight: Tensor
    m: Matrix
    acc: torch.dtype

    @classmethod
    def of(cls, weight: Tensor, dim: int) -> _Launcher:
        weight = weight if is_dense(weight, dim) else weight.contiguous()
        return cls(weight, matrix_of(weight, dim), torch.promote_types(weight.dtype, torch.float32))

    @property
    def width(self) -> int:
        return self.m.columns // self.m.inner

    @property
    def order(self) -> tuple[int, int]:
        return self.m.channels, self.m.positions

    @property
    def permuted(self) -> bool:
        return not self.m.transposed and self.m.positions > 1

    def split(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The vector along the runs, and the one across them."""
        return (u, v) if self.m.transposed else (v, u)

    def blocks(self) -> dict[str, Any]:
        block_i = min(triton.next_power_of_2(self.width), _MOST_COLUMNS)
        return {
            "BLOCK_Q": min(triton.next_power_of_2(self.m.across), _TILE_NUMBERS // block_i),
            "BLOCK_I": block_i,
        } | _OPTIONS

    def sum_across(self, along: Tensor) -> Tensor:
        out, blocks = along.new_empty(self.m.across, dtype=self.acc), self.blocks()
        device._spectral_norm_across_kernel[(triton.cdiv(self.m.across, blocks["BLOCK_Q"]),)](
            self.weight, along, out, self.m.across, self.width, self.m.columns, self.m.inner, *self.order,
            PERMUTED=self.permuted, **blocks,
        )  # fmt: skip
        return out

    def sum_along(self, across: Tensor) -> Tensor:
        """[splits, width]"""
        blocks = self.blocks()
        columns, rows = triton.cdiv(self.width, blocks["BLOCK_I"]), triton.cdiv(self.m.across, blocks["BLOCK_Q"])
        steps = triton.cdiv(rows, max(1, min(rows, _PROGRAMS // columns)))
        out = across.new_empty((triton.cdiv(rows, steps), self.width), dtype=self.acc)
        device._spectral_norm_along_kernel[(columns, len(out))](
            self.weight, across, out, self.m.across, self.width, self.m.columns, self.m.inner, steps, **blocks
        )
        return out

    def normalise(self, partial: Tensor, sigma: Tensor, eps: float, permuted: bool) -> Tensor:
        splits, size = (1, *partial.shape)[-2:]
        out = partial.new_empty(size)
        device._spectral_norm_normalise_kernel[(1,)](
            partial, out, sigma, size, splits, *self.order, EPS=eps, PERMUTED=permuted, BLOCK=_BLOCK, **_OPTIONS
        )
        return out

    def differentiate(
        self, a: Tensor | None, dy: Tensor, u: Tensor, v: Tensor, sigma: Tensor, ddy: Tensor | None, dw: Tensor
    ) -> None:
        """Order 1 without ``a`` and ``ddy``; order 2 with them."""
        # PyTorch's strides may differ where a dimension is 1, with the same order in memory.
        (along, across), size, w = self.split(u, v), self.weight.numel(), self.weight
        blocks = triton.cdiv(size, _BLOCK)
        steps = triton.cdiv(blocks, _PROGRAMS)
        programs = triton.cdiv(blocks, steps)
        partial, terms = sigma.new_empty((3, programs)), sigma.new_empty(2)
        second = a is not None
        constants = {"SECOND": second, "PERMUTED": self.permuted, "BLOCK": _BLOCK} | _OPTIONS
        a, ddy = (dy if a is None else a), (dy if ddy is None else ddy)  # not touched in order 1
        shape = (self.m.columns, self.m.inner, *self.order)
        device._spectral_norm_products_kernel[(programs,)](
            a, dy, w, along, across, partial, size, steps, *shape, **constants
        )
        device._spectral_norm_terms_kernel[(1,)](
            partial, sigma, terms, programs, SECOND=second, BLOCK=_BLOCK, **_OPTIONS
        )
        device._spectral_norm_backward_kernel[(blocks,)](
            a, dy, w, along, across, sigma, terms, ddy, dw, size, *shape, **constants
        )

    def like(self, t: Tensor) -> Tensor:
        """``t`` with its elements in the places of the weight's."""
        if t.stride() == self.weight.stride():
            return t
        return torch.empty_like(self.weight, dtype=t.dtype).copy_(t)


def spectral_norm_forward(
    weights: Sequence[Tensor],
    u: Sequence[Tensor],
    v: Sequence[Tensor],
    dims: Sequence[int],
    n_power_iterations: int,
    eps: float,
    out_dtype: torch.dtype,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
    """W / sigma of every weight in ``out_dtype``; the new u, v and sigma in fp32 (fp64 for fp64)."""
    acc = torch.promote_types(weights[0].dtype, torch.float32)
    sigmas = weights[0].new_empty(len(weights), dtype=acc)
    results: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    with on_device_of(weights[0]):
        for weight, u_, v_, dim, sigma in zip(weights, u, v, dims, sigmas, strict=True):
            launch = _Launcher.of(weight, dim)
            along, across = launch.split(u_.to(acc, copy=True), v_.to(acc, copy=True))
            for _ in range(n_power_iterations):
                if launch.m.transposed:
                    along = launch.normalise(launch.sum_along(across), sigma, eps, permuted=False)
                    across = launch.normalise(launch.sum_across(along), sigma, eps, permuted=False)
                else:
                    across = launch.normalise(launch.sum_across(along), sigma, eps, permuted=False)
                    along = launch.normalise(launch.sum_along(across), sigma, eps, permuted=launch.permuted)
            if n_power_iterations == 0:
                device._spectral_norm_dot_kernel[(1,)](
                    launch.sum_across(along), across, sigma, launch.m.across, BLOCK=_BLOCK, **_OPTIONS
                )
            y, size = empty_like(weight, dim, out_dtype), weight.numel()
            device._spectral_norm_scale_kernel[(triton.cdiv(size, _BLOCK),)](
                launch.weight, sigma, y, size, BLOCK=_BLOCK, **_OPTIONS
            )
            for result, value in zip(results, (y, *launch.split(along, across)), strict=True):
                result.append(value)
    return *results, sigmas


def spectral_norm_backward(
    dy: Sequence[Tensor],
    weights: Sequence[Tensor],
    u: Sequence[Tensor],
    v: Sequence[Tensor],
    sigma: Tensor,
    dims: Sequence[int],
) -> list[Tensor]:
    """The gradient of every weight, in its dtype and layout."""
    dweights = []
    with on_device_of(weights[0]):
        for i, (weight, dim) in enumerate(zip(weights, dims, strict=True)):
            launch, dw = _Launcher.of(weight, dim), empty_like(weight, dim)
            launch.differentiate(None, launch.like(dy[i]), u[i], v[i], sigma[i], None, dw)
            dweights.append(dw)
    return dweights


def spectral_norm_backward_backward(
    ddweights: Sequence[Tensor],
    dy: Sequence[Tensor],
    weights: Sequence[Tensor],
    u: Sequence[Tensor],
    v: Sequence[Tensor],
    sigma: Tensor,
    dims: Sequence[int],
) -> tuple[list[Tensor], list[Tensor]]:
    """From the cotangents of the backward's results, those of dy and of the weights."""
    ddys, dweights = [], []
    with on_device_of(weights[0]):
        for i, (weight, dim) in enumerate(zip(weights, dims, strict=True)):
            launch = _Launcher.of(weight, dim)
            ddy, dw = empty_like(weight, dim, dy[i].dtype), empty_like(weight, dim)
            launch.differentiate(launch.like(ddweights[i]), launch.like(dy[i]), u[i], v[i], sigma[i], ddy, dw)
            ddys.append(ddy)
            dweights.append(dw)
    return ddys, dweights


def specialisations() -> Iterator[Specialisation]:
    """Every kernel for every dtype of weights, and for 16-bit results of fp32 weights, on a weight in channels_last."""
    pairs = [("fp32", "fp32"), ("fp32", "bf16"), ("bf16", "bf16"), ("fp16", "fp16"), ("fp64", "fp64")]
    kernels = [kernel for name, kernel in vars(device).items() if name.startswith("_spectral_norm_")]
    given = {"EPS": 1e-12, "PERMUTED": True, "BLOCK": _BLOCK}
    given |= {"BLOCK_Q": _TILE_NUMBERS // _MOST_COLUMNS, "BLOCK_I": _MOST_COLUMNS}
    seen = []
    for weight, output in pairs:
        accumulator = "fp64" if weight == "fp64" else "fp32"
        types = dict.fromkeys(("w_ptr", "a_ptr", "dw_ptr"), weight)
        types |= dict.fromkeys(("dy_ptr", "y_ptr", "ddy_ptr"), output)
        for kernel in kernels:
            for second in (False, True) if "SECOND" in kernel.arg_names else (False,):
                found = Specialisation.of(kernel, given | {"SECOND": second}, _OPTIONS, types, accumulator)
                if found not in seen:  # kernels that see no weight are the same for many
                    seen.append(found)
                    yield found
