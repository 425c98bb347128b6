"""What ops need of other ranks. Groups go by name, so that a traced graph can hold them.

The sum is a registered op whose derivative is itself: differentiable to every order, also when compiled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gankernels.errors import InputError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def several_ranks(process_group: ProcessGroup | None) -> bool:
    """Whether there is anybody to talk to.

    Raises:
        InputError: not a process group, or one that this process is not in.
    """
    if process_group is None:
        return False
    if not torch.distributed.is_available() or not isinstance(process_group, torch.distributed.ProcessGroup):
        raise InputError(
            f"process_group: got {type(process_group).__name__}, expected a torch.distributed.ProcessGroup that this "
            "process is in, or None"
        )
    return process_group.size() > 1


def all_reduce_sum(x: Tensor, group: str) -> Tensor:
    """The sum of every rank's ``x``, on every rank. Differentiable to every order.

    The gradients are those of the sum of all ranks' losses, as data-parallel training has them.
    """
    return torch.ops.gankernels_collectives.all_reduce_sum(x, group)


def all_gather(x: Tensor, group: str, ranks: int) -> Tensor:
    """Every rank's ``x`` [K], on every rank: [ranks, K]. Not differentiable: for the inside of an op."""
    gathered = torch.ops._c10d_functional.all_gather_into_tensor(x, ranks, group)
    return torch.ops._c10d_functional.wait_tensor(gathered).view(ranks, -1)


def _all_reduce_sum(x: Tensor, group: str) -> Tensor:
    reduced = torch.ops._c10d_functional.all_reduce(x.contiguous(), "sum", group)
    return torch.ops._c10d_functional.wait_tensor(reduced)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.group = inputs[1]


def _vjp(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
    return all_reduce_sum(dy, ctx.group), None


_library = torch.library.Library("gankernels_collectives", "DEF")
# The tag keeps tracers from running it on constants: they would wait for ranks that do not trace.
_library.define("all_reduce_sum(Tensor x, str group) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,))
_library.impl("all_reduce_sum", _all_reduce_sum, "CompositeExplicitAutograd")
torch.library.register_fake("gankernels_collectives::all_reduce_sum", lambda x, group: x.new_empty(x.shape))
torch.library.register_autograd("gankernels_collectives::all_reduce_sum", _vjp, setup_context=_save)
