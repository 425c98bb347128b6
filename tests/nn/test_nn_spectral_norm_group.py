"""SpectralNormGroup against PyTorch's parametrization, and against itself with a call for each forward."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch
from spectral_normed import batch, network, states_equal
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from gankernels.errors import InputError
from gankernels.nn import SpectralNormGroup, spectral_norm
from gankernels.ops.spectral_norm import op


@pytest.fixture
def calls(monkeypatch) -> list[tuple[int, int]]:
    """(weights, iterations) of every call of the op."""
    made: list[tuple[int, int]] = []
    functional = op.functional

    def counted(weights, *args, **keywords):
        made.append((len(weights), keywords["n_power_iterations"]))
        return functional(weights, *args, **keywords)

    for module in ("spectral_norm", "spectral_norm_group"):
        monkeypatch.setattr(importlib.import_module(f"gankernels.nn.{module}"), "functional", counted)
    return made


@pytest.mark.parametrize("normalise", [spectral_norm, parametrizations.spectral_norm], ids=["ours", "torch's"])
def test_one_call_a_step(normalise, calls):
    model = network(normalise)
    keys = list(model.state_dict())
    group = SpectralNormGroup(model)
    assert list(model.state_dict()) == keys
    assert group.names == ("conv.weight", "up.weight", "embedding.weight", "linear.weight")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(3):
        calls.clear()
        (model(*batch(step)).sum() + model(*batch(step + 5)).square().sum()).backward()
        with torch.no_grad():
            model(*batch())
        assert calls == [(4, 1)]
        optimizer.step()
        optimizer.zero_grad()
    calls.clear()
    model.eval()
    with torch.no_grad():
        model(*batch()), model(*batch(1))
    assert calls == [(4, 0)]


def test_step_equals_pytorchs_with_one_iteration():
    """A step with one forward is PyTorch's; with two, both forwards see the first one's weights."""
    ours, theirs = network(), network(parametrizations.spectral_norm)
    SpectralNormGroup(ours)
    for step in range(3):
        for model in (ours, theirs):
            model.zero_grad()
            with parametrize.cached():  # PyTorch's own once-per-step form
                (model(*batch(step)).sum() + model(*batch(step + 5)).square().sum()).backward()
            torch.optim.SGD(model.parameters(), lr=0.1).step()
    states_equal(ours, theirs, rtol=1e-10)


@pytest.mark.parametrize("eval_between", [False, True])
def test_per_forward_is_pytorchs_meaning(eval_between, calls):
    ours, theirs = network(), network(parametrizations.spectral_norm)
    SpectralNormGroup(ours, per_forward=True)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (ours, theirs)]
    for step in range(3):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            if eval_between:
                model.eval()(*batch())
                model.train()
            optimizer.zero_grad()
            model(*batch(step)).sum().backward()
            model(*batch(step + 5)).square().sum().backward()
            with torch.no_grad():
                model.conv(batch()[0])  # a forward of a part of the model
            optimizer.step()
        states_equal(ours, theirs, rtol=1e-10)
    # The linear layer is used twice in a forward, and iterates twice.
    assert max(calls) == (4, 1)


def test_frozen_thawed_and_without_gradients(calls):
    model = network()
    SpectralNormGroup(model)
    calls.clear()
    with torch.no_grad():
        model(*batch())
    model.requires_grad_(False)
    x, y = batch()
    x.requires_grad_()
    model(x, y).sum().backward()  # the generator's step through a frozen discriminator
    assert all(p.grad is None for p in model.parameters())
    assert calls == [(4, 1)]
    model.requires_grad_(True)
    model(x, y).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert calls == [(4, 1), (4, 0)]  # a graph, but no second iteration


def test_a_forward_behind_a_backward_gets_a_graph_of_its_own(calls):
    model, once = network(), network()
    SpectralNormGroup(model)
    SpectralNormGroup(once)
    calls.clear()
    model(*batch()).sum().backward()
    model(*batch(1)).sum().backward()
    assert calls == [(4, 1), (4, 0)]
    (once(*batch()).sum() + once(*batch(1)).sum()).backward()
    for a, b in zip(model.parameters(), once.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def change_nothing(model, optimizer):
    pass


def change_by_step(model, optimizer):
    optimizer.step()


def change_in_place(model, optimizer):
    with torch.no_grad():
        model.conv.parametrizations.weight.original.mul_(2)


def change_by_load(model, optimizer):
    model.load_state_dict({k: v + 0.1 for k, v in model.state_dict().items()})


def change_by_assignment(model, optimizer):
    model.conv.weight = model.conv.parametrizations.weight.original.detach() + 1


def change_data(model, optimizer):
    weight = model.conv.parametrizations.weight.original
    weight.data = weight.data + 1


def change_dtype_and_back(model, optimizer):
    model.float().double()


def change_through_data_in_an_optimizer(model, optimizer):
    class Old(torch.optim.Optimizer):
        def step(self):
            for p in self.param_groups[0]["params"]:
                p.data.add_(0.1)

    Old(model.parameters(), {}).step()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "change",
    [
        change_nothing,
        change_by_step,
        change_in_place,
        change_by_load,
        change_by_assignment,
        change_data,
        change_dtype_and_back,
        change_through_data_in_an_optimizer,
    ],
)
def test_never_stale(change, training):
    model = network().train(training)
    SpectralNormGroup(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(*batch()).sum().backward()
    change(model, optimizer)
    got = model(*batch())
    # What the weights and vectors that are there now give.
    fresh = network().eval()
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(got, fresh(*batch()), rtol=1e-10, atol=1e-10)


def test_swapped_parameters():
    """functional_call: an average of the weights, say."""
    model = network().eval()
    SpectralNormGroup(model)
    before = model(*batch())
    other = {k: v + 0.1 for k, v in model.state_dict().items()}
    got = torch.func.functional_call(model, other, batch())
    fresh = network().eval()
    fresh.load_state_dict(other)
    torch.testing.assert_close(got, fresh(*batch()))
    torch.testing.assert_close(model(*batch()), before)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies(how, calls):
    model = network()
    model.group = SpectralNormGroup(model)
    model(*batch()).sum().backward()
    if how == "deepcopy":
        twin = copy.deepcopy(model)
    else:
        model.group.refresh()
        twin = copy.deepcopy(model)
    calls.clear()
    value = twin(*batch())
    assert calls == [(4, 1)]
    assert twin.group is not model.group
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    torch.testing.assert_close(twin.eval()(*batch()), value)
    lone = copy.deepcopy(model.linear)  # a part, without the group
    assert lone.parametrizations.weight[0]._group is None


def test_remove(calls):
    model = network()
    group = SpectralNormGroup(model)
    with pytest.raises(InputError, match=r"conv\.weight is in a group already"):
        SpectralNormGroup(model)
    group.remove()
    calls.clear()
    model(*batch())
    assert calls == [(1, 1)] * 5


def test_refresh_after_what_leaves_no_trace():
    model = network().eval()
    group = SpectralNormGroup(model)
    model(*batch())
    model.conv.parametrizations.weight.original.data.mul_(-1)
    group.refresh()
    fresh = network().eval()
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(*batch()), fresh(*batch()))


def test_gradient_penalty_through_a_group():
    """Second order: the gradient with respect to the pictures, differentiated with respect to the weights."""
    gradients = []
    for grouped in (True, False):
        model = network()
        if grouped:
            SpectralNormGroup(model)
        x, y = batch()
        x.requires_grad_()
        with parametrize.cached():
            (g,) = torch.autograd.grad(model(x, y).sum(), x, create_graph=True)
            (g.square().sum() + model(x.detach(), y).mean()).backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_hold_in_a_compiled_step():
    eager, compiled = network(), network()
    groups = [SpectralNormGroup(eager), SpectralNormGroup(compiled)]
    step = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for i in range(2):
        with groups[1].hold():
            (step(*batch(i)).sum() + step(*batch(i + 1)).square().sum()).backward()
        (eager(*batch(i)).sum() + eager(*batch(i + 1)).square().sum()).backward()
        for a, b in zip(eager.parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)
            with torch.no_grad():
                for p in (a, b):
                    p -= 0.1 * p.grad
                    p.grad = None
    states_equal(eager, compiled, rtol=1e-10)


def test_compiled_without_hold_is_never_stale():
    model, fresh = network(), network()
    SpectralNormGroup(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(*batch())
    fresh(*batch())
    with torch.no_grad():
        for p in [*model.parameters(), *fresh.parameters()]:
            p *= -0.5
    torch.testing.assert_close(compiled(*batch()), fresh(*batch()))
    states_equal(model, fresh)


def test_a_dtype_of_its_own():
    model = nn.Sequential(spectral_norm(nn.Linear(4, 5)), spectral_norm(nn.Linear(5, 3)))
    SpectralNormGroup(model, out_dtype=torch.bfloat16)
    assert model[0].weight.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.randn(2, 4)).sum().backward()
    assert model[0].parametrizations.weight.original.grad.dtype == torch.float32


def test_several_dtypes_and_numbers_of_iterations(calls):
    model = nn.ModuleList(
        [
            spectral_norm(nn.Linear(4, 5)),
            spectral_norm(nn.Linear(4, 5).double()),
            spectral_norm(nn.Linear(4, 5), n_power_iterations=2),
            spectral_norm(nn.Linear(3, 5)),
        ]
    )
    model[3].eval()
    SpectralNormGroup(model)
    calls.clear()
    assert [layer.weight.dtype for layer in model] == [torch.float32, torch.float64, torch.float32, torch.float32]
    assert sorted(calls) == [(1, 0), (1, 1), (1, 1), (1, 2)]


def test_singular_values():
    model = network()
    group = SpectralNormGroup(model)
    for _ in range(50):
        group.refresh()
        model(*batch())
    state = torch.get_rng_state()
    values = group.singular_values(3)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(values) == list(group.names)
    for name, value in values.items():
        weight = model.get_submodule(name.removesuffix(".weight")).parametrizations.weight.original
        dim = 1 if name == "up.weight" else 0
        exact = torch.linalg.svdvals(weight.movedim(dim, 0).flatten(1))[:3]
        torch.testing.assert_close(value, exact, rtol=1e-3, atol=0)
    assert group.singular_values()["conv.weight"].shape == (1,)
    with pytest.raises(InputError, match="k: got 0"):
        group.singular_values(0)
