"""What a benchmark is: an op, the shapes it meets in real networks, its inputs, its floor, and who competes.

A declaration holds no measurement; :mod:`gankernels.bench.runner` carries it out. One op of your own takes this much:

    >>> import torch
    >>> from gankernels.bench import Benchmark, Case, run
    >>> scale = Benchmark(
    ...     op="scale",
    ...     cases=[Case("my network, layer 1", (64, 256, 32, 32))],
    ...     inputs=lambda case, rng: [torch.randn(case.shape, generator=rng)],
    ...     stock=lambda case, x: 2 * x,
    ...     ours=lambda case, x, impl: torch.add(x, x),
    ...     impls=["mine"],
    ...     bytes=lambda case, mode, itemsize: case.passes({"forward": 2, "forward+backward": 4}[mode], itemsize),
    ... )
    >>> rows = run([scale])
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

FORWARD, FORWARD_BACKWARD, DOUBLE_BACKWARD, STEP = "forward", "forward+backward", "double backward", "step"
#: What is timed. ``forward`` runs under no_grad; ``double backward`` is forward, backward and the backward of that
#: backward, as a gradient penalty makes it; a ``step`` differentiates by itself and returns what is to be compared.
MODES = (FORWARD, FORWARD_BACKWARD, DOUBLE_BACKWARD, STEP)

Outputs = Tensor | Sequence[Tensor]


@dataclass(frozen=True)
class Case:
    """One shape that a network has.

    Attributes:
        position: where: network, then the layer: ``"BigGAN-128 G block 3"``.
        shape: of the tensor that the row is known by.
        arguments: what ``inputs``, ``stock`` and ``ours`` need besides: kernel size, stride, groups, ...
        quick: whether ``--quick`` keeps it.
    """

    position: str
    shape: tuple[int, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    quick: bool = False

    def passes(self, count: float, itemsize: int) -> float:
        """Bytes of ``count`` reads or writes of a tensor of this shape."""
        return count * math.prod(self.shape) * itemsize


@dataclass(frozen=True)
class Benchmark:
    """A declaration: everything that is known of an op's benchmark before it runs.

    Attributes:
        op: its name, the stem of all its files.
        cases: the shapes.
        inputs: ``(case, generator) -> tensors``, drawn in fp32 on the CPU, contiguous. The runner converts them:
            floating ones take the row's dtype, ask for gradients and, where they have four dimensions, the layout.
        stock: ``(case, *tensors) -> outputs`` in stock PyTorch, as a user writes it: the peers run this.
        ours: ``(case, *tensors, impl=...) -> outputs``, on the implementation that is named.
        bytes: ``(case, mode, itemsize) -> bytes`` that any implementation must move: each input read once, each output
            written once, and what the algorithm makes read twice.
        flops: ``(case, mode) -> operations`` that any implementation must do; a multiply-add counts as two.
        impls: our contenders; None asks dispatch for all that can run on the device.
        dtypes: of the rows; :attr:`modes` likewise.
        reference: the name of the implementation that ``ours`` takes as the definition, run in fp64. Without one
            (None), ``stock`` in fp64 is the definition.
        kink: ``(case, *fp64 tensors) -> tensor`` of the output's shape: the distance from where the op's derivative
            jumps. Within rounding of it no cotangent enters, since either side is right.
        kinks_inside: of a ``step`` whose results are gradients of what has many ReLUs inside: a few of them lie within
            rounding of zero whatever the numbers, and errors count as root mean square.
        launches: kernel launches that any implementation needs, for the floor of small shapes.
        place: ``(tensors, dtype, memory format) -> tensors``: how inputs, on their device already, take a row's dtype
            and layout, where not as ``inputs`` says: the weights of a step stay in fp32 beside bf16 pictures.
        judged: ``(results) -> tensors`` that are held against the exact ones, where not each result by itself is
            (all gradients of a step as one vector). It is not timed.
        rearranged: ``(case, *tensors) -> outputs``: the arrangement of our kernels in stock PyTorch, where its sums run
            in another order than those of ``stock``. Its rounding is eager PyTorch's too. It is not timed.
    """

    op: str
    cases: Sequence[Case]
    inputs: Callable[[Case, torch.Generator], Sequence[Tensor]]
    stock: Callable[..., Outputs]
    ours: Callable[..., Outputs]
    bytes: Callable[[Case, str, int], float]
    flops: Callable[[Case, str], float] = lambda case, mode: 0.0
    impls: Sequence[str] | None = None
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16)
    modes: Sequence[str] = (FORWARD, FORWARD_BACKWARD)
    reference: str | None = None
    kink: Callable[..., Tensor] | None = None
    kinks_inside: bool = False
    launches: Callable[[str], int] = lambda mode: 1
    place: Callable[[Sequence[Tensor], torch.dtype, torch.memory_format], Sequence[Tensor]] | None = None
    judged: Callable[[Sequence[Tensor]], Sequence[Tensor]] | None = None
    rearranged: Callable[..., Outputs] | None = None
