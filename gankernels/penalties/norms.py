"""Group norm and layer norm, written out: their tangents and sources without a double backward.

For ``x_hat = (x - mean) r``, ``r = (var + eps)^(-1/2)`` over M entries, tangents t of x and cotangents ``c = gain dy``,
let ``t0 = t - mean(t)``, ``c0 = c - mean(c)``, ``a = mean(x_hat t0)``, ``b = mean(x_hat c0)``. Then

    J t = r (t0 - a x_hat),
    d<c, J t>/dx = -r^2 (b t0 + a c0 + (mean(c0 t0) - 3 a b) x_hat),

by ``dr/dx = -r^2 x_hat / M``; J is that of Ba et al., arXiv 1607.06450, and Wu and He, arXiv 1803.08494.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gankernels.penalties.nodes import Node, call

if TYPE_CHECKING:
    from gankernels.penalties.closed_form import Passes

_NORMS = ("aten::native_group_norm", "aten::native_layer_norm")


def written_out(node: Node) -> bool:
    """Whether :func:`tangent` knows this node: a norm, whose statistics nobody else takes."""
    alone = not any(output is not None and output.live for output in node.outputs[1:])
    return node.name in _NORMS and [node["input"]] == node.variables and alone


def tangent(node: Node, passes: Passes) -> list[Tensor | None]:
    """The tangent of the output; the source and the gradient of the gain are added to those of ``passes``."""
    variable, gain = node["input"], node["weight"]
    x, t = passes.numbers_of(variable, passes.kept).detach(), passes.tangent_of(variable)
    dy = passes.cotangent_of(node.result, passes.kept)
    shape, dtype = x.shape, torch.promote_types(x.dtype, torch.float32)
    wide = None if gain is None else gain.detach().to(dtype)
    x_hat, _, r = call(node.op, node.arguments | {"input": x.to(dtype), "weight": None, "bias": None})
    t, dy = t.to(dtype), dy.to(dtype)
    if node.name == "aten::native_group_norm":
        grouped = (node["group"], shape[1] // node["group"])
        x_hat, t, dy = (v.unflatten(1, grouped) for v in (x_hat, t, dy))  # [N, G, C / G, ...], a view in any layout
        ones = [1] * (x_hat.dim() - 2)
        wide, r = None if wide is None else wide.view(*grouped, *ones[1:]), r.view(*r.shape, *ones)
        dims = tuple(range(2, x_hat.dim()))
    else:
        t, dy = t.contiguous(), dy.contiguous()  # as the op makes x
        dims = tuple(range(-len(node["normalized_shape"]), 0))

    def mean(v: Tensor) -> Tensor:
        return v.mean(dims, keepdim=True)

    c = dy if wide is None else dy * wide
    t0, c0 = t - mean(t), c - mean(c)
    a, b = mean(x_hat * t0), mean(x_hat * c0)
    third = mean(c0 * t0).sub_(3 * a * b)
    squared = -(r * r)
    source = c0.mul_(a * squared).addcmul_(t0, b * squared).addcmul_(x_hat, third * squared)
    jt = t0.mul_(r).addcmul_(x_hat, -a * r)
    passes.add_source(variable, source.reshape(shape).to(variable.dtype))
    if gain is not None and wide is not None and gain.requires_grad:
        passes.add_gradient(gain, (dy * jt).sum_to_size(wide.shape).reshape(gain.shape))
    return [(jt if wide is None else jt.mul_(wide)).reshape(shape).to(variable.dtype), None, None]
