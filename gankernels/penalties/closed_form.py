"""The passes over a tape that give the gradient of loss and penalty, without double backprop.

With layer inputs p, cotangents c of sum_i D(x_i) at the layer outputs, g = d sum_i D(x_i) / dx, and tangents t of the
layers in the direction w dP/dg: the directional derivative of sum_i D_i is ``<c, f(t; W)>`` at each layer f, whence the
penalty's gradient ``w dP/dW = wgrad(t, c)``; the loss's is ``wgrad(p, a_i c)``, a_i = dloss / dD_i. The sum is one

    dW = wgrad(a_i p + w t, c).

Etmann, "A closer look at double backpropagation", arXiv 1906.06637, for double backprop as passes of its own and what
vanishes in piecewise-linear networks; Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 6
(1994), for the tangents.

Samples without a penalty have t = 0, and ``wgrad(p, a_i c)`` waits for no tangent: :class:`Passes` can take it in the
reverse pass, which then starts from a_i there, and drop their p and c on the way.

Where some op is not piecewise linear, or mixes samples, the cotangent of the loss differs from a_i c, and each such op
adds a *source* d<c, J t>/dz to it at its input z (:mod:`gankernels.penalties.local`). One more reverse pass, which is
autograd's own, takes both to the parameters.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from gankernels.penalties import local
from gankernels.penalties.at import At, InReverse, channel_sums
from gankernels.penalties.nodes import Node, Variable, call
from gankernels.penalties.reverse import reverse
from gankernels.penalties.samples import Rows, Samples
from gankernels.penalties.tape import Tape, TapeError

if TYPE_CHECKING:
    from gankernels.penalties.rules import Rule


class Passes:
    """The reverse pass and the tangent pass over one tape.

    Args:
        tape: of the forward.
        rows: the penalised samples; all, where the tape mixes samples.
        with_input: keep the sources at the pictures too.
        apart: take the gradients of the other samples in the reverse pass, whose seeds are those of the loss there.

    After :meth:`tangents`, ``gradients`` has the effective weights with their gradients, and ``sources`` the edges of
    the forward's graph with what they add to the cotangents.
    """

    def __init__(self, tape: Tape, rows: Rows, *, with_input: bool = False, apart: bool = False) -> None:
        self.tape, self.rows, self.with_input = tape, rows, with_input
        self.others = rows.others() if apart else None
        self.kept = Rows(0, rows.total, rows.total)  # the samples whose numbers and cotangents are there
        self.loss_scale: Tensor | None = None
        self.tangent_scale: Tensor | None = None
        self.gradients: dict[int, tuple[Tensor, Tensor]] = {}
        self.sources: list[tuple[GradientEdge, Tensor]] = []
        self._makers = {v: node for node in tape.nodes for v in node.outputs if v is not None and v.remade}
        self._cotangents: dict[Variable, Tensor] = {}
        self._sums: dict[Variable, Tensor] = {}  # [N, C], of cotangents [N, C, ...]
        self._tangents: dict[Variable, Tensor] = {}
        self._mixed: dict[Variable, Tensor] = {}

    def reverse(self, seeds: list[Tensor], *, retain_graph: bool) -> Tensor:
        """g = d <seeds, logits> / dx [N, ...], and the cotangents that the rules ask for."""
        live = [v for node in self.tape.nodes for v in node.outputs if v is not None and v.live]
        watched = [v for v in live if v.wants_cotangent or v.wants_sums]
        if self.others is None:
            return reverse(self.tape, seeds, watched, self._keep_cotangent, retain_graph=retain_graph)
        for node in self.tape.nodes:
            self._check(node)
        watched += [v for v in live if v.numbers is not None]
        arrive = functools.partial(self._take_others, self._by_cotangent(), self.others)
        with torch.no_grad(), _below_autocast(self.tape.x):
            g = reverse(self.tape, seeds, watched, arrive, retain_graph=retain_graph)
        pictures = self.tape.pictures
        if pictures.numbers is not None:
            pictures.numbers = self.rows.of(pictures.numbers, pictures.samples)
        self.kept = self.rows
        return g

    def _keep_cotangent(self, variable: Variable, cotangent: Tensor) -> None:
        if variable.wants_sums:
            self._sums[variable] = channel_sums(cotangent)
        if variable.wants_cotangent:
            self._cotangents[variable] = cotangent

    def _by_cotangent(self) -> dict[Variable, list[Node]]:
        """The nodes with weights, by the variable whose cotangent the gradients of these need."""
        nodes: dict[Variable, list[Node]] = {}
        for node in self.tape.nodes:
            if node.rule is not None and node.weights:
                added_to = None if node.rule.adds_to is None else node[node.rule.adds_to]
                where = added_to if added_to is not None and added_to.wants_sums else node.result
                nodes.setdefault(where, []).append(node)
        return nodes

    def _take_others(
        self, by_cotangent: dict[Variable, list[Node]], others: Rows, variable: Variable, cotangent: Tensor
    ) -> None:
        """Where the reverse pass arrives: give the gradients their part of the others, and keep the penalised alone.

        All that take the variable have been passed before, so nobody needs the others' numbers any more.
        """
        self._keep_cotangent(variable, cotangent)
        for node in by_cotangent.get(variable, ()):
            assert node.rule is not None
            assert node.rule.gradients is not None
            node.rule.gradients(InReverse(node, self, others))
        for kept in (self._cotangents, self._sums):
            if variable in kept:
                kept[variable] = self.rows.of(kept[variable], variable.samples).clone()
        if variable.numbers is not None:
            variable.numbers = self.rows.of(variable.numbers, variable.samples).clone()
            variable.numbers_version = variable.numbers._version

    def tangents(self, t: Tensor, loss_scale: Tensor | None = None, tangent_scale: Tensor | None = None) -> None:
        """Carry the direction ``t`` [rows, ...] through the tape, and collect gradients and sources on the way.

        Args:
            t: w dP/dg of the penalised samples, or that divided by ``tangent_scale``.
            loss_scale: a_i [N] of the loss that shares the weight gradients; None for the penalty alone.
            tangent_scale: [1], multiplies the tangents where they are mixed with the layer inputs; None for 1.
        """
        self.loss_scale = None if loss_scale is None else self.kept.of(loss_scale, Samples(0))
        self.tangent_scale = tangent_scale
        self._tangents[self.tape.pictures] = t
        with torch.no_grad(), _below_autocast(t):
            for node in self.tape.nodes:
                self._step(node)

    def _step(self, node: Node) -> None:
        self._check(node)
        for output in node.outputs:
            if output is not None and output.remade and output.live:
                output.numbers = self.numbers_of(output, self.kept)
                output.numbers_version = output.numbers._version
        tangents = local.tangent(node, self) if node.rule is None else self._by_rule(node, node.rule)
        self._release(node)
        for output, t in zip(node.outputs, tangents, strict=False):
            if output is not None and output.live and t is not None:
                self._tangents[output] = t
        for variable in node.variables:
            if variable.last_use == node.index:
                self._tangents.pop(variable, None)

    def _by_rule(self, node: Node, rule: Rule) -> Sequence[Tensor | None]:
        if rule.gradients is not None and node.weights:
            rule.gradients(At(node, self, self.kept))
        # what the tangent does not need makes room for it
        if set(node.keeps) <= {"result", "indices"}:
            self._release(node)
        tangents = rule.tangent(At(node, self, self.rows))
        return [tangents] if isinstance(tangents, Tensor) else tangents

    def _check(self, node: Node) -> None:
        for tensor, version in node.constants:
            if tensor._version != version:
                raise TapeError(f"{self.tape.where(node)}: an operand of {node.name} was changed in place later")
        for variable in node.variables:
            if variable.numbers is not None and variable.numbers._version != variable.numbers_version:
                raise TapeError(f"{self.tape.where(node)}: an input of {node.name} was changed in place later")

    def _release(self, node: Node) -> None:
        """Free what gradients have needed, but for the tangents, as far as no later node needs it."""
        for output in node.outputs:
            if output is not None:
                self._cotangents.pop(output, None)
        for variable in node.variables:
            if variable.last_use == node.index:
                self._mixed.pop(variable, None)
                variable.numbers = None

    def tangent_of(self, variable: Variable) -> Tensor:
        return self._tangents[variable]

    def cotangent_of(self, variable: Variable, rows: Rows) -> Tensor:
        return self._part(self._cotangents[variable], variable, rows)

    def sums_of(self, variable: Variable, rows: Rows) -> Tensor:
        """The cotangent [N, C, ...] of a variable that ``wants_sums``, summed over all but N and C."""
        return self._part(self._sums[variable], variable, rows)

    def numbers_of(self, variable: Variable, rows: Rows) -> Tensor:
        if variable.numbers is not None:
            return self._part(variable.numbers, variable, rows)
        maker = self._makers[variable]
        arguments = maker.arguments.items()
        numbers = {name: self.numbers_of(value, rows) for name, value in arguments if isinstance(value, Variable)}
        return call(maker.op, maker.arguments | numbers)

    def _part(self, tensor: Tensor, variable: Variable, rows: Rows) -> Tensor:
        return tensor if rows.count == self.kept.count else rows.of(tensor, variable.samples)

    def mixed(self, variable: Variable) -> Tensor:
        """``m = a_i p + w t`` of all samples that are kept; of the penalty alone, ``w t``."""
        if self.loss_scale is None:
            return self._tangents[variable]
        if variable not in self._mixed:
            self._mixed[variable] = self._mix(variable, self._tangents[variable])
        return self._mixed[variable]

    def _mix(self, variable: Variable, t: Tensor) -> Tensor:
        p, a = self.numbers_of(variable, self.kept), self.along_samples(variable)
        if self.rows.count == self.kept.count and self.tangent_scale is None:
            return torch.addcmul(t, p, a)
        mixed = p * a  # in fp32, if p is not
        part = self._part(mixed, variable, self.rows)
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


@contextlib.contextmanager
def _below_autocast(like: Tensor) -> Iterator[None]:
    """The ops on a tape run in the dtypes that autocast chose for them."""
    with torch.autocast(like.device.type, enabled=False):
        yield
