"""conditional_batch_norm over a process group, against the same batch in one process.

One launch of three processes runs all checks, over the group of three ranks, one of which has no samples, and over the
group of the first two. A failed check names its case; the other ranks are then stopped.
"""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

import gankernels
from gankernels.errors import InputError
from gankernels.ops import conditional_batch_norm
from gankernels.verification import beyond_twice_eager
from implementations import kernels_of
from ranks import run_in_ranks

pytestmark = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="torch has no gloo")

IMPLEMENTATIONS = ["reference", *[p.values[1] for p in kernels_of("conditional_batch_norm") if p.values[0] == "cpu"]]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
#: Number of ranks -> where the batch of seven is cut.
CUTS = {2: (0, 2, 7), 3: (0, 3, 3, 7)}
SHAPE = (7, 6, 5, 4)


def test_every_kernel_equals_one_process():
    run_in_ranks(_checks, 3)


def _checks(rank: int) -> None:
    pair = dist.new_group([0, 1])
    alone = [dist.new_group([i]) for i in range(3)][rank]
    for group in (dist.group.WORLD, pair) if rank < 2 else (dist.group.WORLD,):
        for impl in IMPLEMENTATIONS:
            _check_two_orders(group, impl)
            _check_class_tables(group, impl)
            _check_not_a_number(group, impl)
            _check_no_samples(group, impl)
            _check_far_from_zero(group, impl)
            for layout, dtype in itertools.product(LAYOUTS, (torch.float32, torch.bfloat16)):
                _check_precision(group, impl, layout, dtype)
    for impl in IMPLEMENTATIONS:
        _check_compiled(dist.group.WORLD, impl)
        _check_alone(alone, impl)
    if len(IMPLEMENTATIONS) > 1:
        _check_library_contract(dist.group.WORLD)
        _check_third_order(dist.group.WORLD)
    _check_module(dist.group.WORLD)
    _check_not_a_member(pair, rank)


def _batch(dtype: torch.dtype, layout: str = "contiguous") -> list[Tensor]:
    """x, gain, bias and dy, the same on every rank."""
    generator = torch.Generator().manual_seed(7)
    x, dy = (torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(2))
    gain, bias = (torch.randn(SHAPE[:2], generator=generator, dtype=torch.float64) for _ in range(2))
    tensors = [x * 2 + 1, 1 + gain / 2, bias, dy]
    return [t.to(dtype, memory_format=LAYOUTS[layout]) if t.dim() == 4 else t.to(dtype) for t in tensors]


def _share(tensors: list[Tensor], group: dist.ProcessGroup) -> list[Tensor]:
    cuts = CUTS[group.size()]
    mine = slice(cuts[group.rank()], cuts[group.rank() + 1])
    return [t[mine] for t in tensors]


def _whole(results: list[Tensor], group: dist.ProcessGroup) -> list[Tensor]:
    """Every rank's results, put together along the batch."""
    of_ranks = [None] * group.size()
    dist.all_gather_object(of_ranks, [t.detach() for t in results], group)
    return [torch.cat(parts) for parts in zip(*of_ranks, strict=True)]


def _first_order(function, tensors: list[Tensor]) -> list[Tensor]:
    x, gain, bias = (t.detach().requires_grad_() for t in tensors[:3])
    y = function(x, gain, bias)
    return [y, *torch.autograd.grad(y, (x, gain, bias), tensors[3])]


def _check_two_orders(group: dist.ProcessGroup, impl: str) -> None:
    """In fp64: output, gradients, the gradients of a function of them, and the running statistics."""

    def results(tensors: list[Tensor], **keywords) -> tuple[list[Tensor], list[Tensor]]:
        x, gain, bias, dy = (t.detach().clone().requires_grad_() for t in tensors)
        running = [torch.full((SHAPE[1],), 0.5, dtype=torch.float64) for _ in range(2)]
        y = conditional_batch_norm(
            x, gain, bias, activation="lrelu", running_mean=running[0], running_var=running[1], **keywords
        )
        first = torch.autograd.grad(y, (x, gain, bias), dy, create_graph=True)
        penalty = first[0].square().sum() + first[1].pow(3).sum() + first[2].pow(3).sum()
        return [y, *first, *torch.autograd.grad(penalty, (dy, x, gain))], running

    batch = _batch(torch.float64)
    got, running = results(_share(batch, group), impl=impl, process_group=group)
    want, want_running = results(batch, impl="reference")
    names = ("y", "dx", "dgain", "dbias", "second ddy", "second dx", "second dgain", "running_mean", "running_var")
    for name, a, b in zip(names, [*_whole(got, group), *running], [*want, *want_running], strict=True):
        torch.testing.assert_close(
            a, b, rtol=1e-9, atol=1e-9 * b.abs().max().item(),
            msg=lambda text, name=name: f"{impl}, {group.size()} ranks, {name}: {text}",
        )  # fmt: skip


def _check_class_tables(group: dist.ProcessGroup, impl: str) -> None:
    """Gradients of a table are those of a rank's own samples; their sum is the whole batch's."""
    generator = torch.Generator().manual_seed(3)
    tables = [torch.randn(6, SHAPE[1], generator=generator, dtype=torch.float64) for _ in range(2)]
    x, _, _, dy = _batch(torch.float64, "channels_last")
    labels = torch.tensor([4, 0, 4, 2, 2, 0, 4])

    def results(x: Tensor, dy: Tensor, labels: Tensor, **keywords) -> list[Tensor]:
        x, dy, gain, bias = (t.detach().clone().requires_grad_() for t in (x, dy, *tables))
        y = conditional_batch_norm(x, gain, bias, labels=labels, activation="lrelu", **keywords)
        first = torch.autograd.grad(y, (x, gain, bias), dy, create_graph=True)
        # Linear in the tables' gradients, so that the ranks' penalties add up to the batch's.
        penalty = first[0].square().sum() + sum((g * t).sum() for g, t in zip(first[1:], tables, strict=True))
        return [y, *first, *torch.autograd.grad(penalty, (dy, x, gain))]

    got = results(*_share([x, dy, labels], group), impl=impl, process_group=group)
    want = results(x, dy, labels, impl="reference")
    for i, (whole, b) in enumerate(zip(_whole(got, group), want, strict=True)):
        a = whole if b.dim() == 4 else whole.unflatten(0, (group.size(), 6)).sum(0)
        torch.testing.assert_close(
            a, b, rtol=1e-9, atol=1e-9 * b.abs().max().item(),
            msg=lambda text, i=i: f"{impl}, {group.size()} ranks, result {i} with labels: {text}",
        )  # fmt: skip


def _check_precision(group: dist.ProcessGroup, impl: str, layout: str, dtype: torch.dtype) -> None:
    batch = _batch(dtype, layout)

    def eager(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        return F.relu(F.batch_norm(x, None, None, training=True) * gain[:, :, None, None] + bias[:, :, None, None])

    def ours(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        return conditional_batch_norm(x, gain, bias, activation="relu", impl=impl, process_group=group)

    got = _first_order(ours, _share(batch, group))
    assert got[0].dtype == got[1].dtype == dtype
    for t in got[:2]:
        assert t.numel() == 0 or t.is_contiguous(memory_format=LAYOUTS[layout])
    exact = _first_order(
        lambda *t: conditional_batch_norm(*t, activation="relu", impl="reference"), [t.double() for t in batch]
    )
    theirs = [_first_order(eager, _batch(dtype, name)) for name in LAYOUTS]
    why = beyond_twice_eager(_whole(got, group), exact, theirs)
    assert why is None, f"{impl}, {group.size()} ranks, {layout}, {dtype}: {why}"


def _check_not_a_number(group: dist.ProcessGroup, impl: str) -> None:
    """A bad value on one rank spoils its channel on all, and nobody waits for ever."""
    batch = _share(_batch(torch.float32), group)
    if group.rank() == group.size() - 1:
        batch[0][0, 1, 0, 0], batch[0][0, 2, 0, 0] = torch.nan, torch.inf
    running = torch.zeros(SHAPE[1]), torch.ones(SHAPE[1])
    results = _first_order(
        lambda *t: conditional_batch_norm(
            *t, impl=impl, process_group=group, running_mean=running[0], running_var=running[1]
        ),
        batch,
    )
    spoiled = torch.zeros(SHAPE[1], dtype=torch.bool)
    spoiled[1:3] = True
    for t in results[:2]:
        assert torch.equal(t.isfinite().all(0).all(1).all(1), ~spoiled if len(t) else ~spoiled | True), impl
    assert torch.equal(running[1].isfinite(), ~spoiled)


def _check_far_from_zero(group: dist.ProcessGroup, impl: str) -> None:
    """mean / std = 1e4, and ranks whose means differ."""
    batch = _batch(torch.float32)
    batch[0] += 1e4 + torch.arange(SHAPE[0])[:, None, None, None]
    x, gain, bias, _ = batch
    eager = F.batch_norm(x, None, None, training=True) * gain[:, :, None, None] + bias[:, :, None, None]
    got = _whole([conditional_batch_norm(*_share(batch[:3], group), impl=impl, process_group=group)], group)
    exact = [conditional_batch_norm(x.double(), gain.double(), bias.double(), impl="reference")]
    why = beyond_twice_eager(got, exact, [[eager]])
    assert why is None, f"{impl}, {group.size()} ranks: {why}"


def _check_no_samples(group: dist.ProcessGroup, impl: str) -> None:
    x, gain, bias = torch.zeros(0, 3, 2, 2), torch.zeros(0, 3), torch.zeros(0, 3)
    running = torch.zeros(3), torch.ones(3)
    y = conditional_batch_norm(
        x.requires_grad_(), gain, bias, running_mean=running[0], running_var=running[1], process_group=group, impl=impl
    )
    y.sum().backward()
    assert torch.equal(running[0], torch.zeros(3))
    assert torch.equal(running[1], torch.ones(3))


def _check_compiled(group: dist.ProcessGroup, impl: str) -> None:
    batch = [t[: 1 + group.rank()] for t in _batch(torch.float32, "channels_last")]

    def function(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        return conditional_batch_norm(x, gain, bias, activation="relu", impl=impl, process_group=group) * 2

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for a, b in zip(_first_order(compiled, batch), _first_order(function, batch), strict=True):
        torch.testing.assert_close(a, b)


def _check_alone(group: dist.ProcessGroup, impl: str) -> None:
    """A group of one rank costs nothing: it is the plain op."""
    x, gain, bias, _ = _batch(torch.float32)
    plain, alone = (
        conditional_batch_norm(x.requires_grad_(), gain, bias, impl=impl, process_group=g) for g in (None, group)
    )
    assert torch.equal(plain, alone)
    assert plain.grad_fn.name() == alone.grad_fn.name()


def _check_library_contract(group: dist.ProcessGroup) -> None:
    ops = torch.ops.gankernels_synchronized
    x, gain, bias, dy = _batch(torch.float32, "channels_last")
    labels = torch.arange(SHAPE[0]) // 2
    mean, var, count = torch.zeros(SHAPE[1]), torch.ones(SHAPE[1]), torch.tensor(420.0, dtype=torch.float64)
    grads = [t.clone().requires_grad_() for t in (x, gain, bias)]
    family = "gankernels" if "cpu" in IMPLEMENTATIONS else "gankernels_triton"
    tail = (1e-5, "lrelu", 0.2, family, group.group_name)
    for op, arguments in (
        (ops.conditional_batch_norm_forward, (*grads, labels, *tail, group.size())),
        (ops.conditional_batch_norm_backward, (dy.clone().requires_grad_(), *grads, labels, mean, var, count, *tail)),
        (
            ops.conditional_batch_norm_backward_backward,
            (dy, gain, bias, dy, x, gain, bias, labels, mean, var, count, *tail),
        ),
        (torch.ops.gankernels_collectives.all_reduce_sum, (gain.clone().requires_grad_(), group.group_name)),
    ):
        torch.library.opcheck(op.default, arguments)


def _check_third_order(group: dist.ProcessGroup) -> None:
    x, gain, bias, _ = _batch(torch.float64)
    y = conditional_batch_norm(x.requires_grad_(), gain, bias, process_group=group, impl=IMPLEMENTATIONS[1])
    (dx,) = torch.autograd.grad(y.pow(2).sum(), x, create_graph=True)
    (ddx,) = torch.autograd.grad(dx.pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="third-order"):
        ddx.sum().backward()


def _check_module(group: dist.ProcessGroup) -> None:
    model = torch.nn.Sequential(gankernels.nn.BatchNorm2d(SHAPE[1], activation="relu"))
    assert gankernels.nn.synchronize(model) is model
    assert copy.deepcopy(model)[0].process_group is model[0].process_group is group
    x = _batch(torch.float32)[0]
    want = F.relu(F.batch_norm(x, None, None, training=True))
    torch.testing.assert_close(_whole([model(_share([x], group)[0])], group)[0], want)
    with pytest.raises(InputError, match="BatchNorm2d at '0'"):
        gankernels.nn.synchronize(torch.nn.Sequential(torch.nn.BatchNorm2d(3)))


def _check_not_a_member(pair: dist.ProcessGroup, rank: int) -> None:
    if rank == 2:
        x, gain, bias, _ = _batch(torch.float32)
        with pytest.raises(InputError, match="process_group: got"):
            conditional_batch_norm(x, gain, bias, process_group=pair)


def test_no_group_to_synchronize_over():
    with pytest.raises(InputError, match=r"torch\.distributed to be initialised"):
        gankernels.nn.synchronize(torch.nn.Identity())
