"""What only a GPU can get wrong: graphs, streams, devices, waiting for the host, and offsets past 31 bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import gankernels
from gankernels import dispatch
from gankernels.ops import conditional_batch_norm

pytestmark = pytest.mark.gpu
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
layouts = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.fixture(params=["cuda", "cuda without clusters", "triton"])
def impl(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    impl, _, without_clusters = request.param.partition(" ")
    if why_not := dispatch.unavailable("conditional_batch_norm", impl, "cuda"):
        pytest.skip(why_not)
    if without_clusters:
        monkeypatch.setenv("GANKERNELS_CUDA_CLUSTERS", "0")
    return impl


class Step:
    """Forward, backward and double backward, running statistics included, on tensors of its own."""

    def __init__(self, impl: str, layout: str, seed: int, device: str = "cuda") -> None:
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            drawn = torch.randn(shape, generator=generator)
            return (drawn.contiguous(memory_format=LAYOUTS[layout]) if len(shape) == 4 else drawn).to(device)

        # Split between blocks, so that every kernel runs and the workspace is in use; and for clusters of eight.
        n, c, h, w = 4, 24, 64, 64
        self.impl = impl
        self.x, self.dy, self.ddx = random(n, c, h, w), random(n, c, h, w), random(n, c, h, w)
        self.gain, self.bias, self.ddgain, self.ddbias = (random(n, c) for _ in range(4))
        self.running_mean, self.running_var = random(c), random(c).abs()
        for tensor in (self.x, self.dy, self.gain, self.bias):
            tensor.requires_grad_()

    def __call__(self) -> list[Tensor]:
        y = conditional_batch_norm(
            self.x, self.gain, self.bias, running_mean=self.running_mean, running_var=self.running_var,
            activation="lrelu", impl=self.impl,
        )  # fmt: skip
        first = torch.autograd.grad(y, (self.x, self.gain, self.bias), self.dy, create_graph=True)
        cotangents = (self.ddx, self.ddgain, self.ddbias)
        second = torch.autograd.grad(first, (self.dy, self.x, self.gain), cotangents)
        return [t.detach() for t in (y, *first, *second, self.running_mean.clone(), self.running_var.clone())]

    def take(self, other: Step) -> None:
        with torch.no_grad():
            for name, tensor in vars(other).items():
                if isinstance(tensor, Tensor):
                    getattr(self, name).copy_(tensor)


def assert_same_bits(got: list[Tensor], want: list[Tensor]) -> None:
    for index, (a, b) in enumerate(zip(got, want, strict=True)):
        assert torch.equal(a.cpu(), b.cpu()), index


@layouts
def test_a_graph_gives_the_same_bits(impl, layout):
    step = Step(impl, layout, seed=0)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in (1, 2):
        step.take(Step(impl, layout, seed))
        graph.replay()
        assert_same_bits(captured, Step(impl, layout, seed)())


@layouts
def test_two_streams_at_a_time(impl, layout):
    want = [Step(impl, layout, seed)() for seed in (0, 1)]
    steps = [Step(impl, layout, seed) for seed in (0, 1) for _ in range(4)]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    results = []
    for index, step in enumerate(steps):
        with torch.cuda.stream(streams[index % 2]):
            results.append(step())
    torch.cuda.synchronize()
    for index, got in enumerate(results):
        assert_same_bits(got, want[index // 4])


@layouts
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_device_that_is_not_the_current_one(impl, layout):
    assert torch.cuda.current_device() == 0
    assert_same_bits(Step(impl, layout, seed=0, device="cuda:1")(), Step(impl, layout, seed=0)())
    assert torch.cuda.current_device() == 0


@layouts
def test_never_waits_for_the_gpu(impl, layout):
    step = Step(impl, layout, seed=0)
    norm = gankernels.nn.ConditionalBatchNorm2d(24, num_classes=3, activation="relu").cuda()
    labels = torch.tensor([0, 2, 1, 1], device="cuda")
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
        with gankernels.use(impl):
            norm(step.x, labels).square().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@layouts
def test_offsets_past_31_bits(layout):
    """In CUDA C++; Triton's are held to it beside its other launchers."""
    n, c, size = 3, 48, 4096
    if torch.cuda.mem_get_info()[0] < 16 << 30:
        pytest.skip("needs 16 GiB of free GPU memory")
    if why_not := dispatch.unavailable("conditional_batch_norm", "cuda", "cuda"):
        pytest.skip(why_not)
    shape = (n, c, size, size) if layout == "contiguous" else (n, size, size, c)
    x = torch.zeros(shape, dtype=torch.bfloat16, device="cuda")
    x = x if layout == "contiguous" else x.permute(0, 3, 1, 2)
    ends = [(0, 0, 0, 0), (1, 20, 4095, 0), (-1, -1, 0, 0), (-1, -1, -1, -1)]
    for value, end in enumerate(ends):
        x[end] = value + 2
    ones, zeros = x.new_ones(n, c), x.new_zeros(n, c)
    mean, var = torch.zeros(c, device="cuda"), torch.ones(c, device="cuda")
    y = conditional_batch_norm(x, ones, zeros, running_mean=mean, running_var=var, training=False, eps=0.0, impl="cuda")
    assert [y[end].item() for end in ends] == [2, 3, 4, 5]
    assert y.sum(dtype=torch.float32).item() == 14
    del x, y
    torch.cuda.empty_cache()
