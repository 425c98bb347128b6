"""Small inputs on which an op's implementations are held against its reference, on the machine at hand.

``gankernels tune`` runs all of them. Where it has not run, dispatch runs those of an op at its first use on a GPU, once
in a process, for the implementation that it is about to choose.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gankernels import verification

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

Outputs = Tensor | Sequence[Tensor]

_DRAWS = 3


@dataclass(frozen=True)
class Check:
    """One input of an op, and how the op and stock PyTorch are called with it.

    Attributes:
        name: for the report: ``"2x33x3x3 channels_last, frozen statistics"``.
        inputs: ``generator -> tensors``, drawn in fp64 on the CPU, contiguous. They are rounded to the dtype that is
            checked; the floating ones ask for gradients and, where they have four dimensions, take ``layout``.
        ours: ``(*tensors, impl=...) -> outputs``, on the implementation that is named; "reference" is the definition.
        stock: ``(*tensors) -> outputs`` in stock PyTorch, as a user writes it.
        many: whether each result has numbers enough (hundreds) that the largest error of either side is no accident.
            Then the rule is twice the error of ``stock``, where that can run, besides that of "the same function".
        layout: of the inputs with four dimensions.
        orders: 1 checks outputs and gradients, 2 also the gradients of the gradients.
        kink: ``(*fp64 tensors) -> tensor`` of the output's shape: the distance from where the op's derivative jumps.
            Within rounding of it either side is right, so no cotangent enters there.
        dtypes: that the op takes.
    """

    name: str
    inputs: Callable[[torch.Generator], Sequence[Tensor]]
    ours: Callable[..., Outputs]
    stock: Callable[..., Outputs]
    many: bool = False
    layout: torch.memory_format = torch.contiguous_format
    orders: int = 2
    kink: Callable[..., Tensor] | None = None
    dtypes: Sequence[torch.dtype] = DTYPES


_checks: dict[str, Callable[[], Iterable[Check]]] = {}


def register(op: str, checks: Callable[[], Iterable[Check]]) -> None:
    """Declare the checks of ``op``. ``checks`` is called when they are needed, so it may import what it needs."""
    _checks[op] = checks


def checks_of(op: str) -> Sequence[Check]:
    """The checks of ``op``; none if none were declared."""
    return tuple(_checks[op]()) if op in _checks else ()


def verify(check: Check, impl: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why ``impl`` breaks the rules of :mod:`gankernels.verification` on ``check``, in one line; None if it keeps them.

    A rounding error beyond twice eager's must show in three draws of the numbers: where the two are within a factor of
    each other, the largest of some hundreds is beyond it by accident now and then, and a wrong kernel is in every draw.

    Raises:
        torch.OutOfMemoryError: nothing is known then.
    """
    why = None
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        for seed in range(_DRAWS):
            why, is_rounding = _verify_draw(check, impl, device, dtype, seed)
            if why is None:
                return None
            if not is_rounding:
                break
    return f"{check.name}: {why}"


def _verify_draw(
    check: Check, impl: str, device: torch.device, dtype: torch.dtype, seed: int
) -> tuple[str | None, bool]:
    """Why ``impl`` fails, or None, and whether the rule on rounding says so."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [t.to(dtype) if t.is_floating_point() else t for t in check.inputs(generator)]
    exact_in = _placed(drawn, torch.device("cpu"), torch.float64, torch.contiguous_format)
    smooth = None
    if check.kink is not None:
        with torch.no_grad():
            smooth = check.kink(*exact_in).abs() > 32 * torch.finfo(dtype).eps
    cotangents = _Cotangents(generator, dtype, smooth)
    exact = _derivatives(lambda *t: check.ours(*t, impl="reference"), exact_in, cotangents, check.orders)

    def run(function: Callable[..., Outputs], layout: torch.memory_format) -> list[Tensor]:
        placed = _placed(drawn, device, dtype, layout)
        _poison(exact, device, dtype)
        return _derivatives(function, placed, cotangents, check.orders)

    try:
        got = run(lambda *t: check.ours(*t, impl=impl), check.layout)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # Whatever it raises is the finding.
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}", False
    if len(got) != len(exact):
        return f"{len(got)} results, the reference has {len(exact)}", False
    why = verification.another_function(got, exact, dtype)
    # fp64 has no exact result to be near to: the reference rounds as much.
    if why is not None or not check.many or dtype == torch.float64:
        return why, False
    try:
        eager = [run(check.stock, layout) for layout in (torch.contiguous_format, torch.channels_last)]
    except (NotImplementedError, RuntimeError):  # Stock PyTorch cannot do it in this dtype.
        return None, False
    return verification.beyond_twice_eager(got, exact, eager), True


class _Cotangents:
    """The same cotangents for every run: drawn at the first, in the order in which they are asked for."""

    def __init__(self, generator: torch.Generator, dtype: torch.dtype, smooth: Tensor | None) -> None:
        self.smooth, self._generator, self._dtype = smooth, generator, dtype
        self._drawn: list[Tensor] = []

    def like(self, tensors: Sequence[Tensor], start: int) -> list[Tensor]:
        """One for each of ``tensors``; they are numbered from ``start``."""
        for t in tensors[len(self._drawn) - start :]:
            drawn = torch.randn(t.shape, generator=self._generator, dtype=torch.float64).to(self._dtype)
            self._drawn.append(self.masked(drawn) if start == 0 else drawn)
        return [_in_layout_of(t, one.to(t)) for t, one in zip(tensors, self._drawn[start:], strict=False)]

    def masked(self, t: Tensor) -> Tensor:
        """``t`` with 0 where the derivative jumps, if it has the shape of the output."""
        if self.smooth is None or t.shape != self.smooth.shape:
            return t
        return torch.where(self.smooth, t, 0)


def _derivatives(
    function: Callable[..., Outputs], tensors: Sequence[Tensor], cotangents: _Cotangents, orders: int
) -> list[Tensor]:
    """Outputs, gradients, and gradients of the gradients in the cotangents and the inputs; detached, on the CPU."""
    out = function(*tensors)
    outputs = [out] if isinstance(out, Tensor) else list(out)
    sources = [t for t in tensors if t.requires_grad]
    dys = [dy.requires_grad_() for dy in cotangents.like(outputs, 0)]
    first = _grad(outputs, sources, dys, create_graph=orders == 2)
    results = [*outputs, *first]
    if orders == 2:
        differentiable = [t for t in first if t.requires_grad]
        ddys = cotangents.like(first, len(outputs))
        ddys = [ddy for t, ddy in zip(first, ddys, strict=True) if t.requires_grad]
        results += _grad(differentiable, [*dys, *sources], ddys, create_graph=False)
    return [cotangents.masked(t.detach().cpu()) for t in results]


def _grad(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor], create_graph: bool
) -> list:
    return list(
        torch.autograd.grad(
            outputs, inputs, cotangents, create_graph=create_graph, allow_unused=True, materialize_grads=True
        )
    )


def _placed(
    drawn: Sequence[Tensor], device: torch.device, dtype: torch.dtype, layout: torch.memory_format
) -> list[Tensor]:
    placed = []
    for t in drawn:
        here = t.to(device, dtype if t.is_floating_point() else t.dtype, copy=True)
        if here.dim() == 4:
            here = here.contiguous(memory_format=layout)
        placed.append(here.requires_grad_(here.is_floating_point()))
    return placed


def _in_layout_of(t: Tensor, cotangent: Tensor) -> Tensor:
    if t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last):
        return cotangent.contiguous(memory_format=torch.channels_last)
    return cotangent


def _poison(results: Sequence[Tensor], device: torch.device, dtype: torch.dtype) -> None:
    """Leave NaN in the memory that the allocator hands out next, so that an element that is not written is seen."""
    blocks = [torch.full(r.shape, torch.nan, device=device, dtype=dtype) for r in results for _ in range(2)]
    del blocks


# ---- At first use ----

_found: dict[tuple[str, str, torch.device, torch.dtype], str | None] = {}
_locks: dict[tuple[str, str, torch.device, torch.dtype], threading.Lock] = {}
_here = threading.local()
#: A check takes a second, and some more where Triton has to compile.
_PATIENCE_S = 60.0


class Undecided(Exception):
    """The check cannot run now; the next use will try again."""


def failure(op: str, impl: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why ``impl`` fails the checks of ``op`` on ``device`` in ``dtype``, in one line; None if it does not.

    The checks run at the first call, in a thread of their own: nothing of the caller's autograd, autocast, dispatch
    modes or random numbers reaches them, nor the other way round. Another thread that asks meanwhile waits.

    Raises:
        Undecided: asked from within the same check, during CUDA graph capture, or with no memory left.
    """
    key = (op, impl, device, dtype)
    if key in _found:
        return _found[key]
    if getattr(_here, "checking", False) or _capturing(device):
        raise Undecided
    lock = _locks.setdefault(key, threading.Lock())
    # An op that calls itself in a thread of autograd's must not wait for the check that waits for it.
    if not lock.acquire(timeout=_PATIENCE_S):
        raise Undecided
    try:
        if key not in _found:
            _found[key] = _in_a_thread(lambda: _first_failure(op, impl, device, dtype))
        return _found[key]
    finally:
        lock.release()


def known_failures(op: str, device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Implementation -> why, of those that failed the checks of ``op`` in this process."""
    return {key[1]: why for key, why in _found.items() if why is not None and (key[0], *key[2:]) == (op, device, dtype)}


def forget() -> None:
    """Check again at the next use."""
    _found.clear()


def _first_failure(op: str, impl: str, device: torch.device, dtype: torch.dtype) -> str | None:
    for check in checks_of(op):
        if dtype in check.dtypes:
            why = verify(check, impl, device, dtype)
            if why is not None:
                return why
    return None


def _in_a_thread(function: Callable[[], str | None]) -> str | None:
    answer: list[str | None] = []
    undecided: list[BaseException] = []

    def run() -> None:
        _here.checking = True
        try:
            answer.append(function())
        except BaseException as error:
            undecided.append(error)

    thread = threading.Thread(target=run, name="gankernels-self-check", daemon=True)
    thread.start()
    thread.join()
    if answer:
        return answer[0]
    if isinstance(undecided[0], torch.OutOfMemoryError):
        raise Undecided
    raise undecided[0]


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
