"""The gradients of the effective weights of the ops of :mod:`gankernels.penalties.rules`.

Each function gives those of a node's weights from the mixed input ``m = a_i p + w t`` and the cotangent c of the output
(:mod:`gankernels.penalties.closed_form`). What is added, and not multiplied, gets that of the loss, ``a_i c``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gankernels.ops.bias_act.op import saved_for_backward
from gankernels.ops.conv_transpose2d import fused
from gankernels.penalties.nodes import Node, Variable

if TYPE_CHECKING:
    from gankernels.penalties.at import At

aten = torch.ops.aten


# ---- Operands that are broadcast against the output ----


def add(of_self: int, of_other: int) -> Callable[[At], None]:
    """Sums of self and other, in each of which alpha belongs to the subtrahend."""

    def gradient(at: At) -> None:
        for name, factor in factors_of_sum(at, of_self, of_other).items():
            if at.wants(name):
                at.give_operand(at[name], at.scaled_cotangent(), factor)

    return gradient


def factors_of_sum(at: At, of_self: int, of_other: int) -> dict[str, Any]:
    """What self and other are multiplied by."""
    alpha = at.get("alpha", 1)
    return {"self": of_self * (alpha if of_self < 0 else 1), "other": of_other * (1 if of_self < 0 else alpha)}


def mul(at: At) -> None:
    name, other = ("self", "other") if isinstance(at["self"], Variable) else ("other", "self")
    if at.wants(other):
        at.give_operand(at[other], at.cotangent() * at.mixed(name))


def div(at: At) -> None:
    if at.wants("other"):
        # d(z / v) / dv = -z / v^2
        v = at.constant(at["other"])
        at.give_operand(at["other"], -at.cotangent() * at.mixed("self") / (v * v))


def cat(at: At) -> None:
    dim, start = at["dim"] % len(at.node.result.shape), 0
    for item in at["tensors"]:
        c = at.scaled_cotangent() if isinstance(item, Tensor) and item.requires_grad else None
        if c is not None:
            at.give_operand(item, c.narrow(dim, start, item.shape[dim]))
        start += item.shape[dim]


def prelu(at: At) -> None:
    if at.wants("weight"):
        at.give_operand(at["weight"], at.cotangent() * at.mixed("self") * (at.value("self") <= 0))


# ---- Convolutions and matrix products ----


_GEOMETRY = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")


def convolution(x: str) -> Callable[[At], None]:
    """ATen's, and that of :mod:`gankernels.ops._convolution`, whose input is called ``x``."""

    def gradient(at: At) -> None:
        if at.wants("weight"):
            geometry = [at[name] for name in _GEOMETRY]
            at.give("weight", _of_convolution(at.cotangent(), at.mixed(x), at["weight"], geometry))
        if at.wants("bias"):
            at.give("bias", at.channel_sums(at.cotangent()))

    return gradient


def _of_convolution(c: Tensor, x: Tensor, weight: Tensor, geometry: list[Any]) -> Tensor:
    """That of a convolution of any dimension; of two, by our op, which knows a faster way for some."""
    if weight.dim() == 4:
        gradient, _ = torch.ops.gankernels_library.convolution_weight_gradient(c, x, weight.shape, False, *geometry)
        return gradient
    return aten.convolution_backward(c, x, weight, None, *geometry, [False, True, False])[1]


def triton_transposed_convolution(at: At) -> None:
    """That of :mod:`gankernels.ops.conv_transpose2d.fused`: y = act(z), whose kinks y tells."""
    if not (at.wants("weight") or at.wants("bias")):
        return
    ops: Any = torch.ops.gankernels_triton
    y = None if at["activation"] == "none" else at.value("result")
    dz, _ = fused.gated(ops, at.cotangent(), y, at["activation"], at["slope"])
    if at.wants("weight"):
        geometry = [at[name] for name in ("stride", "padding", "output_padding")]
        by, m = at["weight_gradient"], at.mixed("x")
        at.give("weight", fused.weight_gradient(ops, by, dz, m, at["weight"].shape, geometry))
    if at.wants("bias"):
        at.give("bias", at.channel_sums(dz))


def product(left: str, right: str, added: str | None = None) -> Callable[[At], None]:
    """Of beta * added + alpha * left @ right."""

    def gradient(at: At) -> None:
        alpha = at.get("alpha", 1)
        if isinstance(at[left], Variable) and at.wants(right):
            at.give_matrices(right, at.mixed(left).mT @ at.cotangent(), alpha)
        elif isinstance(at[right], Variable) and at.wants(left):
            at.give_matrices(left, at.cotangent() @ at.mixed(right).mT, alpha)
        if added is not None and at.wants(added):
            at.give_operand(at[added], at.scaled_cotangent(), at.get("beta", 1))

    return gradient


# ---- Our own activation ----


def bias_act(at: At) -> None:
    if not at.wants("bias"):
        return
    if at.node["x"].wants_sums:
        at.give("bias", at.channel_sums_at("x"))
        return
    c = at.scaled_cotangent()
    if c is not None:
        backward, saved, bias, formula = bias_act_backward(at)
        at.give("bias", backward(c.to(at.node["x"].dtype), saved, bias, *formula, True)[1])


def bias_act_backward(at: At) -> tuple[Any, Tensor | None, Tensor | None, list[Any]]:
    """The op's own backward, and what it takes: from nothing, from y where that has the sign of x + bias, or from x."""
    formula = [at[name] for name in ("activation", "slope", "gain", "clamp", "dim")]
    kept = kept_for_bias_act(at.node)
    bias = at["bias"] if kept == ("x",) else None
    saved = at.value(*kept) if kept else None
    return getattr(torch.ops, at.node.op.namespace).bias_act_backward, saved, bias, formula


def kept_for_bias_act(node: Node) -> tuple[str, ...]:
    """The argument or result whose numbers :func:`bias_act_backward` needs."""
    saved = saved_for_backward(*(node[name] for name in ("activation", "slope", "gain", "clamp")))
    return {"nothing": (), "y": ("result",), "x": ("x",)}[saved]
