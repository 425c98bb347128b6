"""Which kernels a test can run here. Imported after conftest.py has switched Triton's interpreter on."""

from __future__ import annotations

import pytest
import torch

from gankernels import dispatch


def kernels_of(op: str) -> list:
    """Every (device, implementation) of ``op`` but the reference that can run here, as pytest parameters."""
    devices = ["cuda"] if torch.cuda.is_available() else []
    return [
        pytest.param(device, impl, id=f"{impl}-{device}", marks=[pytest.mark.gpu] if device == "cuda" else [])
        for device in ["cpu", *devices]
        for impl in dispatch.IMPLEMENTATIONS
        if impl != "reference" and dispatch.unavailable(op, impl, device) is None
    ]
