"""Which kernels a test can run here. Imported after conftest.py has switched Triton's interpreter on."""

from __future__ import annotations

import importlib.metadata

import numpy as np
import pytest
import torch

from gankernels import dispatch


def interpreter_lacks() -> str | None:
    """Why Triton's interpreter cannot run here; None if it can, or if Triton compiles for a GPU."""
    if torch.cuda.is_available() or not dispatch.has_triton:
        return None
    old_triton = importlib.metadata.version("triton").startswith("3.6.")
    new_numpy = np.lib.NumpyVersion(np.__version__) >= "2.4.0"
    return "the interpreter of triton 3.6 needs numpy < 2.4" if old_triton and new_numpy else None


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
