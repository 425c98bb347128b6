"""Which kernels a test can run here. Imported after conftest.py has switched Triton's interpreter on."""

from __future__ import annotations

import importlib.metadata
import itertools
import os
from collections.abc import Iterable

import numpy as np
import pytest
import torch

from gankernels import _native, dispatch

#: For tests of what the C++ kernels alone do; the references that run without them keep more, and copy more.
needs_extension = pytest.mark.skipif(_native.extension is None, reason=f"no native extension: {_native.why_no_cpu}")


def interpreter_lacks() -> str | None:
    """Why Triton's interpreter cannot run here; None if it can, or if Triton compiles for a GPU."""
    if os.environ.get("TRITON_INTERPRET") != "1" or not dispatch.has_triton:
        return None
    old_triton = importlib.metadata.version("triton").startswith("3.6.")
    new_numpy = np.lib.NumpyVersion(np.__version__) >= "2.4.0"
    return "the interpreter of triton 3.6 needs numpy < 2.4" if old_triton and new_numpy else None


def triton_interprets() -> bool:
    """Whether Triton interprets; for a module's first lines, which end it where Triton cannot run at all."""
    pytest.importorskip("triton", reason="triton is not installed")
    interprets = os.environ.get("TRITON_INTERPRET") == "1"
    if not interprets and not torch.cuda.is_available():
        pytest.skip("needs TRITON_INTERPRET=1 or a CUDA device", allow_module_level=True)
    if reason := interpreter_lacks():
        pytest.skip(reason, allow_module_level=True)
    return interprets


def kernels_of(op: str) -> list:
    """Every (device, implementation) of ``op`` but the reference that can run here, as pytest parameters."""
    devices = ["cuda"] if torch.cuda.is_available() else []
    return [
        pytest.param(device, impl, id=f"{impl}-{device}", marks=[pytest.mark.gpu] if device == "cuda" else [])
        for device in ["cpu", *devices]
        for impl in dispatch.IMPLEMENTATIONS
        if impl != "reference"
        and dispatch.unavailable(op, impl, device) is None
        and not (impl == "triton" and interpreter_lacks())
    ]


def crossed(kernels: list, **factors: Iterable) -> pytest.MarkDecorator:
    """Parametrisation by kernel and every combination of three or more factors.

    Triton's interpreter takes a millisecond a program, so there it is every second combination: those whose places add
    up to an even number, in which each pair of values of two factors still meets.
    """
    lists = [list(values) for values in factors.values()]
    cases = []
    for kernel, places in itertools.product(kernels, itertools.product(*(range(len(values)) for values in lists))):
        if kernel.values == ("cpu", "triton") and sum(places) % 2:
            continue
        chosen = [values[place] for values, place in zip(lists, places, strict=True)]
        name = "-".join([kernel.id, *map(str, chosen)])
        cases.append(pytest.param(*kernel.values, *chosen, id=name, marks=kernel.marks))
    return pytest.mark.parametrize(("device", "impl", *factors), cases)
