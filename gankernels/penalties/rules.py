"""How tangents and weight gradients go through each op of the class: one line an op.

The class: per sample, the op is linear, or linear on each side of kinks, in what depends on the pictures. A rule maps
the tangents of its inputs to those of its outputs, and adds the gradients of its effective weights, with the mixed
input ``m = a_i p + w t`` and the cotangent c of the output (:mod:`gankernels.penalties.closed_form`). At kinks,
tangents pass where autograd passes gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gankernels.ops._activation import PIECEWISE_LINEAR
from gankernels.ops.bias_act.op import _saves as bias_act_saves
from gankernels.penalties import samples
from gankernels.penalties.nodes import Node, Variable, call
from gankernels.penalties.samples import Samples

if TYPE_CHECKING:
    from gankernels.penalties.closed_form import At

aten = torch.ops.aten


@dataclass(frozen=True)
class Rule:
    """What the closed form needs to know of an op. Arguments are named as in its schema."""

    tangent: Callable[[At], Any]  # the tangent of the output; a list of them for several
    samples: Callable[[Node], Samples | None] = samples.elementwise
    keeps: tuple[str, ...] = ()  # the arguments, or "result", whose numbers the tangent needs; "indices" are a result's
    weights: tuple[str, ...] = ()  # the arguments that may be effective weights
    mixes: tuple[str, ...] = ()  # the arguments that the gradients of these need
    linear_in: tuple[str, ...] = ()  # if given, the only arguments that may depend on the pictures
    factors: tuple[str, ...] = ()  # of these arguments, only one may
    condition: Callable[[Node], str | None] | None = None  # why a node is outside the class

    def refuses(self, node: Node) -> str | None:
        """Why a node of this op is outside the class, if it is."""
        names = {name for name, value in node.arguments.items() if _depends(value)}
        if len(names & set(self.factors)) > 1:
            return f"{node.name} multiplies two tensors that depend on the pictures"
        if self.linear_in and not names <= set(self.linear_in):
            return f"{node.name} is not piecewise linear in its {', '.join(sorted(names - set(self.linear_in)))}"
        if sum(len(_weights(node[name])) for name in self.weights if name in node.arguments) < len(node.weights):
            return f"{node.name} has parameters that the closed form does not know"
        return self.condition(node) if self.condition is not None else None


def _depends(value: Any) -> bool:
    return isinstance(value, Variable) or (isinstance(value, list) and any(isinstance(v, Variable) for v in value))


def _weights(value: Any) -> list[Tensor]:
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, Tensor) and v.requires_grad]


def find_rule(node: Node) -> tuple[Rule | None, str | None]:
    """The rule of a node, or why it is outside the class."""
    namespace, _, name = node.name.partition("::")
    rule = RULES.get(node.name, RULES.get(name)) if namespace == "aten" or namespace.startswith("gankernels") else None
    if rule is None:
        return None, f"{node.name} is not piecewise linear"
    reason = rule.refuses(node)
    return (None, reason) if reason else (rule, None)


# ---- Linear maps without weights ----


def _replay(at: At) -> Any:
    """The op itself, on tangents."""
    tangents = {name: at.t(name) for name, value in at.node.arguments.items() if _depends(value)}
    return call(at.node.op, at.node.arguments | tangents)


def _reshape(at: At) -> Tensor:
    return at.t("self").reshape(at.shape)


def _expand(at: At) -> Tensor:
    return at.t("self").expand(at.shape)


def _copy(at: At) -> Tensor:
    return at.t("src").to(at.node.result.dtype).expand(at.shape)


def _pad(at: At) -> Tensor:
    # what is padded is a constant
    return aten.constant_pad_nd(at.t("self"), at["pad"], 0)


def _dropout(at: At) -> list[Tensor | None]:
    keep = 1 - at["p"] if at["train"] is not False else 1.0
    mask = at.constant(at.node.indices)
    return [at.t("input") * mask / keep if mask is not None and keep > 0 else at.t("input"), None]


# ---- Sums and products with constants and weights ----


def _add(of_self: int, of_other: int) -> Callable[[At], Tensor]:
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


def _mul(at: At) -> Tensor:
    name, other = ("self", "other") if isinstance(at["self"], Variable) else ("other", "self")
    if at.wants(other):
        at.give(other, at.cotangent() * at.mixed(name))
    return at.t(name) * at.constant(at[other])


def _div(at: At) -> Tensor:
    other = at["other"]
    if at.wants("other"):
        # d(z / v) / dv = -z / v^2
        at.give("other", -at.cotangent() * at.mixed("self") / (other * other))
    return at.t("self") / at.constant(other)


def _cat(at: At) -> Tensor:
    dim, start = at["dim"] % len(at.node.result.shape), 0
    for item in at["tensors"]:
        c = at.scaled_cotangent() if isinstance(item, Tensor) and item.requires_grad else None
        if c is not None:
            at.add_gradient(item, c.narrow(dim, start, item.shape[dim]))
        start += item.shape[dim]
    return torch.cat(at.t("tensors"), dim)


# ---- Convolutions and matrix products ----

_GEOMETRY = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")


def _convolution(at: At) -> Tensor:
    geometry = [at[name] for name in _GEOMETRY]
    if at.wants("weight"):
        arguments = at.cotangent(), at.mixed("input"), at["weight"], None, *geometry, [False, True, False]
        at.give("weight", aten.convolution_backward(*arguments)[1])
        del arguments
    if at.wants("bias"):
        at.give("bias", at.channel_sums())
    at.release()
    return aten.convolution(at.t("input"), at["weight"], None, *geometry)


def _product(left: str, right: str, added: str | None = None) -> Callable[[At], Tensor]:
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


def _clamp(at: At) -> Tensor:
    z = at.value("self")
    inside = torch.ones_like(z, dtype=torch.bool)
    if at.get("min") is not None:
        inside &= z >= at.constant(at["min"])
    if at.get("max") is not None:
        inside &= z <= at.constant(at["max"])
    return at.t("self") * inside


def _prelu(at: At) -> Tensor:
    if at.wants("weight"):
        at.give("weight", at.cotangent() * at.mixed("self") * (at.value("self", all_rows=True) <= 0))
    return torch.where(at.value("self") > 0, at.t("self"), at.constant(at["weight"]) * at.t("self"))


def _where(at: At) -> Tensor:
    chosen = [at.t(name) if isinstance(at[name], Variable) else 0 for name in ("self", "other")]
    return torch.where(at.constant(at["condition"]), chosen[0], chosen[1]).expand(at.shape)


def _extremum(sign: int) -> Callable[[At], Tensor]:
    def tangent(at: At) -> Tensor:
        numbers: list[Any] = []
        tangents: list[Any] = []
        for name in ("self", "other"):
            depends = isinstance(at[name], Variable)
            numbers.append(at.value(name) if depends else at.constant(at[name]))
            tangents.append(at.t(name) if depends else 0)
        share = (1 + sign * (numbers[0] - numbers[1]).sign()) / 2  # autograd halves the gradient of a tie
        return tangents[0] * share + tangents[1] * (1 - share)

    return tangent


def _reduced_extremum(at: At) -> Tensor:
    """amax and amin share the gradient among ties."""
    keep = {"dim": at["dim"], "keepdim": True}
    chosen = at.value("self") == call(at.node.op, {"self": at.value("self"), **keep})
    t = (at.t("self") * chosen).sum(**keep) / chosen.sum(**keep)
    return t.reshape(at.shape)


def _picked(at: At) -> list[Tensor | None]:
    """max and min along a dimension."""
    dim, indices = at["dim"], at.constant(at.node.indices)
    if at["keepdim"]:
        return [at.t("self").gather(dim, indices), None]
    return [at.t("self").gather(dim, indices.unsqueeze(dim)).squeeze(dim), None]


def _max_pool(at: At) -> list[Tensor | None]:
    t, indices = at.t("self"), at.constant(at.node.indices)
    spatial = -(t.dim() - 2) if t.dim() > 2 else -1
    picked = t.flatten(spatial).gather(-1, indices.flatten(spatial))
    return [picked.reshape(indices.shape), None]


# ---- Our own ops ----


def _our_convolution(at: At) -> Tensor:
    ops, geometry = torch.ops.gankernels_library, [at[name] for name in _GEOMETRY]
    if at.wants("weight"):
        arguments = at.cotangent(), at.mixed("x"), at["weight"].shape, False, *geometry
        at.give("weight", ops.convolution_weight_gradient(*arguments)[0])
        del arguments
    if at.wants("bias"):
        at.give("bias", at.channel_sums())
    at.release()
    return ops.convolution(at.t("x"), at["weight"], None, *geometry)


def _bias_act(at: At) -> Tensor:
    backward = getattr(torch.ops, at.node.op.namespace).bias_act_backward
    formula = [at[name] for name in ("activation", "slope", "gain", "clamp", "dim")]
    # as its own backward: from y where that has the sign of x + bias, else from x and bias
    saved, bias = ("result", None) if bias_act_saves(*formula[:4]) == "y" else ("x", at["bias"])
    if at.wants("bias"):
        c = at.scaled_cotangent()
        if c is not None:
            values = at.value(saved, all_rows=True)
            at.give("bias", backward(c.to(values.dtype), values, bias, *formula, True)[1])
    return backward(at.t("x"), at.value(saved), bias, *formula, False)[0]


def _bias_act_is_smooth(node: Node) -> str | None:
    return None if node["activation"] in PIECEWISE_LINEAR else f"{node['activation']} is not piecewise linear"


#: left, right and added operand of each matrix product
_PRODUCTS = {
    "mm": ("self", "mat2"),
    "bmm": ("self", "mat2"),
    "addmm": ("mat1", "mat2", "self"),
    "baddbmm": ("batch1", "batch2", "self"),
    "mv": ("self", "vec"),
}

_MAX_POOLS = ("max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool2d", "adaptive_max_pool3d")

_LINEAR_RESAMPLING = (
    *(f"avg_pool{d}d" for d in (1, 2, 3)),
    *(f"_adaptive_avg_pool{d}d" for d in (2, 3)),
    *(f"upsample_nearest{d}d" for d in (1, 2, 3)),
    *(f"{kind}_pad{d}d" for kind in ("reflection", "replication") for d in (1, 2, 3)),
    *("upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d"),
    *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "pixel_shuffle", "pixel_unshuffle"),
)


def _product_rule(left: str, right: str, added: str | None = None) -> Rule:
    names = (left, right) if added is None else (left, right, added)
    # a vector that depends on the pictures has no axis of samples
    linear_in = names if right != "vec" else (left,)
    return Rule(
        _product(left, right, added),
        samples.product(left, right, added),
        weights=names,
        mixes=(left, right),
        linear_in=linear_in,
        factors=(left, right),
    )


def _rounds(node: Node) -> str | None:
    return f"{node.name} rounds" if node.arguments.get("rounding_mode") else None


def _negative_slope(node: Node) -> str | None:
    return "leaky ReLU with a negative slope" if node["negative_slope"] < 0 else None


def _no_dim(node: Node) -> str | None:
    return None if node.arguments.get("dim") not in (None, []) else f"{node.name} over all of a tensor mixes samples"


_BATCH = samples.batch_first

#: ATen's ops, and ours, by the names of their functional forms; with the namespace where two ops have one name.
RULES: dict[str, Rule] = {
    # layout
    **dict.fromkeys(("view", "_unsafe_view", "unsqueeze", "squeeze", "alias"), Rule(_reshape, samples.reshape)),
    "expand": Rule(_expand),
    "repeat": Rule(_replay, samples.repeat),
    "permute": Rule(_replay, samples.permute),
    **dict.fromkeys(("transpose", "t"), Rule(_replay, samples.transpose)),
    **dict.fromkeys(("clone", "_to_copy", "lift_fresh", "neg"), Rule(_replay)),
    "copy": Rule(_copy, linear_in=("src",)),
    **dict.fromkeys(("slice", "index_select", "flip", "roll"), Rule(_replay, samples.along)),
    **dict.fromkeys(("split", "split_with_sizes"), Rule(_replay, samples.along)),
    **dict.fromkeys(("select", "unbind"), Rule(_replay, samples.drop)),
    "cat": Rule(_cat, samples.cat, weights=("tensors",)),
    "stack": Rule(_replay, samples.stack),
    "constant_pad_nd": Rule(_pad, samples.pad),
    # sums and products with constants, weights, and each other
    "add": Rule(_add(1, 1), weights=("self", "other")),
    "sub": Rule(_add(1, -1), weights=("self", "other")),
    "rsub": Rule(_add(-1, 1), weights=("self", "other")),
    "mul": Rule(_mul, weights=("self", "other"), mixes=("self", "other"), factors=("self", "other")),
    "div": Rule(_div, weights=("other",), mixes=("self",), linear_in=("self",), condition=_rounds),
    **dict.fromkeys(("sum", "mean"), Rule(_replay, samples.reduction)),
    # convolutions and matrix products
    "convolution": Rule(_convolution, _BATCH, weights=("weight", "bias"), mixes=("input",), linear_in=("input",)),
    **{name: _product_rule(*names) for name, names in _PRODUCTS.items()},
    # activations
    "relu": Rule(lambda at: aten.threshold_backward(at.t("self"), at.value("result"), 0), keeps=("result",)),
    "leaky_relu": Rule(
        lambda at: aten.leaky_relu_backward(at.t("self"), at.value("result"), at["negative_slope"], True),
        keeps=("result",),
        condition=_negative_slope,
    ),
    "hardtanh": Rule(
        lambda at: aten.hardtanh_backward(at.t("self"), at.value("result"), at["min_val"], at["max_val"]),
        keeps=("result",),
    ),
    "threshold": Rule(
        lambda at: aten.threshold_backward(at.t("self"), at.value("self"), at["threshold"]), keeps=("self",)
    ),
    "hardshrink": Rule(lambda at: at.t("self") * (at.value("self").abs() > at["lambd"]), keeps=("self",)),
    "softshrink": Rule(lambda at: at.t("self") * (at.value("self").abs() > at["lambd"]), keeps=("self",)),
    "_prelu_kernel": Rule(_prelu, keeps=("self",), weights=("weight",), mixes=("self",), linear_in=("self",)),
    **dict.fromkeys(("clamp", "clamp_min", "clamp_max"), Rule(_clamp, keeps=("self",), linear_in=("self",))),
    "abs": Rule(lambda at: at.t("self") * at.value("self").sgn(), keeps=("self",)),
    "maximum": Rule(_extremum(1), keeps=("self", "other")),
    "minimum": Rule(_extremum(-1), keeps=("self", "other")),
    "where": Rule(_where, linear_in=("self", "other")),
    "masked_fill": Rule(lambda at: at.t("self").masked_fill(at.constant(at["mask"]), 0), linear_in=("self",)),
    "native_dropout": Rule(_dropout, keeps=("indices",)),
    # pooling and resampling
    **dict.fromkeys(("amax", "amin"), Rule(_reduced_extremum, samples.reduction, keeps=("self",), condition=_no_dim)),
    **dict.fromkeys(("max", "min"), Rule(_picked, samples.reduction, keeps=("indices",), condition=_no_dim)),
    **dict.fromkeys(_MAX_POOLS, Rule(_max_pool, _BATCH, keeps=("indices",))),
    **dict.fromkeys(_LINEAR_RESAMPLING, Rule(_replay, _BATCH)),
    # ours
    "gankernels_library::convolution": Rule(
        _our_convolution, _BATCH, weights=("weight", "bias"), mixes=("x",), linear_in=("x",)
    ),
    "bias_act_forward": Rule(
        _bias_act, keeps=("x", "result"), weights=("bias",), linear_in=("x",), condition=_bias_act_is_smooth
    ),
}
