"""What a penalty may not cost: convolutions, waits for the device, memory that stays."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from critics import critic, pictures
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import gankernels
from gankernels.penalties import d_step
from gankernels.penalties.recorder import record


class _Convolutions(TorchDispatchMode):
    """Counts forward convolutions, and gradients of convolutions by what they ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.forward = self.dgrad = self.wgrad = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op is torch.ops.aten.convolution.default:
            self.forward += 1
        if op is torch.ops.aten.convolution_backward.default:
            self.dgrad += args[-1][0]
            self.wgrad += args[-1][1]
        # the engine takes them by an op of ours, for layers of stock PyTorch too
        self.wgrad += op is torch.ops.gankernels_library.convolution_weight_gradient.default
        return op(*args, **(kwargs or {}))


def test_four_convolutions_a_layer():
    """Forward, input gradient, tangent, weight gradient: of 3 layers, for loss and both penalties."""
    discriminator = critic()
    with _Convolutions() as count:
        d_step(discriminator, pictures(2, torch.float32), pictures(2, torch.float32, seed=1), penalty="r1+r2")
    assert (count.forward, count.dgrad, count.wgrad) == (6, 3, 3)


class _Looks(TorchDispatchMode):
    """Counts what would make the host wait for a device: numbers and shapes that depend on a tensor's."""

    WAITS = ("aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::masked_select")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.count += op._schema.name in self.WAITS
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("penalty", ["r1", "wgan-gp"])
def test_steps_do_not_wait_for_the_device(dtype, penalty):
    """A step reads no number of a tensor on the host, but for the overflow of fp16 without a scaler."""
    discriminator, scaler = critic(), torch.amp.GradScaler("cpu", init_scale=2.0**8)
    real, fake = pictures(2, torch.float32), pictures(2, torch.float32, seed=1)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        with _Looks() as looks:
            d_step(discriminator, real, fake, penalty=penalty, scaler=scaler)
        assert looks.count == 0
        with _Looks() as looks:
            gankernels.gradient_penalty(discriminator, real, fake, kind=penalty)
        assert (looks.count > 0) == (dtype == torch.float16)


def test_nothing_of_the_forward_outlives_the_call():
    """No cycles: what is saved goes with the last reference, without the garbage collector."""
    seen = []

    class Watch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(weakref.ref(x.untyped_storage()))
            return x

    discriminator = critic(Watch(), nn.Tanh())
    gc.collect()
    gc.disable()
    try:
        value = gankernels.gradient_penalty(discriminator, pictures(2, torch.float32))
        d_step(discriminator, pictures(2, torch.float32), pictures(2, torch.float32, seed=1))
        tape = weakref.ref(record(discriminator, pictures(2, torch.float32).requires_grad_(), keep_mixed=True))
        assert tape() is None
    finally:
        gc.enable()
    value.backward()
