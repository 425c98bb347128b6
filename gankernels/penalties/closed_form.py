"""The passes over a tape that give the gradient of loss and penalty, without double backprop.

With layer inputs p, cotangents c of sum_i D(x_i) at the layer outputs, g = d sum_i D(x_i) / dx, and tangents t of the
layers in the direction w dP/dg: the directional derivative of sum_i D_i is ``<c, f(t; W)>`` at each layer f, whence the
penalty's gradient ``w dP/dW = wgrad(t, c)``; the loss's is ``wgrad(p, a_i c)``, a_i = dloss / dD_i. The sum is one

    dW = wgrad(a_i p + w t, c).

Etmann, "A closer look at double backpropagation", arXiv 1906.06637, for double backprop as passes of its own and what
vanishes in piecewise-linear networks; Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 6
(1994), for the tangents.

Where some op is not piecewise linear, or mixes samples, the cotangent of the loss differs from a_i c, and each such op
adds a *source* d<c, J t>/dz to it at its input z (:mod:`gankernels.penalties.local`). One more reverse pass, which is
autograd's own, takes both to the parameters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from gankernels.penalties import local
from gankernels.penalties.nodes import Node, Variable, call
from gankernels.penalties.samples import Samples
from gankernels.penalties.tape import Tape, TapeError


class Rows:
    """The samples that are penalised: ``count`` of ``total``, from ``start`` on. Only these have tangents."""

    def __init__(self, start: int, count: int, total: int) -> None:
        self.start, self.count, self.total = start, count, total
        self.all = count == total

    def of(self, tensor: Tensor, samples: Samples | None) -> Tensor:
        """Their part of a tensor of all samples."""
        if self.all:
            return tensor
        assert samples is not None
        return tensor.narrow(samples.axis, self.start * samples.repeat, self.count * samples.repeat)


class Passes:
    """The reverse pass and the tangent pass over one tape.

    Args:
        tape: of the forward.
        rows: the penalised samples; all, where the tape mixes samples.
        with_input: keep the sources at the pictures too.

    After :meth:`tangents`, ``gradients`` has the effective weights with their gradients, and ``sources`` the edges of
    the forward's graph with what they add to the cotangents.
    """

    def __init__(self, tape: Tape, rows: Rows, *, with_input: bool = False) -> None:
        self.tape, self.rows, self.with_input = tape, rows, with_input
        self.loss_scale: Tensor | None = None
        self.tangent_scale: Tensor | None = None
        self.gradients: dict[int, tuple[Tensor, Tensor]] = {}
        self.sources: list[tuple[GradientEdge, Tensor]] = []
        self.cotangents: dict[Variable, Tensor] = {}
        self.sums: dict[Variable, Tensor] = {}  # [N, C], of cotangents [N, C, ...]
        self._tangents: dict[Variable, Tensor] = {}
        self._mixed: dict[Variable, Tensor] = {}

    def reverse(self, seeds: list[Tensor], *, retain_graph: bool) -> Tensor:
        """g = d <seeds, logits> / dx [N, ...], and the cotangents that the rules ask for."""
        wanted = [v for node in self.tape.nodes for v in node.outputs if v is not None and v.live]
        wanted = [v for v in wanted if (v.wants_cotangent or v.wants_sums) and v.edge is not None]
        inputs = [get_gradient_edge(self.tape.x), *(v.edge for v in wanted if v.edge is not None)]
        g, *cotangents = torch.autograd.grad(
            self.tape.logits, inputs, seeds, retain_graph=retain_graph, allow_unused=True
        )
        if g is None:
            raise TapeError("the logits do not depend on the pictures")
        for variable, cotangent in zip(wanted, cotangents, strict=True):
            if cotangent is None:
                raise TapeError("a part of the forward is not in autograd's graph")
            if variable.wants_sums:
                self.sums[variable] = _channel_sums(cotangent)
            if variable.wants_cotangent:
                self.cotangents[variable] = cotangent
        return g

    def tangents(self, t: Tensor, loss_scale: Tensor | None = None, tangent_scale: Tensor | None = None) -> None:
        """Carry the direction ``t`` [rows, ...] through the tape, and collect gradients and sources on the way.

        Args:
            t: w dP/dg of the penalised samples, or that divided by ``tangent_scale``.
            loss_scale: a_i [N] of the loss that shares the weight gradients; None for the penalty alone.
            tangent_scale: [1], multiplies the tangents where they are mixed with the layer inputs; None for 1.
        """
        self.loss_scale, self.tangent_scale = loss_scale, tangent_scale
        self._tangents[self.tape.pictures] = t
        with torch.no_grad(), _below_autocast(t):
            for node in self.tape.nodes:
                self._step(node)

    def _step(self, node: Node) -> None:
        for tensor, version in node.constants:
            if tensor._version != version:
                raise TapeError(f"{self.tape.where(node)}: an operand of {node.name} was changed in place later")
        for variable in node.variables:
            if variable.numbers is not None and variable.numbers._version != variable.numbers_version:
                raise TapeError(f"{self.tape.where(node)}: an input of {node.name} was changed in place later")
        for output in node.outputs:
            if output is not None and output.remade and output.live:
                self._remake(node, output)
        tangents = local.tangent(node, self) if node.rule is None else node.rule.tangent(At(node, self))
        self.release(node)
        for output, t in zip(node.outputs, [tangents] if isinstance(tangents, Tensor) else tangents, strict=False):
            if output is not None and output.live:
                self._tangents[output] = t
        for variable in node.variables:
            if variable.last_use == node.index:
                self._tangents.pop(variable, None)

    def release(self, node: Node) -> None:
        """Free what weight gradients have needed, but for the tangents, as far as no later node needs it."""
        for output in node.outputs:
            if output is not None:
                self.cotangents.pop(output, None)
        for variable in node.variables:
            if variable.last_use == node.index:
                self._mixed.pop(variable, None)
                variable.numbers = None

    def _remake(self, node: Node, output: Variable) -> None:
        """Make the numbers of a node's output again, from those of its input, which may go with this node."""
        numbers = {name: value.numbers for name, value in node.arguments.items() if isinstance(value, Variable)}
        output.numbers = call(node.op, node.arguments | numbers)
        output.numbers_version = output.numbers._version

    def tangent_of(self, variable: Variable) -> Tensor:
        return self._tangents[variable]

    def numbers_of(self, variable: Variable, *, all_rows: bool = False) -> Tensor:
        assert variable.numbers is not None
        return variable.numbers if all_rows else self.rows.of(variable.numbers, variable.samples)

    def mixed(self, variable: Variable) -> Tensor:
        """``m = a_i p + w t`` of all samples; of the penalty alone, ``w t``."""
        if self.loss_scale is None:
            return self._tangents[variable]
        if variable not in self._mixed:
            self._mixed[variable] = self._mix(variable, self._tangents[variable])
        return self._mixed[variable]

    def _mix(self, variable: Variable, t: Tensor) -> Tensor:
        assert variable.numbers is not None
        p, a = variable.numbers, self.along_samples(variable)
        if self.rows.all and self.tangent_scale is None:
            return torch.addcmul(t, p, a)
        mixed = p * a  # in fp32, if p is not
        part = self.rows.of(mixed, variable.samples)
        if self.tangent_scale is None:
            part.add_(t)
        else:
            part.addcmul_(t, self.tangent_scale)
        return mixed.to(p.dtype)

    def along_samples(self, variable: Variable) -> Tensor:
        """a_i, shaped to be multiplied with a tensor of ``variable``'s shape."""
        assert self.loss_scale is not None
        assert variable.samples is not None
        a, (axis, repeat) = self.loss_scale, variable.samples
        if len(a) > 1:
            a = (a if repeat == 1 else a.repeat_interleave(repeat)).view(-1, *[1] * (len(variable.shape) - axis - 1))
        return a if variable.dtype.itemsize < 8 else a.double()

    def add_source(self, variable: Variable, source: Tensor) -> None:
        """Add to the cotangent of a variable, in the reverse pass that follows."""
        if variable.edge is not None and (self.with_input or variable is not self.tape.pictures):
            self.sources.append((variable.edge, source))

    def add_gradient(self, weight: Tensor, gradient: Tensor) -> None:
        """Add to the gradient of an effective weight."""
        gradient = gradient.sum_to_size(weight.shape).to(weight.dtype)
        held = self.gradients.get(id(weight))
        self.gradients[id(weight)] = (weight, gradient if held is None else held[1] + gradient)


class At:
    """A node in the tangent pass: what a rule sees."""

    def __init__(self, node: Node, passes: Passes) -> None:
        self.node, self.passes = node, passes

    def __getitem__(self, name: str) -> Any:
        return self.node.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.node.arguments.get(name, default)

    @property
    def shape(self) -> list[int]:
        """Of the output's tangent, which is that of the output but for the number of samples."""
        result, rows = self.node.result, self.passes.rows
        shape = list(result.shape)
        if not rows.all:
            assert result.samples is not None
            shape[result.samples.axis] = rows.count * result.samples.repeat
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

    def value(self, name: str, *, all_rows: bool = False) -> Tensor:
        """The numbers of an argument, or of the ``"result"``, that the rule keeps."""
        variable = self.node.result if name == "result" else self[name]
        return self.passes.numbers_of(variable, all_rows=all_rows)

    def constant(self, value: Any) -> Any:
        """What is broadcast against the output; of a tensor with an entry for each sample, those of the penalised."""
        result, rows = self.node.result, self.passes.rows
        if not isinstance(value, Tensor) or rows.all:
            return value
        assert result.samples is not None
        axis = result.samples.axis - len(result.shape)
        if value.dim() < -axis or value.shape[axis] != result.shape[axis]:
            return value
        return rows.of(value, Samples(axis + value.dim(), result.samples.repeat))

    def matrices(self, name: str) -> Tensor:
        """A constant factor of a matrix product; of one for each sample, those of the penalised."""
        result, rows, value = self.node.result, self.passes.rows, self[name]
        batched = len(result.shape) == 3 and result.samples is not None and result.samples.axis == 0
        return rows.of(value, result.samples) if batched else value

    def wants(self, name: str) -> bool:
        """Is this argument an effective weight?"""
        return isinstance(self[name], Tensor) and self[name].requires_grad

    def cotangent(self) -> Tensor:
        """c at the output, of all samples."""
        return self.passes.cotangents[self.node.result]

    def scaled_cotangent(self) -> Tensor | None:
        """``a_i c``, what an added term gets; None for the penalty alone, of which it gets nothing."""
        if self.passes.loss_scale is None:
            return None
        return self.cotangent() * self.passes.along_samples(self.node.result)

    def channel_sums(self, c: Tensor) -> Tensor | None:
        """``a_i c`` of c [N, C, ...] summed over all but C, in one pass over c; None for the penalty alone."""
        return None if self.passes.loss_scale is None else self._weighed(_channel_sums(c))

    def channel_sums_at(self, name: str) -> Tensor | None:
        """The same of the cotangent of an argument whose sums were wanted."""
        sums = self.passes.sums.get(self[name])
        return None if sums is None or self.passes.loss_scale is None else self._weighed(sums)

    def _weighed(self, sums: Tensor) -> Tensor:
        assert self.passes.loss_scale is not None
        return self.passes.loss_scale.to(sums.dtype) @ sums

    def mixed(self, name: str) -> Tensor:
        """``a_i p + w t`` of an argument p, of all samples."""
        return self.passes.mixed(self[name])

    def release(self) -> None:
        """Nothing but tangents is needed from here on."""
        self.passes.release(self.node)

    def give(self, name: str, gradient: Tensor | None, factor: float = 1) -> None:
        """Add ``factor * gradient`` to an effective weight's."""
        self.add_gradient(self[name], gradient if gradient is None or factor == 1 else gradient * factor)

    def add_gradient(self, weight: Tensor, gradient: Tensor | None) -> None:
        if gradient is not None:
            self.passes.add_gradient(weight, gradient)


def _channel_sums(c: Tensor) -> Tensor:
    """c [N, C, ...] summed over all but N and C, in fp32 (fp64 for fp64)."""
    wide = torch.promote_types(c.dtype, torch.float32)
    return c.to(wide) if c.dim() == 2 else c.sum(tuple(range(2, c.dim())), dtype=wide)


@contextlib.contextmanager
def _below_autocast(like: Tensor) -> Iterator[None]:
    """The ops on a tape run in the dtypes that autocast chose for them."""
    with torch.autocast(like.device.type, enabled=False):
        yield
