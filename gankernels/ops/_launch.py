"""What the launchers of all Triton kernels share. Imports no triton."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

#: Without enable_fp_fusion Triton 3.9 warns that 3.10 will change its default. Nothing here needs it but speed.
FUSION = {"enable_fp_fusion": True}


def on_device_of(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be x's."""
    return torch.cuda.device_of(x) if x.is_cuda else nullcontext()


class Specialisation(NamedTuple):
    """One compilation of a kernel, for the ahead-of-time check: what a launcher would ask for.

    Each op's ``kernels.specialisations()`` yields those of its kernels.
    """

    kernel: Any
    signature: dict[str, str]  # argument -> Triton type, "constexpr" included
    constexprs: dict[str, Any]
    options: dict[str, Any]  # of the compiler
    capabilities: tuple[int, ...] = (80, 90, 100)

    @classmethod
    def of(
        cls, kernel: Any, given: Mapping[str, Any], options: dict[str, Any], types: Mapping[str, str], other: str
    ) -> Specialisation:
        """Constexprs are those of ``given`` that the kernel has; pointers are to ``types[name]`` or ``other``."""
        signature = {
            name: "constexpr" if name in given else f"*{types.get(name, other)}" if name.endswith("_ptr") else "i32"
            for name in kernel.arg_names
        }
        return cls(kernel, signature, {name: given[name] for name in signature if name in given}, options)
