"""A node in a pass over the tape: what the functions of tangents and of gradients see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gankernels.penalties.nodes import Node, Variable
from gankernels.penalties.samples import Rows, Samples

if TYPE_CHECKING:
    from gankernels.penalties.closed_form import Passes


class At:
    """A node in the tangent pass, or at its weights' gradients, of the samples ``rows``."""

    def __init__(self, node: Node, passes: Passes, rows: Rows) -> None:
        self.node, self.passes, self.rows = node, passes, rows

    def __getitem__(self, name: str) -> Any:
        return self.node.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.node.arguments.get(name, default)

    # ---- For tangents ----

    @property
    def shape(self) -> list[int]:
        """Of the output's tangent, which is that of the output but for the number of samples."""
        result = self.node.result
        shape = list(result.shape)
        if not self.rows.all:
            assert result.samples is not None
            shape[result.samples.axis] = self.rows.count * result.samples.repeat
        return shape

    def t(self, name: str) -> Any:
        """The tangent of an argument; of a list, the tangents, zero where an item is a constant."""
        value = self[name]
        if isinstance(value, Variable):
            return self.passes.tangent_of(value)
        return [
            self.passes.tangent_of(item) if isinstance(item, Variable) else torch.zeros_like(self.constant(item))
            for item in value
        ]

    # ---- For both ----

    def value(self, name: str) -> Tensor:
        """The numbers of an argument, or of the ``"result"``, that the rule keeps."""
        return self.passes.numbers_of(self.node.result if name == "result" else self[name], self.rows)

    def constant(self, value: Any) -> Any:
        """What is broadcast against the output; of a tensor with an entry for each sample, those of the rows."""
        samples = self._samples_of_operand(value)
        return value if samples is None else self.rows.of(value, samples)

    def _samples_of_operand(self, value: Any) -> Samples | None:
        """Where an operand that is broadcast against the output has entries of single samples, if it has."""
        if not isinstance(value, Tensor) or self.rows.all:
            return None
        result = self.node.result
        assert result.samples is not None
        axis = result.samples.axis - len(result.shape)
        if value.dim() < -axis or value.shape[axis] != result.shape[axis]:
            return None
        return Samples(axis + value.dim(), result.samples.repeat)

    def matrices(self, name: str) -> Tensor:
        """A constant factor of a matrix product; of one for each sample, those of the rows."""
        samples = self._samples_of_matrices()
        return self[name] if samples is None else self.rows.of(self[name], samples)

    def _samples_of_matrices(self) -> Samples | None:
        """Where the constant factor of a matrix product has a matrix for each sample, if it has."""
        result = self.node.result
        batched = len(result.shape) == 3 and result.samples is not None and result.samples.axis == 0
        return None if self.rows.all or not batched else result.samples

    # ---- For gradients ----

    def wants(self, name: str) -> bool:
        """Is this argument an effective weight?"""
        return isinstance(self[name], Tensor) and self[name].requires_grad

    def cotangent(self) -> Tensor:
        """c at the output."""
        return self.passes.cotangent_of(self.node.result, self.rows)

    def mixed(self, name: str) -> Tensor:
        """``a_i p + w t`` of an argument p."""
        return self.passes.mixed(self[name])

    def scaled_cotangent(self) -> Tensor | None:
        """``a_i c``, what an added term gets; None for the penalty alone, of which it gets nothing."""
        if self.passes.loss_scale is None:
            return None
        return self.cotangent() * self.passes.along_samples(self.node.result)

    def channel_sums(self, c: Tensor) -> Tensor | None:
        """``a_i c`` of c [N, C, ...] summed over all but C, in one pass over c; None for the penalty alone."""
        return None if self.passes.loss_scale is None else self._weighed(channel_sums(c))

    def channel_sums_at(self, name: str) -> Tensor | None:
        """The same of the cotangent of an argument whose sums were wanted."""
        return None if self.passes.loss_scale is None else self._weighed(self.passes.sums_of(self[name], self.rows))

    def _weighed(self, sums: Tensor) -> Tensor:
        assert self.passes.loss_scale is not None
        return self.passes.loss_scale.to(sums.dtype) @ sums

    def give(self, name: str, gradient: Tensor | None) -> None:
        """Add to the gradient of an effective weight that all samples share."""
        if gradient is not None:
            self.passes.add_gradient(self[name], gradient)

    def give_operand(self, weight: Tensor, gradient: Tensor | None, factor: float = 1) -> None:
        """Add ``factor * gradient`` to that of an effective weight that is broadcast against the output."""
        self._give_entries(weight, gradient, factor, self._samples_of_operand(weight))

    def give_matrices(self, name: str, gradient: Tensor | None, factor: float) -> None:
        """Add ``factor * gradient`` to that of a factor of a matrix product."""
        self._give_entries(self[name], gradient, factor, self._samples_of_matrices())

    def _give_entries(self, weight: Tensor, gradient: Tensor | None, factor: float, samples: Samples | None) -> None:
        if gradient is None:
            return
        gradient = gradient if factor == 1 else gradient * factor
        if samples is not None:
            # the entries of other samples get theirs in another pass
            part = gradient.sum_to_size(self.rows.of(weight, samples).shape)
            gradient = part.new_zeros(weight.shape)
            self.rows.of(gradient, samples).copy_(part)
        self.passes.add_gradient(weight, gradient)


class InReverse(At):
    """A node in the reverse pass, at its weights' gradients of samples without a penalty: ``wgrad(p, c)``.

    These samples' cotangents are those of the loss already, ``a_i c``.
    """

    def mixed(self, name: str) -> Tensor:
        return self.passes.numbers_of(self[name], self.rows)

    def scaled_cotangent(self) -> Tensor:
        return self.cotangent()

    def channel_sums(self, c: Tensor) -> Tensor:
        return channel_sums(c).sum(0)

    def channel_sums_at(self, name: str) -> Tensor:
        return self.passes.sums_of(self[name], self.rows).sum(0)


def channel_sums(c: Tensor) -> Tensor:
    """c [N, C, ...] summed over all but N and C, in fp32 (fp64 for fp64)."""
    wide = torch.promote_types(c.dtype, torch.float32)
    return c.to(wide) if c.dim() == 2 else c.sum(tuple(range(2, c.dim())), dtype=wide)
