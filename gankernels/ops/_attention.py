"""Attention of one head whose matrix [N, L, S] is never in memory, differentiable to any order.

PyTorch's fused kernels have no second derivative, and its CPU's takes no values that are wider than the keys. So they
are two registered ops here, the second with a formula in plain PyTorch, which does make the matrix.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from gankernels.ops._convolution_library import has_hardware
from gankernels.ops._registration import NAMESPACES, Formulas, define, register_formulas

_NAMESPACE = NAMESPACES["library"]
_aten = torch.ops.aten


def attention(
    query: Tensor,  # [N, L, C]
    key: Tensor,  # [N, S, C]
    value: Tensor,  # [N, S, D]
) -> Tensor:  # [N, L, D]
    """``softmax(query @ key^T) @ value``, as ``F.scaled_dot_product_attention`` with a scale of 1.

    On a CPU it takes N (L + S) (C + D) numbers of memory and is differentiable to any order, but orders from the second
    on take N L S. Elsewhere, under ``torch.nn.attention.sdpa_kernel`` without flash attention, and in forward-mode AD
    and transforms, it is PyTorch's function with its own restrictions.
    """
    if _is_fused(query, value):
        return torch.ops.gankernels_library.attention_forward(query, key, value)[0]
    return F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None], scale=1.0).squeeze(1)


def _is_fused(query: Tensor, value: Tensor) -> bool:
    if query.device.type != "cpu" or 0 in query.shape or 0 in value.shape:
        return False
    # A registered op's tangents would be zeros, without a word.
    return torch.compiler.is_compiling() or (
        torch.backends.cuda.flash_sdp_enabled()
        and forward_ad._current_level < 0
        and torch._C._functorch.peek_interpreter_stack() is None
    )


# ---- What runs the ops ----


def attention_forward(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The result [N, L, D], and the logarithm of each row's sum of exponentials [N, L], in fp32 (fp64 for fp64)."""
    y, sums = _aten._scaled_dot_product_flash_attention_for_cpu(*_operands(query, key, value), scale=1.0)
    return y[:, 0, :, : value.shape[2]].to(value.dtype).contiguous(), sums[:, 0].contiguous()


def attention_backward(
    dy: Tensor, query: Tensor, key: Tensor, value: Tensor, y: Tensor, sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value."""
    operands = _operands(dy, query, key, value, y)
    gradients = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
        *operands, sums[:, None], 0.0, False, scale=1.0
    )
    dquery, dkey, dvalue = (
        gradient[:, 0, :, : t.shape[2]].to(t.dtype).contiguous()
        for gradient, t in zip(gradients, (query, key, value), strict=True)
    )
    return dquery, dkey, dvalue


def _operands(*tensors: Tensor) -> list[Tensor]:
    """As the kernel takes them: [N, 1, pixels, channels] with channels side by side and as many for all."""
    width = max(t.shape[2] for t in tensors)
    dtype = tensors[0].dtype if has_hardware("cpu", tensors[0].dtype) else torch.float32
    return [F.pad(t, (0, width - t.shape[2])).to(dtype).contiguous()[:, None] for t in tensors]


# ---- Registration ----

SCHEMAS = {
    "attention_forward": "(Tensor query, Tensor key, Tensor value) -> (Tensor y, Tensor sums)",
    "attention_backward": (
        "(Tensor dy, Tensor query, Tensor key, Tensor value, Tensor y, Tensor sums)"
        " -> (Tensor dquery, Tensor dkey, Tensor dvalue)"
    ),
}


def _attention_fake(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    rows = query.shape[:2]
    sums = query.new_empty(rows, dtype=torch.promote_types(query.dtype, torch.float32))
    return value.new_empty(*rows, value.shape[2]), sums


def _backward_fake(
    dy: Tensor, query: Tensor, key: Tensor, value: Tensor, y: Tensor, sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dquery, dkey, dvalue = (t.new_empty(t.shape) for t in (query, key, value))
    return dquery, dkey, dvalue


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, *output)


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    dy, query, key, value, *_ = inputs
    ctx.save_for_backward(dy, query, key, value)


def _formulas(ops: SimpleNamespace) -> Formulas:
    def attention_vjp(ctx: Any, dy: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        if dy is None:
            return None, None, None
        return ops.attention_backward(dy, *ctx.saved_tensors)

    def backward_vjp(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        # y and sums are functions of the others: their part is in the gradients of those.
        return *second_order(*ctx.saved_tensors, *cotangents), None, None

    return {
        "attention_forward": (_attention_fake, _save, attention_vjp),
        "attention_backward": (_backward_fake, _save_backward, backward_vjp),
    }


def second_order(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, ddq: Tensor, ddk: Tensor, ddv: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """From the cotangents of dq, dk and dv those of dy, q, k and v, in plain PyTorch.

    With P = softmax(q k^T) and dP = dy v^T, each softmax over a row, where <A, B>_i is the sum of products in row i::

        dS = P (dP - <P, dP>),   dq = dS k,   dk = dS^T q,   dv = P^T dy
    """
    p, dp = (q @ k.mT).softmax(2), dy @ v.mT
    ds = p * (dp - (p * dp).sum(2, keepdim=True))
    # E, the cotangent of dS; those of dP and of P follow, and from that of P the one of S.
    e = ddq @ k.mT + q @ ddk.mT
    mean = (p * e).sum(2, keepdim=True)
    of_dp = p * (e - mean)
    of_p = e * (dp - (p * dp).sum(2, keepdim=True)) - mean * dp + dy @ ddv.mT
    of_s = p * (of_p - (p * of_p).sum(2, keepdim=True))
    return (
        of_dp @ v + p @ ddv,
        of_s @ k + ds @ ddk,
        of_s.mT @ q + ds.mT @ ddq,
        of_dp.mT @ dy,
    )


define(_NAMESPACE, SCHEMAS, lambda: sys.modules[__name__])
_ops = SimpleNamespace(**{name: getattr(getattr(torch.ops, _NAMESPACE), name) for name in SCHEMAS})
register_formulas("attention", _NAMESPACE, _formulas(_ops))
