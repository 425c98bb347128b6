"""Which implementation of an op runs, and why.

Every op has some of five implementations: ``reference`` (plain PyTorch, the definition), ``library`` (PyTorch's own
kernels, cuDNN's or oneDNN's, with our passes around them), ``cpu`` (C++), ``triton`` and ``cuda`` (CUDA C++).
:func:`choose` picks one, in this order:

1. what the call forced: ``impl="triton"``;
2. what the block forced: ``with gankernels.use("reference"):``;
3. what the process forced: ``GANKERNELS_IMPL=reference``;
4. what ``gankernels tune`` found to be right and fastest on this machine, for the op, dtype and size class;
5. the first one in :data:`PREFERENCE` for the tensor's device that can run and is not known to be wrong.

A forced implementation that cannot run raises :class:`~gankernels.errors.ImplementationUnavailable` with the reason.
A block or a process that forces one which an op does not have at all (no convolution has ``cpu``) leaves that op alone.
Where tune has not run, the implementation of step 5 is checked at its first use on a GPU
(:mod:`gankernels.selfcheck`), and passed over if it fails. A fall-back from the preferred one is logged once, and
``gankernels doctor`` shows it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from gankernels import _native, selfcheck, verdicts
from gankernels.errors import ImplementationUnavailable, InputError

IMPLEMENTATIONS = ("reference", "library", "cpu", "triton", "cuda")

#: Tried in this order when nothing is forced. The Triton interpreter is a debugger, a thousand times slower than the
#: reference, so on a CPU it runs only where it is asked for by name.
PREFERENCE = {"cpu": ("cpu", "library", "reference"), "cuda": ("cuda", "library", "triton", "reference")}
_FALLBACK = ("library", "reference")

#: Device types on which an implementation that tune has not verified is checked at its first use.
SELF_CHECKED = ("cuda",)

_log = logging.getLogger("gankernels")


class Choice(NamedTuple):
    """An implementation's name and the reason it was chosen."""

    impl: str
    reason: str


class Plan(NamedTuple):
    """The choice for tensors of each size class, see :func:`gankernels.verdicts.size_class`."""

    small: Choice
    medium: Choice
    large: Choice


# op -> implementation -> the op's own reason not to run on a device type, or None. Filled by `register`.
_registry: dict[str, dict[str, Callable[[str], str | None]]] = {}
# Process-wide, as torch's own switches are (`torch.backends.*.flags`): backward threads must see what forward saw.
_forced: str | None = None
_logged: set[str] = set()
_plans: dict[tuple[str, torch.device, torch.dtype], Plan] = {}


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


def implementations(op: str) -> tuple[str, ...]:
    """The implementations that ``op`` has, on whatever machine, in the order of :data:`IMPLEMENTATIONS`."""
    return tuple(impl for impl in IMPLEMENTATIONS if impl in _registry[op])


def unavailable(op: str, impl: str, device: str) -> str | None:
    """Why ``impl`` of ``op`` cannot run on the device type ``device``, in a few words; None if it can."""
    if op not in _registry:
        raise InputError(f"op: got {op!r}, expected one of {', '.join(_registry)}")
    if impl not in _registry[op]:
        return f"{op} has no {impl} implementation"
    return machine_lacks(impl, device) or _registry[op][impl](device)


def choose(op: str, x: Tensor | str, impl: str | None = None, *, numel: int | None = None) -> Choice:
    """Which implementation of ``op`` runs on ``x``, and why.

    Args:
        op: the op's name.
        x: the tensor whose device, dtype and number of elements decide. A device type (``"cuda"``) stands for a large
            fp32 tensor there.
        impl: the implementation that this call forces, or None.
        numel: the elements that the work is proportional to, where they are not those of x: an op on a list of tensors
            passes their sum.

    In a graph that is being compiled for dynamic shapes the size is not known, and no guard is put on it: the choice is
    that for large tensors.

    Raises:
        InputError: ``impl`` (or ``GANKERNELS_IMPL``) is not one of :data:`IMPLEMENTATIONS`.
        ImplementationUnavailable: the forced implementation cannot run.
    """
    if impl is not None or _forced is not None or _environment is not None:
        forced = _choose_forced(op, x if isinstance(x, str) else x.device.type, impl)
        if forced is not None:
            return forced
    if isinstance(x, str):
        return plan(op, torch.device(x)).large
    if torch.compiler.is_compiling():
        return _choose_in_graph(op, x, numel)
    choices = _plans.get((op, x.device, x.dtype)) or _checked_plan(op, x.device, x.dtype)
    size = x.numel() if numel is None else numel
    return choices[0] if size <= verdicts.SMALL else choices[1] if size <= verdicts.MEDIUM else choices[2]


def narrowed(op: str, chosen: str, impl: str | None, why_not: str | None) -> str:
    """``chosen``, or ``"library"`` where the arguments of this call, and not the machine, are why it cannot run.

    Args:
        op: the op's name.
        chosen: what :func:`choose` answered.
        impl: the implementation that this call forces, or None.
        why_not: the reason, in a few words; None if it can run.

    Raises:
        ImplementationUnavailable: the call forces it.
    """
    if why_not is None:
        return chosen
    if impl is not None:
        raise ImplementationUnavailable(f"{op}: the call's impl= asks for {impl!r}: {why_not}")
    if not torch.compiler.is_compiling():
        _log_once(f"{op} runs on library where {chosen} was chosen ({why_not})")
    return "library"


def plan(op: str, device: torch.device, dtype: torch.dtype = torch.float32) -> Plan:
    """What :func:`choose` answers on ``device`` in ``dtype`` where nothing is forced, by what is known so far.

    Nothing is checked, remembered or logged.
    """
    device = indexed(device)
    return _plan(op, device, dtype, selfcheck.known_failures(op, device, dtype))


def indexed(device: torch.device | str) -> torch.device:
    """``device`` as its tensors have it: CUDA's with a number."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return device


def forget() -> None:
    """Read the verdicts anew, and check and log anew, at the next use of each op."""
    verdicts.forget()
    selfcheck.forget()
    _plans.clear()
    _logged.clear()


def _choose_forced(op: str, device: str, impl: str | None) -> Choice | None:
    """None where a block or the process forces what this op does not have on any machine."""
    for forced, source in ((impl, "the call's impl="), (_forced, "gankernels.use"), (_environment, "GANKERNELS_IMPL")):
        if forced is not None:
            if impl is None and _check_name(forced, source) not in _registry.get(op, (forced,)):
                return None
            why_not = unavailable(op, _check_name(forced, source), device)
            if why_not is not None:
                raise ImplementationUnavailable(f"{op}: {source} asks for {forced!r} on {device}: {why_not}")
            return Choice(forced, f"forced by {source}")
    return None


def _choose_in_graph(op: str, x: Tensor, numel: int | None) -> Choice:
    small, medium, large = _plan_in_graph(op, x.device, x.dtype)
    if small.impl == medium.impl == large.impl:
        return large
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    size = x.numel() if numel is None else numel
    if statically_known_true(size <= verdicts.SMALL):
        return small
    return medium if statically_known_true(size <= verdicts.MEDIUM) else large


def _plan_in_graph(op: str, device: torch.device, dtype: torch.dtype) -> Plan:
    return _plans.get((op, device, dtype)) or plan(op, device, dtype)


# Dynamo calls it while it traces, and keeps the answer: files are read outside the graph. This is all that
# torch.compiler.assume_constant_result does, but for importing Dynamo, which `import gankernels` must not.
_plan_in_graph._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _checked_plan(op: str, device: torch.device, dtype: torch.dtype) -> Plan:
    """The plan for the rest of this process: what it would run is checked, and fall-backs are logged."""
    wrong: dict[str, str] = {}
    plan = _plan(op, device, dtype, wrong)
    if device.type in SELF_CHECKED and not verdicts.read(device).covers(op, dtype):
        # Nothing is tuned, so the sizes do not differ.
        while (impl := plan.large.impl) != "reference":
            try:
                why = selfcheck.failure(op, impl, device, dtype)
            except selfcheck.Undecided:
                return plan
            if why is None:
                break
            wrong[impl] = why
            plan = _plan(op, device, dtype, wrong)
    for size in verdicts.SIZE_CLASSES:
        choice, passed_over = _choose_default(op, device, dtype, size, wrong)
        if passed_over:
            _log_once(f"{op} runs on {choice.impl} for {device.type} tensors ({passed_over})")
    _plans[op, device, dtype] = plan
    return plan


def _plan(op: str, device: torch.device, dtype: torch.dtype, wrong: Mapping[str, str]) -> Plan:
    if op not in _registry:
        raise InputError(f"op: got {op!r}, expected one of {', '.join(_registry)}")
    return Plan(*(_choose_default(op, device, dtype, size, wrong)[0] for size in verdicts.SIZE_CLASSES))


def _choose_default(
    op: str, device: torch.device, dtype: torch.dtype, size: str, wrong: Mapping[str, str]
) -> tuple[Choice, str]:
    """The choice where nothing is forced, and which preferred implementations cannot have it and why ("" if none).

    ``wrong`` holds what failed its self-check: implementation -> why.
    """
    cached = verdicts.read(device)
    verdict = cached.find(op, dtype, size)
    passed_over, possible = [], []
    for impl in PREFERENCE.get(device.type, _FALLBACK):
        if impl not in _registry[op]:
            continue
        why_not = unavailable(op, impl, device.type)
        if verdict is not None and impl in verdict.wrong and impl != "reference":
            why_not = f"wrong on this machine in {verdicts.dtype_name(dtype)}: {verdict.wrong[impl]}"
        elif impl in wrong:
            why_not = f"fails its self-check in {verdicts.dtype_name(dtype)}: {wrong[impl]}"
        if why_not is None:
            possible.append(impl)
        elif not possible:
            passed_over.append(f"{impl}: {why_not}")
    because = "; ".join(passed_over)
    if verdict is not None and verdict.chosen in possible:
        return Choice(verdict.chosen, f"fastest for {size} {verdicts.dtype_name(dtype)}, {cached.state}"), because
    return Choice(possible[0], because or f"default on {device.type}"), because


def _log_once(line: str) -> None:
    if line not in _logged:
        _logged.add(line)
        _log.warning(line)


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
