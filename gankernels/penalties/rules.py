"""How tangents and weight gradients go through each op of the class: one line an op.

The class: per sample, the op is linear, or linear on each side of kinks, in what depends on the pictures. What a rule
computes is in :mod:`gankernels.penalties.tangents` and :mod:`gankernels.penalties.gradients`; here is what it needs and
where it holds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gankernels.ops._activation import PIECEWISE_LINEAR
from gankernels.penalties import gradients, samples, tangents
from gankernels.penalties.nodes import Node, depends
from gankernels.penalties.samples import Samples

if TYPE_CHECKING:
    from gankernels.penalties.at import At

aten = torch.ops.aten


@dataclass(frozen=True)
class Rule:
    """What the closed form needs to know of an op. Arguments are named as in its schema."""

    tangent: Callable[[At], Any]  # the tangent of the output; a list of them for several
    samples: Callable[[Node], Samples | None] = samples.elementwise
    gradients: Callable[[At], None] | None = None  # gives those of its effective weights
    # the arguments, or "result", whose numbers tangent and gradients need; "indices" are a result's
    keeps: tuple[str, ...] | Callable[[Node], tuple[str, ...]] = ()
    weights: tuple[str, ...] = ()  # the arguments that may be effective weights
    mixes: tuple[str, ...] = ()  # the arguments that the gradients of these need
    # its weights [C] are added to this argument along ``dim``, and get sums of its cotangent
    adds_to: str | None = None
    linear_in: tuple[str, ...] = ()  # if given, the only arguments that may depend on the pictures
    factors: tuple[str, ...] = ()  # of these arguments, only one may
    # instead of ``keeps``: its output tells its kinks as well as "self" does, which autograd keeps
    either: bool = False
    condition: Callable[[Node], str | None] | None = None  # why a node is outside the class
    # one pass makes the result again from the one argument that depends on the pictures, and autograd does not keep it
    remade: bool = False

    def kept(self, node: Node) -> tuple[str, ...]:
        """``keeps`` of a node."""
        if self.either:
            # what is written to in place is not there later
            return ("result",) if node.in_place else ("self",)
        return self.keeps(node) if callable(self.keeps) else self.keeps

    def mixed(self, node: Node, *, with_loss: bool) -> tuple[str, ...]:
        """The arguments whose numbers the gradients of a node's weights need."""
        return self.mixes if with_loss and node.weights else ()

    def refuses(self, node: Node) -> str | None:
        """Why a node of this op is outside the class, if it is."""
        if self.factors or self.linear_in:
            names = {name for name, value in node.arguments.items() if depends(value)}
            if len(names & set(self.factors)) > 1:
                return f"{node.name} multiplies two tensors that depend on the pictures"
            if self.linear_in and not names <= set(self.linear_in):
                return f"{node.name} is not piecewise linear in its {', '.join(sorted(names - set(self.linear_in)))}"
        if node.weights:
            known = sum(len(_weights(node[name])) for name in self.weights if name in node.arguments)
            if known < len(node.weights):
                return f"{node.name} has parameters that the closed form does not know"
        return self.condition(node) if self.condition is not None else None


def _weights(value: Any) -> list[Tensor]:
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, Tensor) and v.requires_grad]


def find_rule(node: Node) -> tuple[Rule | None, str | None]:
    """The rule of a node, or why it is outside the class."""
    rule = _rule_of(node.name)
    if rule is None:
        return None, f"{node.name} is not piecewise linear"
    reason = rule.refuses(node)
    return (None, reason) if reason else (rule, None)


@functools.cache
def _rule_of(qualified: str) -> Rule | None:
    namespace, _, name = qualified.partition("::")
    return ATEN.get(name) if namespace == "aten" else OURS.get(name) if namespace.startswith("gankernels") else None


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
        tangents.product(left, right, added),
        samples.product(left, right, added),
        gradients.product(left, right, added),
        weights=names,
        mixes=(left, right),
        linear_in=linear_in,
        factors=(left, right),
    )


def _convolution_rule(x: str) -> Rule:
    return Rule(
        tangents.convolution(x),
        samples.batch_first,
        gradients.convolution(x),
        weights=("weight", "bias"),
        mixes=(x,),
        linear_in=(x,),
    )


def _rounds(node: Node) -> str | None:
    return f"{node.name} rounds" if node.arguments.get("rounding_mode") else None


def _negative_slope(node: Node) -> str | None:
    return "leaky ReLU with a negative slope" if node["negative_slope"] < 0 else None


def _no_dim(node: Node) -> str | None:
    return None if node.arguments.get("dim") not in (None, []) else f"{node.name} over all of a tensor mixes samples"


def _is_smooth(node: Node) -> str | None:
    return None if node["activation"] in PIECEWISE_LINEAR else f"{node['activation']} is not piecewise linear"


_BATCH = samples.batch_first

#: ATen's ops by the names of their functional forms.
ATEN: dict[str, Rule] = {
    # layout
    **dict.fromkeys(("view", "_unsafe_view", "unsqueeze", "squeeze", "alias"), Rule(tangents.reshape, samples.reshape)),
    "expand": Rule(tangents.expand),
    "repeat": Rule(tangents.replay, samples.repeat),
    "permute": Rule(tangents.replay, samples.permute),
    **dict.fromkeys(("transpose", "t"), Rule(tangents.replay, samples.transpose)),
    **dict.fromkeys(("clone", "_to_copy", "lift_fresh", "neg"), Rule(tangents.replay)),
    "copy": Rule(tangents.copy, linear_in=("src",)),
    **dict.fromkeys(("slice", "index_select", "flip", "roll"), Rule(tangents.replay, samples.along)),
    **dict.fromkeys(("split", "split_with_sizes"), Rule(tangents.replay, samples.along)),
    **dict.fromkeys(("select", "unbind"), Rule(tangents.replay, samples.drop)),
    "cat": Rule(tangents.cat, samples.cat, gradients.cat, weights=("tensors",)),
    "stack": Rule(tangents.replay, samples.stack),
    "constant_pad_nd": Rule(tangents.pad, samples.pad),
    # sums and products with constants, weights, and each other
    "add": Rule(tangents.add(1, 1), gradients=gradients.add(1, 1), weights=("self", "other")),
    "sub": Rule(tangents.add(1, -1), gradients=gradients.add(1, -1), weights=("self", "other")),
    "rsub": Rule(tangents.add(-1, 1), gradients=gradients.add(-1, 1), weights=("self", "other")),
    "mul": Rule(
        tangents.mul,
        gradients=gradients.mul,
        weights=("self", "other"),
        mixes=("self", "other"),
        factors=("self", "other"),
    ),
    "div": Rule(
        tangents.div,
        gradients=gradients.div,
        weights=("other",),
        mixes=("self",),
        linear_in=("self",),
        condition=_rounds,
    ),
    **dict.fromkeys(("sum", "mean"), Rule(tangents.replay, samples.reduction)),
    # convolutions and matrix products
    "convolution": _convolution_rule("input"),
    **{name: _product_rule(*names) for name, names in _PRODUCTS.items()},
    # activations
    "relu": Rule(lambda at: aten.threshold_backward(at.t("self"), at.value("result"), 0), keeps=("result",)),
    "leaky_relu": Rule(tangents.leaky_relu, either=True, condition=_negative_slope),
    "hardtanh": Rule(tangents.hardtanh, either=True),
    "threshold": Rule(
        lambda at: aten.threshold_backward(at.t("self"), at.value("self"), at["threshold"]), keeps=("self",)
    ),
    "hardshrink": Rule(lambda at: at.t("self") * (at.value("self").abs() > at["lambd"]), keeps=("self",)),
    "softshrink": Rule(lambda at: at.t("self") * (at.value("self").abs() > at["lambd"]), keeps=("self",)),
    "_prelu_kernel": Rule(
        tangents.prelu,
        gradients=gradients.prelu,
        keeps=("self",),
        weights=("weight",),
        mixes=("self",),
        linear_in=("self",),
    ),
    **dict.fromkeys(("clamp", "clamp_min", "clamp_max"), Rule(tangents.clamp, keeps=("self",), linear_in=("self",))),
    "abs": Rule(lambda at: at.t("self") * at.value("self").sgn(), keeps=("self",)),
    "maximum": Rule(tangents.extremum(1), keeps=("self", "other")),
    "minimum": Rule(tangents.extremum(-1), keeps=("self", "other")),
    "where": Rule(tangents.where, linear_in=("self", "other")),
    "masked_fill": Rule(lambda at: at.t("self").masked_fill(at.constant(at["mask"]), 0), linear_in=("self",)),
    "native_dropout": Rule(tangents.dropout, keeps=("indices",)),
    # pooling and resampling
    **dict.fromkeys(
        ("amax", "amin"), Rule(tangents.reduced_extremum, samples.reduction, keeps=("self",), condition=_no_dim)
    ),
    **dict.fromkeys(("max", "min"), Rule(tangents.picked, samples.reduction, keeps=("indices",), condition=_no_dim)),
    **dict.fromkeys(_MAX_POOLS, Rule(tangents.max_pool, _BATCH, keeps=("indices",))),
    **dict.fromkeys(_LINEAR_RESAMPLING, Rule(tangents.replay, _BATCH)),
}

#: Ours, whichever implementation runs them. What acts on weights alone (spectral norm, folds) needs no rule.
OURS: dict[str, Rule] = {
    "bias_act_forward": Rule(
        tangents.bias_act,
        gradients=gradients.bias_act,
        keeps=gradients.kept_for_bias_act,
        weights=("bias",),
        adds_to="x",
        linear_in=("x",),
        condition=_is_smooth,
    ),
    "convolution": _convolution_rule("x"),
    "box_filter": Rule(tangents.replay, _BATCH, remade=True),
    "conv_transpose2d_forward": Rule(
        tangents.triton_transposed_convolution,
        _BATCH,
        gradients.triton_transposed_convolution,
        keeps=("result",),
        weights=("weight", "bias"),
        mixes=("x",),
        linear_in=("x",),
    ),
}
