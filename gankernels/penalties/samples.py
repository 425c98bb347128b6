"""Which sample each entry of a tensor belongs to, followed through the ops of a forward.

The closed form scales whatever belongs to sample i by one number a_i, and runs the tangents of some samples only. Both
need the axis that holds the samples. An op that has no such axis behind it mixes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from gankernels.penalties.nodes import Node


class Samples(NamedTuple):
    """Index i of ``axis`` belongs to sample ``i // repeat``."""

    axis: int
    repeat: int = 1


class Rows:
    """Some of the samples of a batch: ``count`` of ``total``, from ``start`` on."""

    def __init__(self, start: int, count: int, total: int) -> None:
        self.start, self.count, self.total = start, count, total
        self.all = count == total

    def others(self) -> Rows | None:
        """The samples that these are not, if there are any and they stand beside each other."""
        stop = self.start + self.count
        if self.all or (self.start > 0 and stop < self.total):
            return None
        return Rows(0 if self.start else stop, self.total - self.count, self.total)

    def of(self, tensor: Tensor, samples: Samples | None) -> Tensor:
        """Their part of a tensor of all samples."""
        if self.all:
            return tensor
        assert samples is not None
        return tensor.narrow(samples.axis, self.start * samples.repeat, self.count * samples.repeat)


def reshaped(shape: Sequence[int], samples: Samples, new: Sequence[int]) -> Samples | None:
    """Where a reshape from ``shape`` to ``new`` takes the samples."""
    outer, size = math.prod(shape[: samples.axis]), shape[samples.axis]
    count = size // samples.repeat
    if math.prod(shape) == 0:
        return None
    for axis, extent in enumerate(new):
        # The flat index of an entry names its sample in the same way, if as many entries stand in front of both axes.
        if math.prod(new[:axis]) == outer and extent % count == 0:
            return Samples(axis, extent // count)
    return None


def _only(node: Node) -> tuple[tuple[int, ...], Samples]:
    """The shape and the samples of the one operand that depends on the pictures."""
    variable = node.variables[0]
    assert variable.samples is not None
    return variable.shape, variable.samples


def elementwise(node: Node) -> Samples | None:
    """Of operands that are broadcast against each other."""
    shape = node.result.shape
    found = set()
    for variable in node.variables:
        assert variable.samples is not None
        axis = variable.samples.axis - len(variable.shape) + len(shape)
        if shape[axis] != variable.shape[variable.samples.axis]:
            return None
        found.add(Samples(axis, variable.samples.repeat))
    return found.pop() if len(found) == 1 else None


def batch_first(node: Node) -> Samples | None:
    """Of convolutions, pooling, resampling: [N, C, ...] in and out."""
    shape, samples = _only(node)
    return samples if samples.axis == 0 and node.result.shape[0] == shape[0] else None


def reshape(node: Node) -> Samples | None:
    return reshaped(*_only(node), node.result.shape)


def repeat(node: Node) -> Samples | None:
    shape, (axis, each) = _only(node)
    axis += len(node["repeats"]) - len(shape)
    return Samples(axis, each) if node["repeats"][axis] == 1 else None


def permute(node: Node) -> Samples | None:
    shape, samples = _only(node)
    dims = [dim % len(shape) for dim in node["dims"]]
    return Samples(dims.index(samples.axis), samples.repeat)


def transpose(node: Node) -> Samples | None:
    shape, (axis, repeat) = _only(node)
    first, second = (node["dim0"] % len(shape), node["dim1"] % len(shape)) if "dim0" in node.arguments else (0, 1)
    return Samples({first: second, second: first}.get(axis, axis), repeat)


def reduction(node: Node) -> Samples | None:
    """Of sums, means and extrema over ``dim``, none of which may be the samples'."""
    shape, (axis, repeat) = _only(node)
    dims = node.arguments.get("dim")
    if dims is None or dims == []:
        return None
    dims = {dim % len(shape) for dim in ([dims] if isinstance(dims, int) else dims)}
    if axis in dims:
        return None
    return Samples(axis if node.arguments.get("keepdim") else axis - sum(dim < axis for dim in dims), repeat)


def along(node: Node) -> Samples | None:
    """Of ops that pick along ``dim``, which may not be the samples', and keep the number of dimensions."""
    shape, samples = _only(node)
    dims = node["dims"] if "dims" in node.arguments else [node["dim"]]
    # A slice that takes everything changes nothing.
    whole = node.result.shape == shape and node.op._schema.name == "aten::slice"
    return samples if whole or samples.axis not in {dim % len(shape) for dim in dims} else None


def drop(node: Node) -> Samples | None:
    """Of ``select`` and ``unbind``, which remove ``dim``."""
    shape, (axis, repeat) = _only(node)
    dim = node["dim"] % len(shape)
    return None if dim == axis else Samples(axis - (dim < axis), repeat)


def cat(node: Node) -> Samples | None:
    samples = {variable.samples for variable in node.variables}
    dim = node["dim"] % len(node.result.shape)
    first = samples.pop()
    return first if first is not None and not samples and first.axis != dim else None


def stack(node: Node) -> Samples | None:
    samples = {variable.samples for variable in node.variables}
    dim = node["dim"] % len(node.result.shape)
    first = samples.pop()
    return None if first is None or samples else Samples(first.axis + (dim <= first.axis), first.repeat)


def pad(node: Node) -> Samples | None:
    """Of padding, which lists the amounts from the last dimension to the first."""
    shape, samples = _only(node)
    return samples if len(node["pad"]) // 2 < len(shape) - samples.axis else None


def product(left: str, right: str, added: str | None = None) -> Callable[[Node], Samples | None]:
    """Of matrix products [.., M, K] x [.., K, L] (+ added), with the samples among the rows, columns or matrices."""

    def samples_of(node: Node) -> Samples | None:
        found = set()
        for variable in node.variables:
            assert variable.samples is not None
            (axis, repeat), dims = variable.samples, len(variable.shape)
            if added is not None and variable is node[added]:
                axis += len(node.result.shape) - dims
            elif axis == (dims - 1 if variable is node[left] else max(dims - 2, 0)):
                return None  # the sum runs over the samples
            found.add(Samples(axis, repeat))
        samples = found.pop() if len(found) == 1 else None
        # A bias of one row may be spread over the samples.
        return samples if samples and node.result.shape[samples.axis] % samples.repeat == 0 else None

    return samples_of
