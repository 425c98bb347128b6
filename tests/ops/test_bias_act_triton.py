"""The Triton launchers of bias_act where a problem has several tiles, chunks and blocks of channels.

Triton decides when it is imported whether it interprets, so TRITON_INTERPRET=1 has to be set outside of pytest.
A program costs the interpreter about a millisecond: the tiles are made small instead of the shapes large.
"""

from __future__ import annotations

import pytest
import torch

from gankernels.ops import bias_act
from implementations import triton_interprets

INTERPRETS = triton_interprets()

from gankernels.ops.bias_act import kernels  # noqa: E402  (imports triton)

DEVICE = "cpu" if INTERPRETS else "cuda"
COMPILED = pytest.mark.skipif(INTERPRETS or not torch.cuda.is_available(), reason="needs a CUDA device, compiled")


@pytest.mark.parametrize("activation", ["lrelu", "gelu"])
@pytest.mark.parametrize("shape", [(5, 7, 1), (3, 5, 21), (40, 3, 1), (1, 1, 50)], ids=str)
def test_several_tiles_chunks_and_blocks(shape, activation, monkeypatch, poisoned):
    monkeypatch.setattr(kernels, "_TILE_BYTES", (256, 128, 128))
    monkeypatch.setattr(kernels, "_CHANNELS", (4, 2))
    monkeypatch.setattr(kernels, "_PROGRAMS", 12)
    monkeypatch.setattr(kernels, "_SMALL", {"BLOCK_C": 2, "BLOCK_ROWS": 2})
    x = torch.randn(shape, dtype=torch.float64, device=DEVICE, requires_grad=True)
    bias = torch.randn(shape[1], dtype=torch.float64, device=DEVICE, requires_grad=True)
    dy = torch.randn(shape, dtype=torch.float64, device=DEVICE, requires_grad=True)
    results = []
    for impl in ("triton", "reference"):
        y = bias_act(x, bias, activation=activation, gain=1.5, clamp=2.0, impl=impl)
        first = torch.autograd.grad(y, (x, bias), dy, create_graph=True)
        objective = sum(t.square().sum() for t in first)
        results.append([y, *first, *torch.autograd.grad(objective, (dy, x, bias), materialize_grads=True)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.gpu
@COMPILED
@pytest.mark.parametrize("shape", [(3, 48, 4096, 4096), (1, 1, 2**31 + 64)], ids=str)
def test_offsets_past_31_bits(shape):
    x = torch.zeros(shape, dtype=torch.bfloat16, device="cuda")
    x.view(-1)[-1] = 2
    assert torch.equal(bias_act(x, x.new_zeros(shape[1]), activation="relu", impl="triton"), x)


@pytest.mark.gpu
@COMPILED
def test_cuda_graph():
    x, bias = torch.randn(4, 32, 16, 16, device="cuda"), torch.randn(32, device="cuda")
    arguments = ("gelu", 0.2, 1.5, 2.0, 1)

    def both():
        y = kernels.bias_act_forward(x, bias, *arguments)
        return [y, *kernels.bias_act_backward(y, x, bias, *arguments, True)]

    want = both()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = both()
    graph.replay()
    for captured, plain in zip(got, want, strict=True):
        assert torch.equal(captured, plain)
