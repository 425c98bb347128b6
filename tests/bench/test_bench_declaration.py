from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gankernels import ops
from gankernels.bench import DOUBLE_BACKWARD, FORWARD, FORWARD_BACKWARD, STEP, Benchmark, Case
from gankernels.bench.declarations import ALL
from gankernels.bench.problem import Problem
from gankernels.bench.providers import Provider, in_mode, ours, peers
from gankernels.bench.runner import plan
from gankernels.verification import another_function

CASE = Case("a network, layer 1", (2, 3, 4, 4))


def declaration(**fields) -> Benchmark:
    """y = relu(x) * w, of which the last is a weight [C]."""
    defaults = {
        "op": "scaled_relu",
        "cases": [CASE],
        "inputs": lambda case, rng: [torch.randn(case.shape, generator=rng), torch.randn(case.shape[1], generator=rng)],
        "stock": lambda case, x, w: x.relu() * w[:, None, None],
        "ours": lambda case, x, w, impl: torch.where(x > 0, x, 0) * w[:, None, None],
        "impls": ["mine"],
        "bytes": lambda case, mode, itemsize: case.passes(2, itemsize),
        "modes": (FORWARD, FORWARD_BACKWARD, DOUBLE_BACKWARD),
        "kink": lambda case, x, w: x,
    }
    return Benchmark(**(defaults | fields))


def test_passes_are_bytes():
    assert Case("here", (2, 3)).passes(1.5, 4) == 36


def test_there_is_one_declaration_an_op_in_their_order():
    names = [benchmark.op for benchmark in ALL]
    assert names == [name for name in ops.__all__ if name in names]


@pytest.mark.parametrize("declared", ALL, ids=lambda declared: declared.op)
def test_declarations_are_whole(declared):
    assert len({(case.position, case.shape) for case in declared.cases}) == len(declared.cases)
    assert 1 <= sum(case.quick for case in declared.cases) <= 3
    for case in declared.cases:
        for mode in declared.modes:
            assert declared.bytes(case, mode, 4) == 2 * declared.bytes(case, mode, 2) > 0
            assert declared.flops(case, mode) >= 0
            assert declared.launches(mode) >= 1


def test_quick_keeps_what_is_marked_and_one_mode():
    quick = Case("another layer", (2, 3), quick=True)
    both = declaration(cases=[CASE, quick])
    assert len(plan([both])) == 2 * 2 * 3
    groups = plan([both], quick=True)
    assert [(group.case, group.mode) for group in groups] == [(quick, FORWARD_BACKWARD)] * 2
    assert [group.dtype for group in groups] == [torch.float32, torch.bfloat16]
    assert [(group.case, group.mode) for group in plan([declaration(modes=[STEP])], quick=True)] == [(CASE, STEP)] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_providers_get_the_same_numbers(dtype):
    problem = Problem(declaration(), CASE, dtype, FORWARD_BACKWARD, "cpu")
    inputs = {kind: problem.inputs(kind) for kind in (torch.float64, torch.float32, dtype)}
    for x in inputs.values():
        assert torch.equal(x[0], inputs[dtype][0].to(x[0].dtype))
        assert all(t.requires_grad and t.is_leaf for t in x)
    x, w = problem.inputs(dtype, channels_last=True)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert w.is_contiguous()
    assert problem.has_layout
    assert problem.input_bytes == (96 + 3) * dtype.itemsize


def test_inputs_that_are_no_floats_stay_as_they_are():
    embed = declaration(
        inputs=lambda case, rng: [torch.tensor([0, 2]), torch.randn(3, 4, generator=rng)],
        stock=lambda case, y, table: table[y],
        kink=None,
    )
    problem = Problem(embed, CASE, torch.bfloat16, FORWARD_BACKWARD, "cpu")
    y, _ = problem.inputs(torch.bfloat16)
    assert y.tolist() == [0, 2]
    assert not y.requires_grad
    assert [t.shape for t in problem.exact] == [(2, 4), (3, 4)]
    assert not problem.has_layout


def test_a_declaration_may_place_its_inputs_itself():
    def place(tensors: list[Tensor], dtype: torch.dtype, memory_format: torch.memory_format) -> list[Tensor]:
        x, w = tensors
        return [x.to(dtype), w.to(torch.promote_types(dtype, torch.float32))]

    problem = Problem(declaration(place=place), CASE, torch.bfloat16, FORWARD, "cpu")
    assert [t.dtype for t in problem.inputs(torch.bfloat16)] == [torch.bfloat16, torch.float32]
    x, w = problem.inputs(torch.float64)
    assert torch.equal(x, x.bfloat16().double())
    assert not torch.equal(w, w.bfloat16().double())


def test_no_cotangent_enters_at_a_kink():
    near = torch.tensor([1.0, -1.0, 1e-7, -1e-7, 0.0, 0.5]).reshape(1, 1, 2, 3)
    other_side = declaration(
        inputs=lambda case, rng: [near.clone(), torch.ones(1)],
        ours=lambda case, x, w, impl: torch.where(x > -1e-6, x, 0) * w[:, None, None],
    )
    for mode in (FORWARD_BACKWARD, DOUBLE_BACKWARD):
        problem = Problem(other_side, CASE, torch.float32, mode, "cpu")
        (mine,) = ours(other_side, CASE, torch.float32, mode, "cpu")
        _, (cotangent,) = problem.data(mine)
        assert ((cotangent == 0) == (near.abs() < 1e-6)).all()
        assert problem.flaw(mine) is None
    unmasked = Problem(declaration(inputs=other_side.inputs, kink=None), CASE, torch.float32, FORWARD_BACKWARD, "cpu")
    (mine,) = ours(other_side, CASE, torch.float32, FORWARD_BACKWARD, "cpu")
    assert "result 1" in (unmasked.flaw(mine) or "")


def test_a_kink_is_as_wide_as_the_error_of_eager():
    rough = declaration(
        inputs=lambda case, rng: [torch.linspace(-1, 1, 401).reshape(1, 1, 1, -1), torch.ones(1)],
        # As a sum over a large batch may be: off by much more than an epsilon in fp32, exact in fp64.
        stock=lambda case, x, w: (x + (1e-2 if x.dtype == torch.float32 else 0)).relu() * w[:, None, None],
    )
    problem = Problem(rough, CASE, torch.float32, FORWARD_BACKWARD, "cpu")
    (eager, *_) = peers(rough, CASE, torch.float32, FORWARD_BACKWARD, ())
    _, (cotangent,) = problem.data(eager)
    assert ((cotangent == 0) == (problem.inputs(torch.float64)[0].abs() < 2e-2)).float().mean() > 0.99
    y, dx, _ = problem.results(eager)
    assert (y - problem.exact[0]).abs().max() > 9e-3
    assert torch.equal(dx.double(), problem.exact[1])


def test_modes_return_all_there_is_to_compare():
    x = torch.tensor([[[[1.0, -2.0]]]], dtype=torch.float64, requires_grad=True)
    w = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    dy = torch.tensor([[[[0.5, 2.0]]]], dtype=torch.float64, requires_grad=True)

    def stock(x: Tensor, w: Tensor) -> Tensor:
        return x.square() * w[:, None, None]

    (y,) = in_mode(stock, FORWARD)([x, w], [dy])
    assert not y.requires_grad
    y, dx, dw = in_mode(stock, FORWARD_BACKWARD)([x, w], [dy])
    assert dx.flatten().tolist() == [3.0, -24.0]
    assert dw.tolist() == [0.5 + 8.0]
    # g = 2 x w dy; the penalty is the sum of its squares.
    g, dx, dw, ddy = in_mode(stock, DOUBLE_BACKWARD)([x, w], [dy])
    assert torch.equal(g, 2 * x * 3 * dy)
    assert torch.equal(dx, 2 * g * 2 * 3 * dy)
    assert dw.item() == (2 * g * 2 * x * dy).sum().item()
    assert torch.equal(ddy, 2 * g * 2 * x * 3)
    (y,) = in_mode(stock, STEP)([x, w], [])
    assert not y.requires_grad


def test_what_does_not_depend_on_an_input_has_zero_gradients():
    problem = Problem(
        declaration(stock=lambda case, x, w: (x.relu(), w.detach())), CASE, torch.float32, FORWARD_BACKWARD, "cpu"
    )
    assert len(problem.exact) == 4
    assert not problem.exact[3].any()


@pytest.mark.parametrize(
    ("declared", "mode"), [pytest.param(b, mode, id=f"{b.op}-{mode}") for b in ALL for mode in b.modes]
)
def test_stock_is_the_same_function_as_the_reference(declared, mode):
    case = min(declared.cases, key=lambda case: case.passes(1, 1))
    problem = Problem(declared, case, torch.float32, mode, "cpu")
    stock: Provider = peers(declared, case, torch.float32, mode, ())[0]
    assert another_function(problem.results(stock), problem.exact, torch.float32) is None
