"""Every kernel of conditional_batch_norm, through the public function, against the reference."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from batch_norms import (
    ACTIVATIONS,
    KERNELS,
    LAYOUTS,
    assert_as_reference,
    inputs,
    kernels,
    layouts,
    needs_cpu,
    running,
    two_orders,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

import gankernels
from gankernels.errors import ImplementationUnavailable, InputError
from gankernels.ops import conditional_batch_norm
from implementations import crossed

# ---- Exactness ----


@crossed(KERNELS, layout=LAYOUTS, activation=ACTIVATIONS, training=(True, False))
def test_gradcheck_and_gradgradcheck(device, impl, layout, activation, training):
    x, gain, bias = inputs((3, 2, 2, 3), device=device, layout=layout)
    keywords = running(2, device=device) | {"training": training, "momentum": 0.0}

    def function(x, gain, bias):
        return conditional_batch_norm(x, gain, bias, activation=activation, impl=impl, **keywords)

    # The interpreter takes a millisecond a program: random directions instead of every element. That every element is
    # right, test_odd_shapes_write_every_element holds against the reference.
    fast = impl == "triton"
    assert gradcheck(function, (x, gain, bias), fast_mode=fast)
    assert gradgradcheck(function, (x, gain, bias), fast_mode=fast)


SHAPES = [(2, 3, 4, 4), (1, 1, 1, 2), (2, 1, 3, 5), (3, 8, 1, 1)]
SHAPES += [(2, 33, 3, 3), (1, 5, 7, 1), (2, 64, 2, 2), (5, 17, 1, 3)]


@crossed(KERNELS, layout=LAYOUTS, training=(True, False), shape=SHAPES)
def test_odd_shapes_write_every_element(device, impl, layout, training, shape, poisoned):
    tensors = inputs(shape, device=device, layout=layout)
    keywords = running(shape[1], device=device) | {"training": training, "momentum": 0.0, "activation": "lrelu"}
    results = [
        two_orders(lambda *t, impl=impl: conditional_batch_norm(*t, impl=impl, **keywords), *tensors)
        for impl in (impl, "reference")
    ]
    assert_as_reference(*results, rtol=1e-9)
    assert results[0]["y"].stride() == results[1]["y"].stride()


# Past a tile of the CPU kernel (128 KiB), and with a last tile, vector and row that are not full.
LARGE = [(2, 192, 33, 31), (3, 7, 150, 61), (2, 3, 256, 130), (1, 1, 400, 301), (2, 1001, 5, 5), (70, 12, 4, 4)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", LARGE, ids=str)
@pytest.mark.parametrize("threads", [1, 3])
@needs_cpu
def test_cpu_past_a_tile(layout, shape, threads, poisoned):
    torch.set_num_threads(threads)
    tensors = inputs(shape, layout=layout)
    results = [
        two_orders(lambda *t, impl=impl: conditional_batch_norm(*t, activation="relu", impl=impl), *tensors)
        for impl in ("cpu", "reference")
    ]
    assert_as_reference(*results, rtol=1e-9)


@kernels
@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 0, 3, 3), (2, 4, 0, 3)], ids=str)
@layouts
def test_empty(device, impl, shape, layout):
    x, gain, bias = inputs(shape, device=device, layout=layout)
    state = running(shape[1], device=device)
    before = state["running_mean"].clone()
    y = conditional_batch_norm(x, gain, bias, impl=impl, **state)
    assert y.shape == shape
    torch.testing.assert_close(state["running_mean"], before)
    for got in torch.autograd.grad(y.sum(), (x, gain, bias)):
        assert not got.any()


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9)),
    layout=st.sampled_from(sorted(LAYOUTS)),
    activation=st.sampled_from(ACTIVATIONS),
    training=st.booleans(),
)
@needs_cpu
def test_cpu_any_shape(shape, layout, activation, training):
    if training and shape[0] * shape[2] * shape[3] == 1:
        return
    tensors = inputs(shape, layout=layout)
    keywords = running(shape[1]) | {"training": training, "momentum": 0.0, "activation": activation}
    results = [
        two_orders(lambda *t, impl=impl: conditional_batch_norm(*t, impl=impl, **keywords), *tensors)
        for impl in ("cpu", "reference")
    ]
    assert_as_reference(*results, rtol=1e-8)


@kernels
def test_strided_input_and_gradient(device, impl):
    x, gain, bias = inputs((4, 6, 8, 10), device=device)
    x = x.detach()[:, ::2, :, 1::2].requires_grad_()
    gain, bias = gain.detach()[:, ::2].requires_grad_(), bias.detach()[:, ::2].requires_grad_()
    results = []
    for name in (impl, "reference"):
        y = conditional_batch_norm(x, gain, bias, activation="relu", impl=name)
        # sum() gives an expanded gradient with zero strides
        gradients = torch.autograd.grad(y.sum() + y.square().sum(), (x, gain, bias))
        results.append(dict(zip(("y", "dx", "dgain", "dbias"), (y, *gradients), strict=True)))
    assert_as_reference(*results, rtol=1e-9)


# ---- Statistics ----


@pytest.mark.parametrize("impl", ["reference", *[p.values[1] for p in KERNELS if p.values[0] == "cpu"]])
def test_running_statistics_as_torch(impl):
    ours, theirs = gankernels.nn.ConditionalBatchNorm2d(5, num_classes=3), torch.nn.BatchNorm2d(5, affine=False)
    labels = torch.tensor([0, 1, 2, 1])
    with gankernels.use(impl):
        for _ in range(3):
            x = torch.randn(4, 5, 3, 3) * 2 + 1
            torch.testing.assert_close(ours(x, labels), theirs(x))
        for name, buffer in theirs.named_buffers():
            torch.testing.assert_close(getattr(ours, name), buffer)
        torch.testing.assert_close(ours.eval()(x, labels), theirs.eval()(x))


def test_cumulative_average():
    ours = gankernels.nn.ConditionalBatchNorm2d(4, num_classes=1, momentum=None)
    theirs = torch.nn.BatchNorm2d(4, momentum=None, affine=False)
    for _ in range(3):
        x = torch.randn(4, 4, 3, 3)
        torch.testing.assert_close(ours(x, torch.zeros(4, dtype=torch.long)), theirs(x))
    torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_a_condition_vector():
    norm = gankernels.nn.ConditionalBatchNorm2d(4, cond_features=6, activation="relu")
    torch.nn.init.normal_(norm.gain.weight)
    x, cond = torch.randn(3, 4, 5, 5), torch.randn(3, 6)
    gain, bias = 1 + cond @ norm.gain.weight.T, cond @ norm.bias.weight.T
    want = F.relu(F.batch_norm(x, None, None, training=True) * gain[:, :, None, None] + bias[:, :, None, None])
    torch.testing.assert_close(norm(x, cond), want)


# ---- Errors ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3)}, r"x: got shape \(2, 3\), expected \[N, C, H, W\]"),
        ({"x": torch.zeros(2, 3, 4, 4, dtype=torch.int64)}, "x: got dtype torch.int64"),
        ({"gain": torch.zeros(2, 4)}, r"gain: got shape \(2, 4\), expected \(2, 3\)"),
        ({"bias": torch.zeros(3)}, r"bias: got shape \(3,\), expected \(2, 3\)"),
        ({"bias": torch.zeros(2, 3, dtype=torch.int32)}, "bias: got dtype torch.int32"),
        ({"labels": torch.zeros(2, dtype=torch.int32)}, "labels: got dtype torch.int32, expected torch.int64"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"labels: got shape \(3,\), expected \(2,\)"),
        ({"labels": torch.tensor([1, 2])}, "labels: got 1 to 2, expected them from 0 to 1"),
        ({"labels": torch.tensor([-1, 0])}, "labels: got -1 to 0, expected them from 0 to 1"),
        ({"labels": torch.tensor([0, 0], device="meta")}, "labels: got a tensor on meta"),
        ({"labels": torch.tensor([0, 0]), "gain": torch.zeros(3)}, r"gain: got shape \(3,\), expected \[classes, 3\]"),
        ({"labels": torch.tensor([0, 0]), "gain": torch.zeros(5, 3)}, r"bias: got shape \(2, 3\), expected \(5, 3\)"),
        ({"activation": "gelu"}, "activation: got 'gelu', expected one of none, relu, lrelu"),
        ({"training": False}, "running_mean, running_var: got None"),
        ({"running_mean": torch.zeros(4)}, r"running_mean: got shape \(4,\), expected \(3,\)"),
        ({"running_var": torch.zeros(3, requires_grad=True)}, "running_var: got a tensor that requires grad"),
        ({"x": torch.zeros(1, 3, 1, 1), "gain": torch.zeros(1, 3)}, "more than one value per channel"),
        ({"impl": "fast"}, "got 'fast', expected one of reference, library, cpu, triton, cuda"),
    ],
)
def test_bad_input(change, message):
    arguments = {"x": torch.zeros(2, 3, 4, 4), "gain": torch.zeros(2, 3), "bias": torch.zeros(2, 3)} | change
    with pytest.raises(InputError, match=message):
        conditional_batch_norm(**arguments)


def test_a_forced_implementation_that_cannot_run():
    arguments = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3), torch.zeros(2, 3)
    with pytest.raises(ImplementationUnavailable, match="runs on cuda tensors, not cpu"):
        conditional_batch_norm(*arguments, impl="cuda")


def test_module_wants_one_kind_of_condition():
    with pytest.raises(InputError, match="exactly one of them"):
        gankernels.nn.ConditionalBatchNorm2d(4)
    with pytest.raises(InputError, match="exactly one of them"):
        gankernels.nn.ConditionalBatchNorm2d(4, num_classes=3, cond_features=2)
