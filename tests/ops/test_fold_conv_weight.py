"""Every kernel of the weight fold against the reference, and the reference against the convolutions it stands for."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from contracts import assert_one_schema
from forked import on_lesser_processor
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from gankernels import selfcheck, verification
from gankernels.errors import ImplementationUnavailable, InputError
from gankernels.ops import fold_conv_weight
from gankernels.ops.fold_conv_weight import op
from implementations import kernels_of

KERNELS = kernels_of("fold_conv_weight")
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

kernels = pytest.mark.parametrize(("device", "impl"), KERNELS)
layouts = pytest.mark.parametrize("layout", LAYOUTS)
directions = pytest.mark.parametrize("resample", ["up", "down"])
needs_cpu = pytest.mark.skipif("cpu" not in [p.values[1] for p in KERNELS], reason="the extension is not built")


def weight_of(shape, *, dtype=torch.float64, device="cpu", layout="contiguous") -> Tensor:
    drawn = torch.randn(shape, dtype=torch.float64).to(device, dtype)
    return drawn.contiguous(memory_format=LAYOUTS[layout]).requires_grad_()


def three_orders(function, weight: Tensor) -> list[Tensor]:
    """The folded weight, its gradient, and the gradient of that in its cotangent."""
    generator = torch.Generator().manual_seed(1)

    def like(t: Tensor) -> Tensor:
        return torch.empty_like(t).copy_(torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype))

    folded = function(weight)
    dfolded = like(folded.detach()).requires_grad_()
    (dweight,) = torch.autograd.grad(folded, weight, dfolded, create_graph=True)
    (ddfolded,) = torch.autograd.grad(dweight, dfolded, like(dweight.detach()))
    return [t.detach() for t in (folded, dweight, ddfolded)]


# ---- The definition ----


@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_the_reference_is_the_convolutions(size):
    x, weight = torch.randn(2, 3, 6, 5, dtype=torch.float64), torch.randn(4, 3, size, size, dtype=torch.float64)
    for padding in range(size):
        up = fold_conv_weight(weight, "up", impl="reference")
        got = F.conv_transpose2d(x, up, stride=2, padding=size - 1 - padding)
        torch.testing.assert_close(got, F.conv2d(F.interpolate(x, scale_factor=2.0), weight, padding=padding))
        down = fold_conv_weight(weight, "down", impl="reference")
        if min(x.shape[2:]) + 2 * padding > size:
            got = F.conv2d(x, down, stride=2, padding=padding)
            torch.testing.assert_close(got, F.avg_pool2d(F.conv2d(x, weight, padding=padding), 2))


# ---- Exactness ----


SHAPES = [(1, 1, 3, 3), (3, 5, 1, 1), (33, 2, 3, 3), (33, 70, 3, 3), (4, 6, 5, 5), (2, 3, 15, 15), (2, 515, 3, 3)]
INTERPRETED = [
    *(((3, 5, 1, 1), layout, last) for layout in LAYOUTS for last in (False, True)),
    ((33, 2, 3, 3), "channels_last", True),
]


# Sizes 1, odd, past a tile of 32, past a direct block of 512, and several rows of tiles.
@kernels
@directions
@layouts
@pytest.mark.parametrize("channels_last", [None, False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_writes_every_element_as_the_reference(device, impl, resample, layout, channels_last, shape, poisoned):
    if impl == "triton" and device == "cpu" and (shape, layout, channels_last) not in INTERPRETED:
        pytest.skip("Triton's interpreter is slow: it has its own shapes")
    weight = weight_of(shape, device=device, layout=layout)
    results = [
        three_orders(lambda w, i=i: fold_conv_weight(w, resample, channels_last=channels_last, impl=i), weight)
        for i in (impl, "reference")
    ]
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)
    folded, dweight, _ = results[0]
    last = layout == "channels_last" if channels_last is None else channels_last
    # A 1x1 weight is in both layouts.
    if min(shape) > 1:
        assert folded.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        assert dweight.is_contiguous(memory_format=LAYOUTS[layout])


@kernels
@directions
def test_gradcheck_and_gradgradcheck(device, impl, resample):
    # The interpreter takes some ten milliseconds a program: few of them.
    fast = impl == "triton" and device == "cpu"
    weight = weight_of((1, 2, 1, 1) if fast else (2, 3, 3, 3), device=device)
    assert gradcheck(lambda w: fold_conv_weight(w, resample, impl=impl), weight, fast_mode=fast)
    assert gradgradcheck(lambda w: fold_conv_weight(w, resample, impl=impl), weight, fast_mode=fast)


@kernels
@directions
def test_strides_with_holes_and_empty(device, impl, resample):
    weight = weight_of((8, 12, 3, 3), device=device).detach()[::2, ::3]
    want = fold_conv_weight(weight, resample, impl="reference")
    torch.testing.assert_close(fold_conv_weight(weight, resample, impl=impl), want)
    empty = weight.new_empty(0, 4, 3, 3)
    assert fold_conv_weight(empty, resample, impl=impl).shape == ((4, 0, 4, 4) if resample == "up" else (0, 4, 4, 4))


# ---- Precision ----


@kernels
@directions
@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_error_at_most_twice_eager(device, impl, resample, layout, dtype):
    if impl == "triton" and device == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter truncates where it should round to bf16")
    interpreted = impl == "triton" and device == "cpu"
    if interpreted and layout == "contiguous":
        pytest.skip("Triton's interpreter is slow: one layout")
    weight = weight_of((20, 30, 3, 3) if interpreted else (40, 70, 3, 3), dtype=dtype, device=device, layout=layout)

    def eager(weight):
        w = F.pad(weight, (1, 1, 1, 1))
        folded = w[..., :-1, :-1] + w[..., :-1, 1:] + w[..., 1:, :-1] + w[..., 1:, 1:]
        return folded.flip(2, 3).transpose(0, 1) if resample == "up" else folded / 4

    dfolded = None
    runs = []
    for function, w in (
        (lambda w: fold_conv_weight(w, resample, impl=impl), weight),
        (lambda w: fold_conv_weight(w, resample, impl="reference"), weight.detach().double().requires_grad_()),
        (eager, weight),
    ):
        folded = function(w)
        dfolded = torch.randn_like(folded) if dfolded is None else dfolded
        runs.append([folded.detach(), *torch.autograd.grad(folded, w, dfolded.to(w.dtype))])
    ours, exact, theirs = runs
    assert (why := verification.beyond_twice_eager(ours, exact, [theirs])) is None, why


@kernels
def test_checks_of_tune(device, impl):
    if impl == "triton" and device == "cpu":
        pytest.skip("the other tests run it in the interpreter")
    for check in selfcheck.checks_of("fold_conv_weight"):
        for dtype in (torch.float32, torch.bfloat16):
            assert (why := selfcheck.verify(check, impl, torch.device(device), dtype)) is None, why


@needs_cpu
@directions
def test_same_bits_for_any_number_of_threads(resample):
    weight = weight_of((130, 200, 3, 3), dtype=torch.float32, layout="channels_last")
    runs = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        runs.append(three_orders(lambda w: fold_conv_weight(w, resample, impl="cpu"), weight))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@needs_cpu
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_every_instruction_set(isa):
    on_lesser_processor(isa, _equal_to_reference)


def _equal_to_reference() -> None:
    dtypes = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
    for (dtype, tolerance), layout, resample in itertools.product(dtypes.items(), LAYOUTS, ("up", "down")):
        weight = weight_of((19, 37, 3, 3), dtype=dtype, layout=layout)
        got, want = (fold_conv_weight(weight, resample, impl=impl) for impl in ("cpu", "reference"))
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


# ---- The torch.library contract ----


@kernels
def test_opcheck(device, impl):
    ops = getattr(torch.ops, op.NAMESPACES[impl])
    for up in (True, False) if impl != "triton" else (True,):
        weight = weight_of((2, 3, 3, 3), device=device, dtype=torch.float32, layout="channels_last")
        torch.library.opcheck(ops.fold_conv_weight_forward.default, (weight, up, True))
        shape = (3, 2, 4, 4) if up else (2, 3, 4, 4)
        dfolded = weight_of(shape, device=device, dtype=torch.float32)
        torch.library.opcheck(ops.fold_conv_weight_backward.default, (dfolded, up, False))


def test_native_and_triton_schemas_are_one():
    assert_one_schema(op.SCHEMAS)


@kernels
@directions
def test_compile_fullgraph(device, impl, resample):
    weight = weight_of((3, 5, 3, 3), device=device, layout="channels_last")

    def fold(weight):
        return fold_conv_weight(weight, resample, impl=impl).square()

    results = []
    for function in (torch.compile(fold, fullgraph=True, backend="aot_eager"), fold):
        y = function(weight)
        results.append([y, *torch.autograd.grad(y.sum(), weight)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


@kernels
def test_what_would_be_silently_wrong_raises(device, impl):
    weight = weight_of((2, 2, 3, 3), device=device).detach()
    with pytest.raises(RuntimeError, match=r"torch\.func"):
        torch.func.jvp(lambda w: fold_conv_weight(w, "up", impl=impl), (weight,), (weight,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(2, 3, 3)}, r"weight: got shape \(2, 3, 3\)"),
        ({"weight": torch.zeros(2, 3, 4, 4)}, "expected .* K odd"),
        ({"weight": torch.zeros(2, 3, 3, 1)}, r"weight: got shape \(2, 3, 3, 1\)"),
        ({"weight": torch.zeros(2, 3, 17, 17)}, "at most 15"),
        ({"weight": torch.zeros(2, 3, 3, 3, dtype=torch.int32)}, "weight: got dtype torch.int32"),
        ({"resample": "sideways"}, "resample: got 'sideways'"),
        ({"impl": "fast"}, "got 'fast'"),
    ],
)
def test_bad_input(change, message):
    arguments = {"weight": torch.zeros(2, 3, 3, 3), "resample": "up"} | change
    with pytest.raises(InputError, match=message):
        fold_conv_weight(**arguments)


def test_a_forced_implementation_that_cannot_run():
    with pytest.raises(ImplementationUnavailable, match="runs on cuda tensors, not cpu"):
        fold_conv_weight(torch.zeros(2, 3, 3, 3), "up", impl="cuda")
