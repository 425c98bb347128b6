"""The tangents and weight gradients of the ops of :mod:`gankernels.penalties.rules`, one function for each kind of op.

Each maps the tangents of its inputs to those of its outputs, and adds the gradients of its effective weights, with the
mixed input ``m = a_i p + w t`` and the cotangent c of the output (:mod:`gankernels.penalties.closed_form`). At kinks,
tangents pass where autograd passes gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gankernels.ops.bias_act.op import saved_for_backward
from gankernels.ops.conv_transpose2d import fused
from gankernels.penalties.nodes import Node, Variable, call, depends

if TYPE_CHECKING:
    from gankernels.penalties.closed_form import At

aten = torch.ops.aten


# ---- Linear maps without weights ----


def replay(at: At) -> Any:
    """The op itself, on tangents."""
    tangents = {name: at.t(name) for name, value in at.node.arguments.items() if depends(value)}
    return call(at.node.op, at.node.arguments | tangents)


def reshape(at: At) -> Tensor:
    return at.t("self").reshape(at.shape)


def expand(at: At) -> Tensor:
    return at.t("self").expand(at.shape)


def copy(at: At) -> Tensor:
    return at.t("src").to(at.node.result.dtype).expand(at.shape)


def pad(at: At) -> Tensor:
    # what is padded is a constant
    return aten.constant_pad_nd(at.t("self"), at["pad"], 0)


def dropout(at: At) -> list[Tensor | None]:
    keep = 1 - at["p"] if at["train"] is not False else 1.0
    mask = at.constant(at.node.indices)
    return [at.t("input") * mask / keep if mask is not None and keep > 0 else at.t("input"), None]


# ---- Sums and products with constants and weights ----


def add(of_self: int, of_other: int) -> Callable[[At], Tensor]:
    """Sums of self and other, either of which may be a constant or a weight; alpha belongs to the subtrahend."""

    def tangent(at: At) -> Tensor:
        alpha = at.get("alpha", 1)
        factors = {"self": of_self * (alpha if of_self < 0 else 1), "other": of_other * (1 if of_self < 0 else alpha)}
        terms = []
        for name, factor in factors.items():
            if isinstance(at[name], Variable):
                terms.append(_scaled(at.t(name), factor))
            elif at.wants(name):
                at.give(name, at.scaled_cotangent(), factor)
        return sum(terms[1:], terms[0]).expand(at.shape)

    return tangent


def mul(at: At) -> Tensor:
    name, other = ("self", "other") if isinstance(at["self"], Variable) else ("other", "self")
    if at.wants(other):
        at.give(other, at.cotangent() * at.mixed(name))
    return at.t(name) * at.constant(at[other])


def div(at: At) -> Tensor:
    other = at["other"]
    if at.wants("other"):
        # d(z / v) / dv = -z / v^2
        at.give("other", -at.cotangent() * at.mixed("self") / (other * other))
    return at.t("self") / at.constant(other)


def cat(at: At) -> Tensor:
    dim, start = at["dim"] % len(at.node.result.shape), 0
    for item in at["tensors"]:
        c = at.scaled_cotangent() if isinstance(item, Tensor) and item.requires_grad else None
        if c is not None:
            at.add_gradient(item, c.narrow(dim, start, item.shape[dim]))
        start += item.shape[dim]
    return torch.cat(at.t("tensors"), dim)


# ---- Convolutions and matrix products ----


_GEOMETRY = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")


def convolution(at: At) -> Tensor:
    """ATen's."""
    geometry = [at[name] for name in _GEOMETRY]
    if at.wants("weight"):
        at.give("weight", _weight_gradient(at.cotangent(), at.mixed("input"), at["weight"], geometry))
    if at.wants("bias"):
        at.give("bias", at.channel_sums(at.cotangent()))
    at.release()
    return aten.convolution(at.t("input"), at["weight"], None, *geometry)


def _weight_gradient(c: Tensor, x: Tensor, weight: Tensor, geometry: list[Any]) -> Tensor:
    """That of a convolution of any dimension; of two, by our op, which knows a faster way for some."""
    if weight.dim() == 4:
        gradient, _ = torch.ops.gankernels_library.convolution_weight_gradient(c, x, weight.shape, False, *geometry)
        return gradient
    return aten.convolution_backward(c, x, weight, None, *geometry, [False, True, False])[1]


def library_convolution(at: At) -> Tensor:
    """That of :mod:`gankernels.ops._convolution`."""
    ops, geometry = torch.ops.gankernels_library, [at[name] for name in _GEOMETRY]
    if at.wants("weight"):
        at.give("weight", _weight_gradient(at.cotangent(), at.mixed("x"), at["weight"], geometry))
    if at.wants("bias"):
        at.give("bias", at.channel_sums(at.cotangent()))
    at.release()
    return ops.convolution(at.t("x"), at["weight"], None, *geometry)


def triton_transposed_convolution(at: At) -> Tensor:
    """That of :mod:`gankernels.ops.conv_transpose2d.fused`: y = act(z), whose kinks y tells."""
    ops: Any = torch.ops.gankernels_triton
    activation, slope, by = at["activation"], at["slope"], at["weight_gradient"]
    geometry = [at[name] for name in ("stride", "padding", "output_padding")]
    if at.wants("weight") or at.wants("bias"):
        y = None if activation == "none" else at.value("result", all_rows=True)
        dz, _ = fused.gated(ops, at.cotangent(), y, activation, slope)
        if at.wants("weight"):
            at.give("weight", fused.weight_gradient(ops, by, dz, at.mixed("x"), at["weight"].shape, geometry))
        if at.wants("bias"):
            at.give("bias", at.channel_sums(dz))
        del dz
    at.release()
    t = ops.conv_transpose2d_forward(at.t("x"), at["weight"], None, *geometry, "none", 0.0, by)
    return fused.gated(ops, t, None if activation == "none" else at.value("result"), activation, slope)[0]


def product(left: str, right: str, added: str | None = None) -> Callable[[At], Tensor]:
    """left @ right, or beta * added + alpha * left @ right."""

    def tangent(at: At) -> Tensor:
        alpha, beta = at.get("alpha", 1), at.get("beta", 1)
        terms = []
        if isinstance(at[left], Variable):
            if at.wants(right):
                at.give(right, at.mixed(left).mT @ at.cotangent(), alpha)
            terms.append(_scaled(at.t(left) @ at.matrices(right), alpha))
        elif isinstance(at[right], Variable):
            if at.wants(left):
                at.give(left, at.cotangent() @ at.mixed(right).mT, alpha)
            terms.append(_scaled(at.matrices(left) @ at.t(right), alpha))
        if added is not None and isinstance(at[added], Variable):
            terms.append(_scaled(at.t(added), beta))
        elif added is not None and at.wants(added):
            at.give(added, at.scaled_cotangent(), beta)
        return sum(terms[1:], terms[0]).expand(at.shape)

    return tangent


def _scaled(tensor: Tensor, factor: float) -> Tensor:
    return tensor if factor == 1 else tensor * factor


# ---- Kinks ----


def clamp(at: At) -> Tensor:
    z = at.value("self")
    inside = torch.ones_like(z, dtype=torch.bool)
    if at.get("min") is not None:
        inside &= z >= at.constant(at["min"])
    if at.get("max") is not None:
        inside &= z <= at.constant(at["max"])
    return at.t("self") * inside


def prelu(at: At) -> Tensor:
    if at.wants("weight"):
        at.give("weight", at.cotangent() * at.mixed("self") * (at.value("self", all_rows=True) <= 0))
    return torch.where(at.value("self") > 0, at.t("self"), at.constant(at["weight"]) * at.t("self"))


def where(at: At) -> Tensor:
    chosen = [at.t(name) if isinstance(at[name], Variable) else 0 for name in ("self", "other")]
    return torch.where(at.constant(at["condition"]), chosen[0], chosen[1]).expand(at.shape)


def extremum(sign: int) -> Callable[[At], Tensor]:
    def tangent(at: At) -> Tensor:
        numbers: list[Any] = []
        tangents: list[Any] = []
        for name in ("self", "other"):
            varies = isinstance(at[name], Variable)
            numbers.append(at.value(name) if varies else at.constant(at[name]))
            tangents.append(at.t(name) if varies else 0)
        share = (1 + sign * (numbers[0] - numbers[1]).sign()) / 2  # autograd halves the gradient of a tie
        return tangents[0] * share + tangents[1] * (1 - share)

    return tangent


def reduced_extremum(at: At) -> Tensor:
    """amax and amin share the gradient among ties."""
    keep = {"dim": at["dim"], "keepdim": True}
    chosen = at.value("self") == call(at.node.op, {"self": at.value("self"), **keep})
    t = (at.t("self") * chosen).sum(**keep) / chosen.sum(**keep)
    return t.reshape(at.shape)


def picked(at: At) -> list[Tensor | None]:
    """max and min along a dimension."""
    dim, indices = at["dim"], at.constant(at.node.indices)
    if at["keepdim"]:
        return [at.t("self").gather(dim, indices), None]
    return [at.t("self").gather(dim, indices.unsqueeze(dim)).squeeze(dim), None]


def max_pool(at: At) -> list[Tensor | None]:
    t, indices = at.t("self"), at.constant(at.node.indices)
    spatial = -(t.dim() - 2) if t.dim() > 2 else -1
    picked = t.flatten(spatial).gather(-1, indices.flatten(spatial))
    return [picked.reshape(indices.shape), None]


# ---- Our own activation ----


def bias_act(at: At) -> Tensor:
    backward = getattr(torch.ops, at.node.op.namespace).bias_act_backward
    formula = [at[name] for name in ("activation", "slope", "gain", "clamp", "dim")]
    # as its own backward: from nothing, from y where that has the sign of x + bias, else from x and bias
    saved = {"nothing": None, "y": "result", "x": "x"}[saved_for_backward(*formula[:4])]
    bias = at["bias"] if saved == "x" else None
    if at.wants("bias") and at.node["x"].wants_sums:
        at.give("bias", at.channel_sums_at("x"))
    elif at.wants("bias"):
        c = at.scaled_cotangent()
        if c is not None:
            at.give(
                "bias",
                backward(c.to(at.node["x"].dtype), saved and at.value(saved, all_rows=True), bias, *formula, True)[1],
            )
    return backward(at.t("x"), saved and at.value(saved), bias, *formula, False)[0]


def kept_for_bias_act(node: Node) -> tuple[str, ...]:
    """The argument or result whose numbers :func:`bias_act` needs."""
    saved = saved_for_backward(*(node[name] for name in ("activation", "slope", "gain", "clamp")))
    return {"nothing": (), "y": ("result",), "x": ("x",)}[saved]
