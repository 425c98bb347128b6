"""Which implementation of an op runs, and why.

Every op has up to four implementations: ``reference`` (plain PyTorch, the definition), ``cpu`` (C++), ``triton`` and
``cuda`` (CUDA C++). :func:`choose` picks one, in this order:

1. what the call forced: ``impl="triton"``;
2. what the block forced: ``with gankernels.use("reference"):``;
3. what the process forced: ``GANKERNELS_IMPL=reference``;
4. the first available one in :data:`PREFERENCE` for the tensor's device.

A forced implementation that cannot run raises :class:`~gankernels.errors.ImplementationUnavailable` with the reason.
A fall-back from the preferred one is logged once per op and device, and ``gankernels doctor`` shows it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from gankernels import _native
from gankernels.errors import ImplementationUnavailable, InputError

IMPLEMENTATIONS = ("reference", "cpu", "triton", "cuda")

#: Tried in this order when nothing is forced. The Triton interpreter is a debugger, a thousand times slower than the
#: reference, so on a CPU it runs only where it is asked for by name.
PREFERENCE = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}
_FALLBACK = ("reference",)

_log = logging.getLogger("gankernels")


class Choice(NamedTuple):
    """An implementation's name and the reason it was chosen."""

    impl: str
    reason: str


# op -> implementation -> the op's own reason not to run on a device type, or None. Filled by `register`.
_registry: dict[str, dict[str, Callable[[str], str | None]]] = {}
# Process-wide, as torch's own switches are (`torch.backends.*.flags`): backward threads must see what forward saw.
_forced: str | None = None
_logged: set[tuple[str, str]] = set()


def register(op: str, impl: str, unavailable: Callable[[str], str | None] = lambda device: None) -> None:
    """Declare that ``op`` has the implementation ``impl``.

    Args:
        op: the op's name, the stem of all its files.
        impl: one of :data:`IMPLEMENTATIONS`.
        unavailable: maps a device type (``"cpu"``, ``"cuda"``) to the op's own reason not to run there, or None.
            What holds for every op (no extension, no Triton, wrong device) is asked before it.
    """
    _registry.setdefault(op, {})[_check_name(impl, "impl")] = unavailable


def ops() -> tuple[str, ...]:
    """The names of all registered ops, in the order of ``gankernels.ops``."""
    return tuple(_registry)


def unavailable(op: str, impl: str, device: str) -> str | None:
    """Why ``impl`` of ``op`` cannot run on the device type ``device``, in a few words; None if it can."""
    if op not in _registry:
        raise InputError(f"op: got {op!r}, expected one of {', '.join(_registry)}")
    if impl not in _registry[op]:
        return f"{op} has no {impl} implementation"
    return machine_lacks(impl, device) or _registry[op][impl](device)


def choose(op: str, device: str, impl: str | None = None) -> Choice:
    """Which implementation of ``op`` runs on tensors of the device type ``device``, and why.

    Args:
        op: the op's name.
        device: a device type: ``x.device.type``.
        impl: the implementation that this call forces, or None.

    Raises:
        InputError: ``impl`` (or ``GANKERNELS_IMPL``) is not one of :data:`IMPLEMENTATIONS`.
        ImplementationUnavailable: the forced implementation cannot run.
    """
    for forced, source in (
        (impl, "the call's impl="),
        (_forced, "gankernels.use"),
        (_environment, "GANKERNELS_IMPL"),
    ):
        if forced is not None:
            why_not = unavailable(op, _check_name(forced, source), device)
            if why_not is not None:
                raise ImplementationUnavailable(f"{op}: {source} asks for {forced!r} on {device}: {why_not}")
            return Choice(forced, f"forced by {source}")

    passed_over = []
    for name in PREFERENCE.get(device, _FALLBACK):
        why_not = unavailable(op, name, device)
        if why_not is None:
            break
        passed_over.append(f"{name}: {why_not}")
    if not passed_over:
        return Choice(name, f"default on {device}")
    if not torch.compiler.is_compiling() and (op, device) not in _logged:
        _logged.add((op, device))
        _log.warning("%s runs on %s for %s tensors (%s)", op, name, device, "; ".join(passed_over))
    return Choice(name, "; ".join(passed_over))


@contextlib.contextmanager
def use(impl: str | None) -> Iterator[None]:
    """Force one implementation for every op called in this block (a call's own ``impl=`` still wins).

    ``None`` lifts an outer block's choice. The switch is process-wide, like ``torch.backends.cudnn.flags``; a
    backward runs on the implementation that its forward used, wherever it is called.

    Example:
        >>> with gankernels.use("reference"):
        ...     loss = discriminator(x).mean()

    Raises:
        InputError: ``impl`` is not one of :data:`IMPLEMENTATIONS` or None.
    """
    global _forced
    outer = _forced
    _forced = None if impl is None else _check_name(impl, "gankernels.use")
    try:
        yield
    finally:
        _forced = outer


def _check_name(impl: str, source: str) -> str:
    if impl not in IMPLEMENTATIONS:
        raise InputError(f"{source}: got {impl!r}, expected one of {', '.join(IMPLEMENTATIONS)}")
    return impl


def machine_lacks(impl: str, device: str) -> str | None:
    """What every op's ``impl`` needs and this machine or this tensor does not have."""
    if impl == "cpu":
        return f"runs on cpu tensors, not {device}" if device != "cpu" else _native.why_no_cpu
    if impl == "cuda":
        return f"runs on cuda tensors, not {device}" if device != "cuda" else _native.why_no_cuda
    if impl == "triton":
        if not has_triton:
            return "triton is not installed"
        if device == "cpu" and not _triton_interprets:
            return "triton needs a GPU, or TRITON_INTERPRET=1 to run in its interpreter"
        return None if device in ("cpu", "cuda") else f"runs on cuda tensors, not {device}"
    return None


# Read once: a traced function may not read the environment, and find_spec walks the file system.
_environment = os.environ.get("GANKERNELS_IMPL") or None
has_triton = importlib.util.find_spec("triton") is not None
_triton_interprets = os.environ.get("TRITON_INTERPRET") == "1"
