"""The Triton launchers against the reference, in Triton's interpreter or on a GPU.

Triton decides when it is imported whether it interprets, so TRITON_INTERPRET=1 has to be set outside of pytest.
A program costs the interpreter about a millisecond: the shapes are tiny, and where a test needs several tiles and
chunks it makes the tiles small.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gankernels.ops import _layout
from gankernels.ops.conditional_batch_norm import reference
from implementations import triton_interprets

INTERPRETS = triton_interprets()

from gankernels.ops.conditional_batch_norm import kernels, tiles  # noqa: E402  (they import triton)

DEVICES = [
    pytest.param("cpu", marks=pytest.mark.skipif(not INTERPRETS, reason="needs TRITON_INTERPRET=1")),
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(INTERPRETS or not torch.cuda.is_available(), reason="needs a CUDA device, compiled"),
        ],
    ),
]
EPS, SLOPE = 1e-5, 0.2
NAMES = ("y", "mean", "var", "dx", "dgain", "dbias", "second ddy", "second dx", "second dgain")


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Fresh memory holds NaN, so that an element that no kernel wrote is seen."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several channel blocks, chunks and tiles a chunk at sizes that the interpreter can bear."""
    monkeypatch.setattr(tiles, "TILE_BYTES", (256, 128, 128))
    monkeypatch.setattr(tiles, "CHANNELS", (4, 2))
    monkeypatch.setattr(tiles, "PROGRAMS", 12)
    monkeypatch.setattr(tiles, "SMALL", {"BLOCK_C": 2, "BLOCK_ROWS": 2})


class Problem:
    """Random inputs and cotangents in ``dtype``, and what each implementation makes of them."""

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        dtype: torch.dtype,
        device: str,
        *,
        channels_last: bool = False,
        batch: bool = True,
        activation: str = "lrelu",
        classes: int | None = None,
        per_sample: bool = False,
    ) -> None:
        n, c, _, _ = shape

        def random(*size: int) -> Tensor:
            return torch.randn(size, dtype=torch.float64).to(device, dtype)

        def layout(t: Tensor) -> Tensor:
            return t.to(memory_format=torch.channels_last) if channels_last else t

        self.batch, self.activation, self.per_sample = batch, activation, per_sample
        self.x = layout(random(*shape) * 2 + 3)
        self.labels = None if classes is None else torch.randint(classes, (n,), device=device)
        rows = n if classes is None else classes
        self.gain, self.bias, self.dy = random(rows, c) + 1, random(rows, c), layout(random(*shape))
        self.cotangents = (layout(random(*shape)), random(rows, c), random(rows, c))
        statistics = torch.float64 if dtype == torch.float64 else torch.float32
        self.statistics: tuple[Tensor | None, Tensor | None] = (None, None)
        if not batch:
            self.statistics = (random(c).to(statistics) + 3, random(c).to(statistics).abs() + 1)

    def triton(self, orders: int = 2) -> list[Tensor]:
        """All orders from the launchers, named by NAMES."""
        formula = (EPS, self.activation, SLOPE)
        inputs = (self.x, self.gain, self.bias, self.labels)
        y, mean, var = kernels.conditional_batch_norm_forward(*inputs, *self.statistics, *formula, self.per_sample)
        saved = (self.dy, *inputs, mean, var, self.batch, *formula)
        first = kernels.conditional_batch_norm_backward(*saved)
        if orders == 1:
            return [y, mean, var, *first]
        second = kernels.conditional_batch_norm_backward_backward(*self.cotangents, *saved)
        return [y, mean, var, *first, *second]

    def reference(self, dtype: torch.dtype | None = torch.float64) -> list[Tensor]:
        """All orders by autograd through the reference, in ``dtype``."""
        return self._autograd(dtype, reference.conditional_batch_norm)

    def eager(self) -> list[Tensor]:
        """All orders by autograd through what a user of PyTorch would write, in the inputs' own dtype."""

        def forward(
            x: Tensor, gain: Tensor, bias: Tensor, mean: Tensor | None, var: Tensor | None, labels: None, **_: Any
        ) -> tuple[Tensor, Tensor, Tensor]:
            x_hat = F.batch_norm(x, mean, var, training=self.batch, eps=EPS)
            z = x_hat * gain[:, :, None, None] + bias[:, :, None, None]
            nothing = x.new_empty(0)
            return reference.activate(z, self.activation, SLOPE), nothing, nothing

        return self._autograd(None, forward)

    def _autograd(self, dtype: torch.dtype | None, forward: Any) -> list[Tensor]:
        def leaf(t: Tensor) -> Tensor:
            return (t.detach().clone() if dtype is None else t.detach().to(dtype, copy=True)).requires_grad_()

        x, gain, bias, dy = map(leaf, (self.x, self.gain, self.bias, self.dy))
        statistics = [None if s is None else s if dtype is None else s.to(dtype) for s in self.statistics]
        formula = {"labels": self.labels, "eps": EPS, "activation": self.activation, "slope": SLOPE}
        formula["per_sample"] = self.per_sample
        y, mean, var = forward(x, gain, bias, *statistics, **formula)
        first = torch.autograd.grad(y, (x, gain, bias), dy, create_graph=True)
        cotangents = [t.to(t.dtype if dtype is None else dtype) for t in self.cotangents]
        second = torch.autograd.grad(first, (dy, x, gain), cotangents)
        return [t.detach() for t in (y, mean, var, *first, *second)]


def assert_equal_to_reference(problem: Problem) -> None:
    layout = _layout.memory_format(problem.x)
    for name, got, want in zip(NAMES, problem.triton(), problem.reference(), strict=True):
        assert got.is_contiguous(memory_format=layout if got.ndim == 4 else torch.contiguous_format), name
        torch.testing.assert_close(
            got, want, rtol=1e-10, atol=1e-10, equal_nan=True, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
@pytest.mark.parametrize("batch", [True, False], ids=["batch", "frozen"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_every_order_in_fp64(channels_last: bool, batch: bool, activation: str, device: str) -> None:
    problem = Problem(
        (2, 5, 3, 5), torch.float64, device, channels_last=channels_last, batch=batch, activation=activation
    )
    assert_equal_to_reference(problem)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.usefixtures("small_tiles")
def test_past_a_block(channels_last: bool, device: str) -> None:
    shape = (2, 3, 7, 11) if channels_last else (2, 2, 13, 11)
    plan = tiles.plan_for(*shape[:2], shape[2] * shape[3], torch.float64, channels_last, 2)
    assert plan.chunks > plan.small_tile["BLOCK_K"] > 1
    assert plan.tiles > 1
    assert_equal_to_reference(Problem(shape, torch.float64, device, channels_last=channels_last))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.usefixtures("small_tiles")
def test_statistics_of_each_sample(channels_last: bool, device: str) -> None:
    shape = (2, 5, 3, 7) if channels_last else (3, 5, 2, 3)
    plan = tiles.plan_for(*shape[:2], shape[2] * shape[3], torch.float64, channels_last, 2, per_sample=True)
    assert not channels_last or plan.chunks > 1
    problem = Problem(shape, torch.float64, device, channels_last=channels_last, per_sample=True)
    problem.x[1] -= 1e4  # far from the first value of the batch
    assert_equal_to_reference(problem)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.usefixtures("small_tiles")
def test_class_tables_past_a_block(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "CLASSES", 2)
    problem = Problem((3, 3, 3, 7), torch.float64, device, classes=3)
    plan = tiles.plan_for(3, 3, 21, torch.float64, False, 2)
    assert plan.chunks > 1
    assert_equal_to_reference(problem)


@pytest.mark.parametrize("device", DEVICES)
def test_a_label_out_of_range_spoils_its_sample_alone(device: str) -> None:
    problem = Problem((4, 2, 2, 2), torch.float64, device, classes=3)
    problem.labels = torch.tensor([2, 3, 0, -1], device=device)
    y, _, _, dx, dgain, dbias, ddy, second_dx, second_dgain = problem.triton()
    for pixels in (y, dx, ddy, second_dx):
        assert pixels[1::2].isnan().all()
        assert pixels[::2].isfinite().all()
    for table in (dgain, dbias, second_dgain):
        assert table.isfinite().all()
        assert not table[1].any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.usefixtures("small_tiles")
def test_more_samples_than_a_block(device: str) -> None:
    assert_equal_to_reference(Problem((5, 3, 2, 2), torch.float64, device, activation="relu"))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "shape",
    [(0, 3, 2, 2), (2, 0, 2, 2), (2, 3, 0, 4), (1, 1, 2, 1), (3, 1, 1, 1), (2, 3, 1, 1), (1, 2, 1, 17)],
    ids=str,
)
@pytest.mark.parametrize("batch", [True, False], ids=["batch", "frozen"])
def test_sizes_zero_one_and_odd(batch: bool, shape: tuple[int, int, int, int], device: str) -> None:
    assert_equal_to_reference(Problem(shape, torch.float64, device, batch=batch))


@pytest.mark.parametrize("device", DEVICES)
def test_strided_and_expanded_arguments(device: str) -> None:
    problem = Problem((3, 4, 5, 3), torch.float64, device)
    problem.x = problem.x[:, ::2, :, 1:]
    problem.gain, problem.bias = problem.gain[:1, :2].expand(3, 2), problem.bias[:, 1:3]
    problem.dy = problem.dy[:, :1, :1, :1].expand(3, 2, 5, 2)
    ddx, ddgain, ddbias = problem.cotangents
    problem.cotangents = (ddx.transpose(2, 3)[:, :2, :2].transpose(2, 3), ddgain[:, ::2], ddbias[:, 2:])
    assert_equal_to_reference(problem)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_error_at_most_twice_that_of_eager(dtype: torch.dtype, channels_last: bool, device: str) -> None:
    problem = Problem((4, 6, 9, 7), dtype, device, channels_last=channels_last)
    for name, got, eager, want in zip(NAMES, problem.triton(), problem.eager(), problem.reference(), strict=True):
        if name in ("mean", "var"):
            torch.testing.assert_close(got, want.float(), msg=lambda text, name=name: f"{name}: {text}")
            continue
        assert got.dtype == eager.dtype
        error, eager_error = (got - want).abs(), (eager - want).abs()
        assert error.max() <= 2 * eager_error.max(), name
        assert error.square().mean().sqrt() <= 2 * eager_error.square().mean().sqrt(), name


@pytest.mark.parametrize("device", DEVICES)
def test_gain_and_bias_in_another_dtype(device: str) -> None:
    problem = Problem((2, 3, 3, 3), torch.float64, device)
    problem.gain, problem.bias = problem.gain.float(), problem.bias.float()
    want = problem.reference()
    for name, got, expected in zip(NAMES, problem.triton(), want, strict=True):
        assert got.dtype == (torch.float32 if "gain" in name or "bias" in name else torch.float64), name
        torch.testing.assert_close(got, expected.to(got.dtype))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.usefixtures("small_tiles")
def test_mean_far_from_zero(channels_last: bool, device: str) -> None:
    problem = Problem((3, 4, 8, 9), torch.float32, device, channels_last=channels_last)
    problem.x = (problem.x - 3) / 2 + 1e4
    _, mean, var = kernels.conditional_batch_norm_forward(
        problem.x, problem.gain, problem.bias, None, None, None, EPS, "none", SLOPE
    )
    exact = torch.var_mean(problem.x.double(), (0, 2, 3), correction=0)
    # Half a step of fp32 at 1e4 is 4.9e-4.
    torch.testing.assert_close(mean.double(), exact[1], rtol=0, atol=5e-4)
    torch.testing.assert_close(var.double(), exact[0], rtol=2e-6, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
@pytest.mark.parametrize("batch", [True, False], ids=["batch", "frozen"])
def test_nan_and_inf_go_where_the_reference_sends_them(batch: bool, activation: str, device: str) -> None:
    problem = Problem((2, 3, 2, 3), torch.float32, device, batch=batch, activation=activation)
    problem.x[0, 0, 0, 1] = torch.nan
    problem.x[1, 1, 1, 2] = torch.inf
    if not batch:
        problem.x[0, 1, 1, 0] = -torch.inf
        problem.dy[1, 2, 0, 0] = torch.inf
    for name, got, want in zip(NAMES, problem.triton(orders=1), problem.reference(torch.float32), strict=False):
        assert torch.equal(got.isfinite(), want.isfinite()), name
        if name not in ("mean", "var"):
            assert torch.equal(got.isnan(), want.isnan()), name


@pytest.mark.parametrize("device", DEVICES)
def test_same_bits_every_time(device: str) -> None:
    problem = Problem((3, 5, 7, 5), torch.float32, device)
    for first, again in zip(problem.triton(), problem.triton(), strict=True):
        assert torch.equal(first, again)


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETS or not torch.cuda.is_available(), reason="needs a CUDA device, compiled")
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_offsets_past_31_bits(channels_last: bool) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.zeros(3, 48, 4096, 4096, dtype=torch.bfloat16, device="cuda").contiguous(memory_format=layout)
    x[-1, -1, -1] = 2
    ones, zeros = x.new_ones(3, 48), x.new_zeros(3, 48)
    mean, var = x.new_zeros(48, dtype=torch.float32), x.new_ones(48, dtype=torch.float32)
    y, *_ = kernels.conditional_batch_norm_forward(x, ones, zeros, None, mean, var, 0.0, "none", SLOPE)
    assert torch.equal(y, x)


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETS or not torch.cuda.is_available(), reason="needs a CUDA device, compiled")
def test_cuda_graph() -> None:
    problem = Problem((4, 32, 16, 16), torch.float32, "cuda", channels_last=True)
    want = problem.triton()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = problem.triton()
    graph.replay()
    for captured, plain in zip(got, want, strict=True):
        assert torch.equal(captured, plain)
