"""The tangents of the ops of :mod:`gankernels.penalties.rules`, one function for each kind of op.

Each maps the tangents of its inputs to those of its outputs. At kinks, tangents pass where autograd passes gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gankernels.ops.conv_transpose2d import fused
from gankernels.penalties.gradients import bias_act_backward, factors_of_sum
from gankernels.penalties.nodes import Variable, call, depends

if TYPE_CHECKING:
    from gankernels.penalties.at import At

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
    """Sums of self and other, either of which may be a constant or a weight."""

    def tangent(at: At) -> Tensor:
        factors = factors_of_sum(at, of_self, of_other)
        terms = [_scaled(at.t(name), factor) for name, factor in factors.items() if isinstance(at[name], Variable)]
        return sum(terms[1:], terms[0]).expand(at.shape)

    return tangent


def mul(at: At) -> Tensor:
    name, other = ("self", "other") if isinstance(at["self"], Variable) else ("other", "self")
    return at.t(name) * at.constant(at[other])


def div(at: At) -> Tensor:
    return at.t("self") / at.constant(at["other"])


def cat(at: At) -> Tensor:
    return torch.cat(at.t("tensors"), at["dim"])


# ---- Convolutions and matrix products ----


def convolution(x: str) -> Callable[[At], Tensor]:
    """ATen's, and that of :mod:`gankernels.ops._convolution`, whose input is called ``x``."""

    def tangent(at: At) -> Tensor:
        return call(at.node.op, at.node.arguments | {x: at.t(x), "bias": None})

    return tangent


def triton_transposed_convolution(at: At) -> Tensor:
    """That of :mod:`gankernels.ops.conv_transpose2d.fused`: y = act(z), whose kinks y tells."""
    ops: Any = torch.ops.gankernels_triton
    activation, slope, by = at["activation"], at["slope"], at["weight_gradient"]
    geometry = [at[name] for name in ("stride", "padding", "output_padding")]
    t = ops.conv_transpose2d_forward(at.t("x"), at["weight"], None, *geometry, "none", 0.0, by)
    return fused.gated(ops, t, None if activation == "none" else at.value("result"), activation, slope)[0]


def product(left: str, right: str, added: str | None = None) -> Callable[[At], Tensor]:
    """left @ right, or beta * added + alpha * left @ right."""

    def tangent(at: At) -> Tensor:
        alpha, beta = at.get("alpha", 1), at.get("beta", 1)
        terms = []
        if isinstance(at[left], Variable):
            terms.append(_scaled(at.t(left) @ at.matrices(right), alpha))
        elif isinstance(at[right], Variable):
            terms.append(_scaled(at.matrices(left) @ at.t(right), alpha))
        if added is not None and isinstance(at[added], Variable):
            terms.append(_scaled(at.t(added), beta))
        return sum(terms[1:], terms[0]).expand(at.shape)

    return tangent


def _scaled(tensor: Tensor, factor: float) -> Tensor:
    return tensor if factor == 1 else tensor * factor


# ---- Kinks ----


def leaky_relu(at: At) -> Tensor:
    (kept,) = at.node.keeps
    return aten.leaky_relu_backward(at.t("self"), at.value(kept), at["negative_slope"], kept == "result")


def hardtanh(at: At) -> Tensor:
    (kept,) = at.node.keeps
    return aten.hardtanh_backward(at.t("self"), at.value(kept), at["min_val"], at["max_val"])


def clamp(at: At) -> Tensor:
    z = at.value("self")
    inside = torch.ones_like(z, dtype=torch.bool)
    if at.get("min") is not None:
        inside &= z >= at.constant(at["min"])
    if at.get("max") is not None:
        inside &= z <= at.constant(at["max"])
    return at.t("self") * inside


def prelu(at: At) -> Tensor:
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
    backward, saved, bias, formula = bias_act_backward(at)
    return backward(at.t("x"), saved, bias, *formula, False)[0]
