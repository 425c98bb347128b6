"""What every op's registration shares.

An op with kernels is a *family* of registered torch ops, one namespace for each way to run it: ``gankernels::`` for the
native kernels (C++ on CPU tensors, CUDA C++ on CUDA tensors), ``gankernels_triton::`` for Triton,
``gankernels_library::`` for PyTorch's own kernels with our passes around them. All have the same schemas, fakes and
autograd formulas. The reference needs no registration: it is plain PyTorch.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from gankernels import _native, dispatch, selfcheck
from gankernels.dispatch import has_triton

#: implementation -> namespace of its registered ops
NAMESPACES = {
    "library": "gankernels_library",
    "cpu": "gankernels",
    "cuda": "gankernels",
    "triton": "gankernels_triton",
}

#: The implementations that are kernels of our own.
KERNELS = ("cpu", "cuda", "triton")

#: op name -> its fake, what it saves (setup_context; None for nothing), and its autograd formula; None refuses one more
#: order of differentiation.
Formulas = Mapping[str, tuple[Callable[..., Any], Callable[..., None] | None, Callable[..., Any] | None]]

#: namespace -> where the ops that are written in Python are defined.
_defined = {name: torch.library.Library(name, "DEF") for name in ("gankernels_library", "gankernels_triton")}


def families(impls: Iterable[str] = KERNELS) -> tuple[str, ...]:
    """The namespaces of ``impls`` whose ops can be registered in this process."""
    can = {"gankernels": _native.extension is not None, "gankernels_triton": has_triton}
    return tuple(dict.fromkeys(NAMESPACES[impl] for impl in impls if can.get(NAMESPACES[impl], True)))


def register_op(
    op: str,
    schemas: Mapping[str, str],
    formulas: Callable[[SimpleNamespace], Formulas],
    impls: Iterable[str] = KERNELS,
) -> None:
    """Register the op ``op`` with torch in every family, with dispatch, and with the self-check.

    Args:
        op: its name, and that of its folder, which has ``checks.py`` and, where ``impls`` names them, ``library.py``
            and ``kernels.py`` (Triton) with functions named like the registered ops.
        schemas: name -> arguments and returns of its forward and of each backward.
        formulas: maps a family's registered ops, by their names, to their formulas.
        impls: its implementations besides the reference.
    """
    impls = tuple(impls)
    folder = f"{__package__}.{op}"
    for impl, module in (("library", "library"), ("triton", "kernels")):
        if impl in impls and NAMESPACES[impl] in families(impls):
            define(NAMESPACES[impl], schemas, functools.partial(importlib.import_module, f"{folder}.{module}"))
    for namespace in families(impls):
        ops = SimpleNamespace(**{name: getattr(getattr(torch.ops, namespace), name) for name in schemas})
        register_formulas(op, namespace, formulas(ops))
    for impl in ("reference", *impls):
        dispatch.register(op, impl)
    selfcheck.register(op, lambda: importlib.import_module(f"{folder}.checks").checks())


def register_formulas(op: str, namespace: str, formulas: Formulas) -> None:
    """Give the ops of a namespace, which are defined there, their fakes and autograd formulas."""

    def refuse(ctx: Any, *_: Any) -> None:
        raise RuntimeError(f"{op}: third-order gradients are not implemented; pass impl='reference' for them")

    for name, (fake, setup_context, vjp) in formulas.items():
        torch.library.register_fake(f"{namespace}::{name}", fake)
        torch.library.register_autograd(f"{namespace}::{name}", vjp or refuse, setup_context=setup_context)


def define(namespace: str, schemas: Mapping[str, str], module: Callable[[], Any]) -> None:
    """Define each of ``schemas`` (op name -> arguments and returns) in a namespace whose ops are written in Python.

    ``module`` returns the module whose functions, named like the ops, run them; it is called at the first run, so that
    ``import gankernels`` does not import triton.
    """
    for name, signature in schemas.items():
        _defined[namespace].define(name + signature)

        def run(*args: Any, _name: str = name) -> Any:
            return getattr(module(), _name)(*args)

        _defined[namespace].impl(name, run, "CompositeExplicitAutograd")


def refuse_transforms(op: str, *tensors: Tensor) -> None:
    """Raise where torch would be silently wrong: forward-mode AD, and the transforms of ``torch.func``.

    torch.library has no rule for tangents through a registered op and would return zero ones without a word.
    """
    if torch.compiler.is_compiling():
        return
    for tensor in tensors:
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            raise RuntimeError(
                f"{op}: torch.func transforms are not supported by the fused kernels; pass impl='reference' for them"
            )
        if forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None:
            raise RuntimeError(
                f"{op}: forward-mode AD is not supported by the fused kernels; pass impl='reference' for it"
            )


# None where a version of torch has no such question: then everything counts as asked for.
_will_execute: Callable[[Any], bool] | None = getattr(torch._C, "_will_engine_execute_node", None)


def asked_for(ctx: Any, index: int) -> bool:
    """Whether the backward pass that runs now passes on the gradient of ``ctx``'s tensor argument number ``index``.

    ``ctx.needs_input_grad`` is what forward knew: it says yes to the weights of a network of which
    ``autograd.grad(out, x)`` wants the input's gradient alone. PyTorch's own formulas ask the engine, and so does this.
    Arguments that are not tensors, or None, do not count in ``index``.
    """
    if _will_execute is None or torch.compiler.is_compiling():
        return True
    node, _ = ctx.next_functions[index]
    if node is None:
        return False
    try:
        return _will_execute(node)
    except RuntimeError:  # What it says of a leaf that is one of grad's inputs, and of none but these.
        return True
