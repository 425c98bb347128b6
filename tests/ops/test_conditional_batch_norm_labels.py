"""Class tables: gain and bias looked up by label inside the kernels, against tables indexed by PyTorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import gankernels
from gankernels.errors import InputError
from gankernels.ops import conditional_batch_norm
from gankernels.verification import beyond_twice_eager
from implementations import kernels_of

KERNELS = kernels_of("conditional_batch_norm")
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
#: shape, labels, classes: several samples of one and none of others; one class; far more classes than samples.
CASES = [
    ((5, 6, 4, 3), (3, 0, 3, 6, 0), 7),
    ((3, 17, 3, 3), (0, 0, 0), 1),
    ((2, 3, 1, 5), (40, 2), 41),
]

kernels = pytest.mark.parametrize(("device", "impl"), KERNELS)
layouts = pytest.mark.parametrize("layout", LAYOUTS)
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} of {case[2]}")


def inputs(case, *, dtype=torch.float64, device="cpu", layout="contiguous") -> tuple[tuple[Tensor, ...], Tensor]:
    """x and the tables, which require grad, and the labels."""
    shape, labels, classes = case
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=LAYOUTS[layout])
    tables = (torch.randn(classes, shape[1], dtype=torch.float64) for _ in range(2))
    tensors = tuple(t.to(device, dtype).requires_grad_() for t in (x, *tables))
    return tensors, torch.tensor(labels, dtype=torch.int64, device=device)


def by_indexing(x: Tensor, gain: Tensor, bias: Tensor, labels: Tensor, **keywords) -> Tensor:
    return conditional_batch_norm(x, gain[labels], bias[labels], impl="reference", **keywords)


def two_orders(function, tensors: tuple[Tensor, ...], labels: Tensor) -> list[Tensor]:
    """y, dx, dgain, dbias, and the cotangents of dy, x and gain, all from fixed random cotangents."""
    generator = torch.Generator().manual_seed(1)

    def like(t: Tensor) -> Tensor:
        return torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t)

    y = function(*tensors, labels)
    dy = like(y).requires_grad_()
    first = torch.autograd.grad(y, tensors, dy, create_graph=True)
    return [y, *first, *torch.autograd.grad(first, (dy, *tensors[:2]), [like(t) for t in first])]


@kernels
@layouts
@cases
@pytest.mark.parametrize("training", [True, False], ids=["batch", "frozen"])
def test_as_tables_that_are_indexed(device, impl, layout, case, training, poisoned):
    tensors, labels = inputs(case, device=device, layout=layout)
    c = case[0][1]
    mean, var = torch.rand(2, c, dtype=torch.float64, device=device) + 0.5
    keywords = {"running_mean": mean, "running_var": var, "momentum": 0.0}
    keywords |= {"training": training, "activation": "lrelu"}
    got = two_orders(lambda *t: conditional_batch_norm(*t[:3], labels=t[3], impl=impl, **keywords), tensors, labels)
    want = two_orders(lambda *t: by_indexing(*t, **keywords), tensors, labels)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert got[0].stride() == want[0].stride()
    absent = [k for k in range(case[2]) if k not in case[1]]
    assert not any(table[absent].any() for table in (got[2], got[3], got[6]))


@kernels
def test_gradcheck_and_gradgradcheck(device, impl):
    if impl == "triton" and device == "cpu":
        pytest.skip("a millisecond a program in the interpreter; every order is held against the reference above")
    tensors, labels = inputs(((3, 2, 2, 2), (2, 0, 2), 3), device=device, layout="channels_last")

    def function(*tensors: Tensor) -> Tensor:
        return conditional_batch_norm(*tensors, labels=labels, activation="lrelu", impl=impl)

    assert gradcheck(function, tensors)
    assert gradgradcheck(function, tensors)


@kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_error_at_most_twice_eager(device, impl, dtype):
    # Enough sums that the largest error of either side is no accident.
    case = ((12, 24, 6, 6), tuple(n * n % 5 for n in range(12)), 7)
    tensors, labels = inputs(case, dtype=dtype, device=device)

    def eager(x: Tensor, gain: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
        gain, bias = (F.embedding(labels, table)[:, :, None, None] for table in (gain, bias))
        return F.relu(F.batch_norm(x, None, None, training=True) * gain + bias)

    exact = tuple(t.detach().double().requires_grad_() for t in tensors)
    want = two_orders(lambda *t: by_indexing(*t, activation="relu"), exact, labels)
    got = two_orders(
        lambda *t: conditional_batch_norm(*t[:3], labels=t[3], activation="relu", impl=impl), tensors, labels
    )
    assert [t.dtype for t in got] == [dtype] * 7
    assert beyond_twice_eager(got, want, [two_orders(eager, tensors, labels)]) is None


@kernels
def test_same_bits_every_time(device, impl):
    case = ((7, 12, 3, 5), (1, 1, 0, 3, 1, 0, 1), 4)
    tensors, labels = inputs(case, dtype=torch.float32, device=device, layout="channels_last")
    runs = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        runs.append(two_orders(lambda *t: conditional_batch_norm(*t[:3], labels=t[3], impl=impl), tensors, labels))
    for first, again in zip(*runs, strict=True):
        assert torch.equal(first, again)


@kernels
def test_a_class_that_the_batch_has_not_spreads_nothing(device, impl):
    (x, gain, bias), labels = inputs(CASES[0], dtype=torch.float32, device=device)
    with torch.no_grad():
        gain[1], bias[2], gain[5] = torch.nan, torch.inf, -torch.inf
    results = two_orders(
        lambda *t: conditional_batch_norm(*t[:3], labels=t[3], activation="relu", impl=impl), (x, gain, bias), labels
    )
    assert all(t.isfinite().all() for t in results)


@kernels
def test_empty(device, impl):
    (x, gain, bias), labels = inputs(((0, 3, 2, 2), (), 4), device=device)
    y = conditional_batch_norm(x, gain, bias, labels=labels, impl=impl)
    for got, like in zip(torch.autograd.grad(y.sum(), (x, gain, bias)), (x, gain, bias), strict=True):
        assert got.shape == like.shape
        assert not got.any()


@kernels
def test_a_compiled_penalty_is_right(device, impl):
    tensors, labels = inputs(((3, 3, 2, 2), (4, 1, 4), 5), device=device)

    def penalty(x: Tensor, gain: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
        y = conditional_batch_norm(x, gain, bias, labels=labels, activation="lrelu", impl=impl)
        (dx,) = torch.autograd.grad(y.pow(4).sum(), x, create_graph=True)
        return dx.square().sum()

    want = torch.autograd.grad(penalty(*tensors, labels), tensors)
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        compiled = torch.compile(penalty, fullgraph=True, backend="aot_eager")
        got = torch.autograd.grad(compiled(*tensors, labels), tensors)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs)


@kernels
def test_saves_the_tables_and_no_rows_of_them(device, impl):
    tensors, labels = inputs(CASES[0], device=device)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        conditional_batch_norm(*tensors, labels=labels, impl=impl)
    given = {t.data_ptr() for t in (*tensors, labels)}
    assert sum(t.numel() for t in saved if t.data_ptr() not in given) == 2 * 6  # mean and var


@pytest.mark.skipif("cpu" not in [p.values[1] for p in KERNELS], reason="the extension is not built")
def test_a_compiled_call_on_the_cpu_checks_labels_too():
    (x, gain, bias), _ = inputs(CASES[0])
    with pytest.raises(IndexError, match="labels: got 7, expected 0 to 6"):
        torch.ops.gankernels.conditional_batch_norm_forward(
            x, gain, bias, torch.tensor([0, 1, 7, -1, 2]), None, None, 1e-5, "none", 0.2
        )


@pytest.mark.parametrize("impl", ["reference", *[p.values[1] for p in KERNELS if p.values[0] == "cpu"]])
def test_module_as_embeddings(impl):
    norm = gankernels.nn.ConditionalBatchNorm2d(6, num_classes=7, activation="relu").double()
    assert dict(norm.named_parameters()).keys() == {"gain.weight", "bias.weight"}
    (x, gain, bias), labels = inputs(CASES[0])
    norm.load_state_dict({"gain.weight": gain.detach(), "bias.weight": bias.detach()}, strict=False)
    with gankernels.use(impl):
        y = norm(x, labels)
    want = by_indexing(x, gain, bias, labels, activation="relu")
    torch.testing.assert_close(y, want)
    got = torch.autograd.grad(y.square().sum(), (x, norm.gain.weight, norm.bias.weight))
    for ours, theirs in zip(got, torch.autograd.grad(want.square().sum(), (x, gain, bias)), strict=True):
        torch.testing.assert_close(ours, theirs)
    with pytest.raises(InputError, match="labels: got 0 to 7, expected them from 0 to 6"):
        norm(x, torch.tensor([0, 1, 7, 1, 2]))
