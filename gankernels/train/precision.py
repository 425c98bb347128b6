"""The dtype that convolutions compute in."""

from __future__ import annotations

import torch

from gankernels.errors import InputError


def resolve(precision: str, device: torch.device) -> tuple[torch.dtype | None, str]:
    """The autocast dtype (None: stay in fp32) for ``--precision`` on a device, and the choice in a few words.

    Raises:
        InputError: fp16 on anything but CUDA: it would need gradient scaling and has no fast kernels there.
    """
    if precision == "fp16" and device.type != "cuda":
        raise InputError(f"--precision: got fp16 on {device.type}, expected fp32 or bf16 there")
    if precision == "auto":
        if computes_in_bf16(device):
            return torch.bfloat16, f"bf16 ({device.type} computes in it)"
        return None, f"fp32 (no bf16 hardware in this {device.type})"
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision], precision


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the device has bf16 matrix instructions: CUDA from capability 8.0, CPUs with AVX-512 BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities: dict[str, bool] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # not in every torch that is supported
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
