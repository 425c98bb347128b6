"""The public function, and the registration of its forward, backward and double backward as torch ops.

The registered forward is functional: it returns the new u and v, which the public function then copies into the given
ones. An op that wrote to its arguments would have no autograd formula in torch.library; and what backward needs are
these copies, since the next forward moves the given ones on.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from gankernels import dispatch
from gankernels.errors import InputError
from gankernels.ops._registration import NAMESPACES, Formulas, refuse_transforms, register_op
from gankernels.ops.spectral_norm import reference
from gankernels.ops.spectral_norm.layout import empty_like

_OP = "spectral_norm"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def spectral_norm(
    weights: Sequence[Tensor],
    u: Sequence[Tensor],  # [h] each
    v: Sequence[Tensor],  # [w] each
    *,
    dims: Sequence[int] | None = None,
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    training: bool = True,
    out_dtype: torch.dtype | None = None,
    impl: str | None = None,
) -> list[Tensor]:
    """Every weight divided by its largest singular value, estimated by the power method: a whole model in one call.

    For each weight, seen as a matrix W [h, w] with ``dim`` in front: ``u = W v / |W v|``, ``v = W^T u / |W^T u|``,
    ``sigma = u^T W v``, and the result is ``weight / sigma``. The order and the meaning are those of
    ``torch.nn.utils.parametrizations.spectral_norm``; u and v are constants of the derivatives. Miyato et al., arXiv
    1802.05957.

    Args:
        weights: two dimensions or more each, of one floating dtype (fp32, bf16, fp16, fp64) and on one device;
            contiguous or channels_last (other strides are copied).
        u: left singular vectors [h], h = ``weight.shape[dim]``; updated in place in training.
        v: right singular vectors [w], w = ``weight.numel() / h``; updated in place in training.
        dims: the dimension of each weight's outputs: 0 (the default for all) for linear and convolution weights and
            embeddings, 1 for transposed convolutions.
        n_power_iterations: in training, at least 1.
        eps: the least norm that u and v are divided by.
        training: iterate, and update u and v. Otherwise sigma is taken from u and v as they are.
        out_dtype: of the results; None for the weights' own.
        impl: force ``"reference"``, ``"cpu"``, ``"triton"`` or ``"cuda"``; None lets dispatch choose.

    Returns:
        One tensor for each weight, with its shape and layout, in ``out_dtype``. Differentiable twice in the weights.
        All sums are fp32 (fp64 for fp64). Saved for backward: the weights themselves, u, v and sigma. With ``"cpu"``
        and ``"cuda"``, the gradient of a weight takes the memory of its cotangent where nobody else can see that.

    Raises:
        InputError: an argument is not as above.
        ImplementationUnavailable: ``impl`` cannot run on the weights.
        RuntimeError: called under forward-mode AD or a torch.func transform with a fused implementation.

    Example:
        >>> weights = [torch.randn(64, 3, 3, 3), torch.randn(10, 64)]
        >>> u, v = [torch.randn(64), torch.randn(10)], [torch.randn(27), torch.randn(64)]
        >>> normalised = spectral_norm(weights, u, v)
    """
    weights, u, v = list(weights), list(u), list(v)
    iterations = n_power_iterations if training else 0
    if training and n_power_iterations < 1:
        raise InputError(f"n_power_iterations: got {n_power_iterations}, expected at least 1 when training")
    y, new_u, new_v, _ = functional(
        weights, u, v, dims=dims, n_power_iterations=iterations, eps=eps, out_dtype=out_dtype, impl=impl
    )
    if training and weights:
        with torch.no_grad():
            torch._foreach_copy_([*u, *v], [*new_u, *new_v])
    return y


def functional(
    weights: Sequence[Tensor],
    u: Sequence[Tensor],
    v: Sequence[Tensor],
    *,
    dims: Sequence[int] | None,
    n_power_iterations: int,
    eps: float,
    out_dtype: torch.dtype | None,
    impl: str | None,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
    """:func:`spectral_norm` that writes to none of its arguments.

    Returns:
        The normalised weights, the new u and v, and sigma [len(weights)]; the latter three in fp32 (fp64 for fp64) and
        without gradients. With no iterations, u and v are copies of the given ones.
    """
    weights, u, v = list(weights), list(u), list(v)
    dims = [0] * len(weights) if dims is None else list(dims)
    _check(weights, u, v, dims, out_dtype)
    if not weights:
        return [], [], [], torch.empty(0)
    dims = [dim % weight.dim() for dim, weight in zip(dims, weights, strict=True)]

    choice = dispatch.choose(_OP, weights[0], impl, numel=sum(weight.numel() for weight in weights))
    if choice.impl == "reference":
        results = [
            reference.spectral_norm(
                w, u_, v_, dim=dim, n_power_iterations=n_power_iterations, eps=eps, out_dtype=out_dtype
            )
            for w, u_, v_, dim in zip(weights, u, v, dims, strict=True)
        ]
        y, new_u, new_v, sigma = (list(column) for column in zip(*results, strict=True))
        return y, new_u, new_v, torch.stack(sigma).detach()
    refuse_transforms(_OP, *weights)
    dtype = weights[0].dtype
    out_dtype = out_dtype or dtype
    # The kernels write 16-bit results of fp32 weights; other conversions are rare enough to be a pass of their own.
    fused = out_dtype if dtype == torch.float32 and out_dtype.itemsize == 2 else dtype
    forward = getattr(torch.ops, NAMESPACES[choice.impl]).spectral_norm_forward
    y, new_u, new_v, sigma = forward(weights, u, v, dims, n_power_iterations, eps, fused)
    # All outputs of one op ask for gradients where one does; those of frozen weights should not.
    y = [
        t.to(out_dtype) if weight.requires_grad else t.detach().to(out_dtype)
        for t, weight in zip(y, weights, strict=True)
    ]
    return y, new_u, new_v, sigma


def _check(
    weights: Sequence[Tensor],
    u: Sequence[Tensor],
    v: Sequence[Tensor],
    dims: Sequence[int],
    out_dtype: torch.dtype | None,
) -> None:
    if out_dtype is not None and out_dtype not in _DTYPES:
        raise InputError(f"out_dtype: got {out_dtype}, expected one of {', '.join(map(str, _DTYPES))}")
    for name, given in (("u", u), ("v", v), ("dims", dims)):
        if len(given) != len(weights):
            raise InputError(f"{name}: got {len(given)}, expected {len(weights)}, one for each weight")
    for i, (weight, u_, v_, dim) in enumerate(zip(weights, u, v, dims, strict=True)):
        if weight.layout != torch.strided:
            raise InputError(f"weights[{i}]: got layout {weight.layout}, expected a dense tensor")
        if weight.dtype not in _DTYPES:
            raise InputError(f"weights[{i}]: got dtype {weight.dtype}, expected one of {', '.join(map(str, _DTYPES))}")
        if weight.dtype != weights[0].dtype or weight.device != weights[0].device:
            got, expected = (f"{w.dtype} on {w.device}" for w in (weight, weights[0]))
            raise InputError(f"weights[{i}]: got {got}, expected {expected}, as weights[0]")
        if weight.dim() < 2 or weight.numel() == 0:
            raise InputError(f"weights[{i}]: got shape {tuple(weight.shape)}, expected two dimensions or more, none 0")
        if not -weight.dim() <= dim < weight.dim():
            raise InputError(f"dims[{i}]: got {dim}, expected one of the {weight.dim()} dimensions of weights[{i}]")
        height = weight.shape[dim]
        for name, vector, size in (("u", u_, height), ("v", v_, weight.numel() // height)):
            if vector.shape != (size,):
                raise InputError(f"{name}[{i}]: got shape {tuple(vector.shape)}, expected ({size},)")
            if vector.device != weight.device:
                raise InputError(f"{name}[{i}]: got a tensor on {vector.device}, expected {weight.device}")
            if not vector.is_floating_point():
                raise InputError(f"{name}[{i}]: got dtype {vector.dtype}, expected a floating one")
            if vector.requires_grad:
                raise InputError(f"{name}[{i}]: got a tensor that requires grad, expected a buffer")


# ---- Registration ----

SCHEMAS = {
    "spectral_norm_forward": (
        "(Tensor[] weights, Tensor[] u, Tensor[] v, int[] dims, int n_power_iterations, float eps,"
        " ScalarType out_dtype) -> (Tensor[] y, Tensor[] u, Tensor[] v, Tensor sigma)"
    ),
    "spectral_norm_backward": (
        "(Tensor[] dy, Tensor[] weights, Tensor[] u, Tensor[] v, Tensor sigma, int[] dims) -> Tensor[] dweights"
    ),
    "spectral_norm_backward_backward": (
        "(Tensor[] ddweights, Tensor[] dy, Tensor[] weights, Tensor[] u, Tensor[] v, Tensor sigma, int[] dims)"
        " -> (Tensor[] ddy, Tensor[] dweights)"
    ),
}


Tensors = list[Tensor]


def _forward_fake(
    weights: Tensors, u: Tensors, v: Tensors, dims: list[int], iterations: int, eps: float, out_dtype: torch.dtype
) -> tuple[Tensors, Tensors, Tensors, Tensor]:
    dtype = torch.promote_types(weights[0].dtype, torch.float32)
    y = [empty_like(w, dim, out_dtype) for w, dim in zip(weights, dims, strict=True)]
    new_u, new_v = ([x.new_empty(x.shape, dtype=dtype) for x in xs] for xs in (u, v))
    return y, new_u, new_v, weights[0].new_empty(len(weights), dtype=dtype)


def _backward_fake(
    dy: Tensors, weights: Tensors, u: Tensors, v: Tensors, sigma: Tensor, dims: list[int]
) -> list[Tensor]:
    return [empty_like(w, dim) for w, dim in zip(weights, dims, strict=True)]


def _backward_backward_fake(
    ddweights: Tensors, dy: Tensors, weights: Tensors, u: Tensors, v: Tensors, sigma: Tensor, dims: list[int]
) -> tuple[Tensors, Tensors]:
    ddy = [empty_like(w, dim, g.dtype) for w, g, dim in zip(weights, dy, dims, strict=True)]
    return ddy, [empty_like(w, dim) for w, dim in zip(weights, dims, strict=True)]


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    weights, _, _, dims, *_ = inputs
    _, u, v, sigma = output
    ctx.save_for_backward(*weights, *u, *v, sigma)
    ctx.mark_non_differentiable(*u, *v, sigma)
    ctx.set_materialize_grads(False)
    ctx.dims = dims


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    dy, weights, u, v, sigma, dims = inputs
    ctx.save_for_backward(*dy, *weights, *u, *v, sigma)
    ctx.set_materialize_grads(False)
    ctx.dims = dims


def _split(tensors: Sequence[Tensor], count: int, lists: int) -> list[list[Tensor]]:
    return [list(tensors[i * count : (i + 1) * count]) for i in range(lists)]


def _at(indices: Sequence[int], *lists: Sequence[Any]) -> list[list[Any]]:
    return [[values[i] for i in indices] for values in lists]


def _sigma_at(indices: Sequence[int], sigma: Tensor) -> Tensor:
    return sigma if len(indices) == len(sigma) else torch.stack([sigma[i] for i in indices])


def _spread(values: Sequence[Tensor], indices: Sequence[int], count: int) -> list[Tensor | None]:
    spread: list[Tensor | None] = [None] * count
    for i, value in zip(indices, values, strict=True):
        spread[i] = value
    return spread


def _formulas(ops: SimpleNamespace) -> Formulas:
    # Weights that no gradient reaches, or that want none, cost nothing: each formula picks the others.
    def forward_vjp(ctx: Any, dy: list[Tensor | None], *_: Any) -> tuple[Any, ...]:
        count = len(ctx.dims)
        *_, sigma = ctx.saved_tensors
        weights, u, v = _split(ctx.saved_tensors, count, 3)
        indices = [i for i in range(count) if dy[i] is not None and ctx.needs_input_grad[0][i]]
        dweights: list[Tensor] = []
        if indices:
            *picked, dims = _at(indices, dy, weights, u, v, ctx.dims)
            dweights = ops.spectral_norm_backward(*picked, _sigma_at(indices, sigma), dims)
        none = [None] * count
        return _spread(dweights, indices, count), none, none, None, None, None, None

    # u, v and sigma get no cotangents: the former are constants, and sigma's path is part of the weight's.
    def backward_vjp(ctx: Any, ddweights: list[Tensor | None]) -> tuple[Any, ...]:
        count = len(ctx.dims)
        *_, sigma = ctx.saved_tensors
        dy, weights, u, v = _split(ctx.saved_tensors, count, 4)
        indices = [i for i in range(count) if ddweights[i] is not None]
        ddy: list[Tensor] = []
        dweights: list[Tensor] = []
        if indices:
            *picked, dims = _at(indices, ddweights, dy, weights, u, v, ctx.dims)
            ddy, dweights = ops.spectral_norm_backward_backward(*picked, _sigma_at(indices, sigma), dims)
        none = [None] * count
        return _spread(ddy, indices, count), _spread(dweights, indices, count), none, none, None, None

    return {
        "spectral_norm_forward": (_forward_fake, _save_forward, forward_vjp),
        "spectral_norm_backward": (_backward_fake, _save_backward, backward_vjp),
        "spectral_norm_backward_backward": (_backward_backward_fake, None, None),
    }


register_op(_OP, SCHEMAS, _formulas, native_formulas=True)
