"""What every op's registration shares.

An op with kernels is a *family* of registered torch ops, one namespace for each way to run it: ``gankernels::`` for the
native kernels (C++ on CPU tensors, CUDA C++ on CUDA tensors), ``gankernels_triton::`` for Triton. Both have the same
schemas, fakes and autograd formulas. The reference needs no registration: it is plain PyTorch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from gankernels import _native, dispatch, selfcheck
from gankernels.dispatch import has_triton

#: implementation -> namespace of its registered ops
NAMESPACES = {"cpu": "gankernels", "cuda": "gankernels", "triton": "gankernels_triton"}

#: op name -> its fake, what it saves (setup_context; None for nothing), and its autograd formula; None refuses one more
#: order of differentiation.
Formulas = Mapping[str, tuple[Callable[..., Any], Callable[..., None] | None, Callable[..., Any] | None]]

_triton_library = torch.library.Library("gankernels_triton", "DEF")


def families() -> tuple[str, ...]:
    """The namespaces whose ops can be registered in this process."""
    native = () if _native.extension is None else ("gankernels",)
    return (*native, "gankernels_triton") if has_triton else native


def register_op(op: str, schemas: Mapping[str, str], formulas: Callable[[SimpleNamespace], Formulas]) -> None:
    """Register the op ``op`` with torch in every family, with dispatch, and with the self-check.

    Args:
        op: its name, and that of its folder, which has ``kernels.py`` and ``checks.py``.
        schemas: name -> arguments and returns of its forward and of each backward.
        formulas: maps a family's registered ops, by their names, to their formulas.
    """
    folder = f"{__package__}.{op}"
    if has_triton:
        define_triton(schemas, lambda: importlib.import_module(f"{folder}.kernels"))
    for namespace in families():
        ops = SimpleNamespace(**{name: getattr(getattr(torch.ops, namespace), name) for name in schemas})
        register_formulas(op, namespace, formulas(ops))
    for impl in dispatch.IMPLEMENTATIONS:
        dispatch.register(op, impl)
    selfcheck.register(op, lambda: importlib.import_module(f"{folder}.checks").checks())


def register_formulas(op: str, namespace: str, formulas: Formulas) -> None:
    """Give the ops of a namespace, which are defined there, their fakes and autograd formulas."""

    def refuse(ctx: Any, *_: Any) -> None:
        raise RuntimeError(f"{op}: third-order gradients are not implemented; pass impl='reference' for them")

    for name, (fake, setup_context, vjp) in formulas.items():
        torch.library.register_fake(f"{namespace}::{name}", fake)
        torch.library.register_autograd(f"{namespace}::{name}", vjp or refuse, setup_context=setup_context)


def define_triton(schemas: Mapping[str, str], kernels: Callable[[], Any]) -> None:
    """Define each of ``schemas`` (op name -> arguments and returns) in ``gankernels_triton``.

    ``kernels`` returns the module whose functions, named like the ops, run them; it is called at the first run, so that
    ``import gankernels`` does not import triton.
    """
    for name, signature in schemas.items():
        _triton_library.define(name + signature)

        def run(*args: Any, _name: str = name) -> Any:
            return getattr(kernels(), _name)(*args)

        _triton_library.impl(name, run, "CompositeExplicitAutograd")


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
