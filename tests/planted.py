"""An op whose kernels are wrong on purpose: what tune and the self-check are there to catch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gankernels import dispatch, selfcheck
from gankernels.bench import Benchmark, Case

OP = "planted"


class _Square(torch.autograd.Function):
    """x^2, with the fault that is asked for. Twice differentiable."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fault: str) -> Tensor:
        if fault == "raises":
            raise RuntimeError("no kernel image is available\nfor this device")
        ctx.save_for_backward(x)
        ctx.fault = fault
        if fault == "unwritten":
            y = torch.empty_like(x)
            y.view(-1)[1:] = x.view(-1)[1:].square()
            return y
        return x.square()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return 2 * x * dy * (1.01 if ctx.fault == "gradient" else 1), None


#: implementation -> the number that stands for it in what a compiled function returns
KINDS = {"cpu": 1, "triton": 2, "cuda": 3}
#: implementation -> its fault
faults: dict[str, str] = {}
#: The implementations that ran, in order.
ran: list[str] = []


def square(x: Tensor, impl: str | None = None) -> Tensor:
    """The public function of the op: x^2, [...] in any layout."""
    impl = dispatch.choose(OP, x, impl).impl
    ran.append(impl)
    return x.square() if impl == "reference" else _Square.apply(x, faults.get(impl, ""))


def checks() -> list[selfcheck.Check]:
    shapes = [((3, 5), False), ((64, 33), True)]
    return [
        selfcheck.Check(
            f"{shape[0]}x{shape[1]}",
            lambda generator, shape=shape: [torch.randn(shape, generator=generator, dtype=torch.float64)],
            square,
            torch.square,
            many=many,
        )
        for shape, many in shapes
    ]


BENCHMARK = Benchmark(
    op=OP,
    cases=[Case("tiny", (4, 4)), Case("wide", (2, 2**19))],
    inputs=lambda case, rng: [torch.randn(case.shape, generator=rng)],
    stock=lambda case, x: x.square(),
    ours=lambda case, x, impl: square(x, impl),
    bytes=lambda case, mode, itemsize: case.passes(2, itemsize),
    reference="reference",
)


def plant(monkeypatch: pytest.MonkeyPatch, **fault_of: str) -> None:
    """Register the op with three kernels on CPU tensors, preferred as cuda, triton, cpu; some with a fault."""
    monkeypatch.setattr(dispatch, "machine_lacks", lambda impl, device: None)
    monkeypatch.setattr(dispatch, "PREFERENCE", {"cpu": ("cuda", "triton", "cpu", "reference")})
    monkeypatch.setitem(dispatch._registry, OP, {impl: lambda device: None for impl in dispatch.IMPLEMENTATIONS})
    monkeypatch.setitem(selfcheck._checks, OP, checks)
    faults.clear()
    faults.update(fault_of)
    ran.clear()
