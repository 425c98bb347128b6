"""What autograd saves of a tensor that can be made again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gankernels.ops._registration import asked_for

Hook = Callable[[Any], Any]

# None where a version of torch has no such questions: then the tensor itself is saved.
_hooks_around: Callable[[bool], tuple[Hook, Hook] | None] | None = getattr(
    torch._C._autograd, "_top_saved_tensors_default_hooks", None
)
_hooks_allowed: Callable[[], bool] | None = getattr(torch._C._autograd, "_saved_tensors_hooks_is_enabled", None)
_current_node: Callable[[], Any] = getattr(torch._C, "_current_autograd_node", lambda: None)


class _Saved(NamedTuple):
    packed: Any
    tensor: Tensor | None  # whose changes are watched; None where hooks around took a copy, as torch has it
    version: int
    is_source: bool


@contextlib.contextmanager
def saved_as(
    t: Tensor, source: Tensor, make: Callable[[Tensor], Tensor], *, wanted_for: int | None = None
) -> Iterator[None]:
    """Where an op in this block saves ``t`` for its backward, save ``source``, from which backward makes ``t`` again.

    For what is large, cheap to make, and made of a tensor that somebody saves in any case. Gradients pass through ``t``
    as they do without: any order of differentiation. What is saved may not be changed in place, which raises.
    ``saved_tensors_hooks`` that stand around the block get what is saved here too. Where such hooks are disabled ``t``
    is saved, and torch.compile decides for itself.

    Args:
        t: a result that the op takes.
        source: what it was made from.
        make: makes it again, to the same bits; its gradients are not recorded.
        wanted_for: the op's backward reads it for the gradient of its tensor argument of this number alone, and asks
            for that by :func:`asked_for`; where the pass does not, a tensor without numbers stands in.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        yield
        return
    if _hooks_around is None or _hooks_allowed is None or not _hooks_allowed():
        yield
        return
    pack_around, unpack_around = _hooks_around(True) or (None, None)
    # Not t itself, which the hooks would keep alive.
    address, shape = t.data_ptr(), t.shape
    source = source.detach()

    def pack(tensor: Tensor) -> _Saved:
        is_source = tensor.data_ptr() == address and tensor.shape == shape
        kept = source if is_source else tensor
        if pack_around is not None:
            return _Saved(pack_around(kept), None, 0, is_source)
        return _Saved(kept, kept, kept._version, is_source)

    def unpack(saved: _Saved) -> Tensor:
        tensor = saved.packed if unpack_around is None else unpack_around(saved.packed)
        if saved.tensor is not None and saved.tensor._version != saved.version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation:"
                f" {list(tensor.shape)} is at version {saved.tensor._version}, expected version {saved.version}"
            )
        if not saved.is_source:
            return tensor
        node = None if wanted_for is None else _current_node()
        if node is not None and wanted_for is not None and not asked_for(node, wanted_for):
            return torch.empty(shape, dtype=tensor.dtype, device="meta")
        with torch.no_grad():
            return make(tensor)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
