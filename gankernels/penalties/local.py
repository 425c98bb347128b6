"""Ops outside the class, one at a time: tangent and source by double backward of the op alone.

For an op y = f(z; theta) with the cotangent c of y and the tangent t of z, let v = J^T c be the op's backward. Then
``<v, t> = <c, J t>``, whose derivative by c is the tangent J t of y, by z the source that the op adds to the cotangent
of z, and by theta its part of the penalty's gradient: one double backward gives all three. The norms whose double
backward takes tens of passes have formulas of their own (:mod:`gankernels.penalties.norms`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gankernels.penalties import norms
from gankernels.penalties.nodes import Node, Variable, call
from gankernels.penalties.tape import TapeError

if TYPE_CHECKING:
    from gankernels.penalties.closed_form import Passes


def tangent(node: Node, passes: Passes) -> list[Tensor | None]:
    """The tangents of the node's outputs; its sources and gradients are added to those of ``passes``."""
    if norms.written_out(node):
        return norms.tangent(node, passes)
    inputs = {v: passes.numbers_of(v, passes.kept).detach().requires_grad_() for v in node.variables}
    weights = {id(w): w.detach().requires_grad_() for w in node.weights}

    with torch.enable_grad():
        results = call(
            node.op, {name: _operand(name, value, inputs, weights) for name, value in node.arguments.items()}
        )
        results = results if isinstance(results, (list, tuple)) else [results]
        pairs = [
            (index, result, passes.cotangent_of(variable, passes.kept).detach().requires_grad_())
            for index, (variable, result) in enumerate(zip(node.outputs, results, strict=True))
            if variable is not None and variable.live
        ]
        outputs, cotangents = [result for _, result, _ in pairs], [c for _, _, c in pairs]
        try:
            v = torch.autograd.grad(outputs, list(inputs.values()), cotangents, create_graph=True, allow_unused=True)
            # an op that is constant between its jumps has a backward of zeros, without a graph
            used = [(vjp, t) for vjp, t in zip(v, map(passes.tangent_of, inputs), strict=True) if _has_graph(vjp)]
            wanted = [*cotangents, *inputs.values(), *weights.values()]
            found: tuple[Tensor | None, ...] = (None,) * len(wanted)
            if used:
                vjps, directions = zip(*used, strict=True)
                found = torch.autograd.grad(vjps, wanted, directions, allow_unused=True)
        except RuntimeError as error:
            raise TapeError(f"{passes.tape.where(node)}: {node.name} has no second derivative ({error})") from error
    tangents: list[Tensor | None] = [None] * len(results)
    for (index, result, _), t in zip(pairs, found, strict=False):
        tangents[index] = torch.zeros_like(result) if t is None else t.detach()
    for variable, source in zip(inputs, found[len(pairs) :], strict=False):
        if source is not None:
            passes.add_source(variable, source.detach())
    for weight, gradient in zip(node.weights, found[len(pairs) + len(inputs) :], strict=False):
        if gradient is not None:
            passes.add_gradient(weight, gradient.detach())
    return tangents


def _operand(name: str, value: Any, inputs: dict[Variable, Tensor], weights: dict[int, Tensor]) -> Any:
    if isinstance(value, list):
        return [_operand(name, item, inputs, weights) for item in value]
    if isinstance(value, Variable):
        return inputs[value]
    if isinstance(value, Tensor):
        # once is enough for running statistics
        return value.clone() if name.startswith("running") else weights.get(id(value), value)
    return value


def _has_graph(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.requires_grad
