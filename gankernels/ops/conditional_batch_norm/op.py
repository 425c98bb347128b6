"""The public function, and the registration of its forward, backward and double backward as torch ops."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gankernels import dispatch
from gankernels.errors import InputError
from gankernels.ops import _layout
from gankernels.ops._collectives import several_ranks
from gankernels.ops._registration import NAMESPACES, Formulas, refuse_transforms, register_op
from gankernels.ops.conditional_batch_norm import reference, synchronized

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_OP = "conditional_batch_norm"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def conditional_batch_norm(
    x: Tensor,  # [N, C, H, W]
    gain: Tensor,  # [N, C]; with labels [classes, C]
    bias: Tensor,  # [N, C]; with labels [classes, C]
    *,
    labels: Tensor | None = None,  # [N]
    running_mean: Tensor | None = None,  # [C]
    running_var: Tensor | None = None,  # [C]
    training: bool = True,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    activation: str = "none",
    slope: float = 0.2,
    per_sample: bool = False,
    process_group: ProcessGroup | None = None,
    impl: str | None = None,
) -> Tensor:
    """``act((x - mean) / sqrt(var + eps) * gain + bias)`` with a gain and a bias for every sample, or every class.

    In training, mean and (biased) variance are taken over N, H and W and differentiated through, and the running
    statistics, where given, move towards them (the variance unbiased, as torch's). Otherwise the running statistics are
    used as constants. Ioffe and Szegedy, arXiv 1502.03167; Dumoulin et al., arXiv 1610.07629.

    Args:
        x: [N, C, H, W] in fp32, bf16, fp16 or fp64, contiguous or channels_last (other strides are copied).
        gain: [N, C], of any floating dtype; with ``labels`` a table [classes, C].
        bias: [N, C], of any floating dtype; with ``labels`` a table [classes, C].
        labels: [N], int64: sample n has row ``labels[n]`` of the tables, which the kernels read where it lies. The
            tables' gradients are sums over the samples of a class in a fixed order, zero for a class without any. On
            CUDA labels are not checked, since that would wait for the GPU: where one is out of range the kernels give
            NaN in its sample's y and dx and leave the sample out of all sums, and the reference asserts, as torch's
            indexing does.
        running_mean: [C], updated in place in training.
        running_var: [C], updated in place in training.
        training: use the statistics of this batch.
        momentum: weight of this batch in the running statistics; a tensor [] on x's device spares a synchronisation.
        eps: added to the variance.
        activation: ``"none"``, ``"relu"`` or ``"lrelu"``.
        slope: of ``"lrelu"`` below zero.
        per_sample: in training take the statistics over H and W alone, for each sample: conditional instance
            normalisation. The running statistics move towards their average over the samples, as torch's instance
            norm has it.
        process_group: take the statistics in training over the samples of all its ranks. Each may have another number
            of them, or none, but all must call, and all must differentiate: one collective a pass. The gradients are
            those of the sum of all ranks' losses.
        impl: force ``"reference"``, ``"cpu"``, ``"triton"`` or ``"cuda"``; None lets dispatch choose.

    Returns:
        y [N, C, H, W], with x's dtype and layout. Differentiable twice in x, gain and bias; all arithmetic is fp32
        (fp64 for fp64). Saved for backward: x, gain, bias and the statistics [C], nothing else that has pixels.

    Raises:
        InputError: a shape, dtype, device or name is not as above.
        ImplementationUnavailable: ``impl`` cannot run on x.
        RuntimeError: called under forward-mode AD or a torch.func transform with a fused implementation.

    Example:
        >>> x = torch.randn(8, 64, 16, 16, requires_grad=True)
        >>> y = conditional_batch_norm(x, torch.ones(8, 64), torch.zeros(8, 64), activation="relu")
    """
    synchronize = several_ranks(process_group) and training
    _check(x, gain, bias, labels, running_mean, running_var, training, synchronize, activation)
    per_sample = per_sample and training
    if per_sample:
        _check_per_sample(x, synchronize)
        if labels is not None:  # sums over a class meet those of a sample nowhere in the kernels
            gain, bias, labels = F.embedding(labels, gain), F.embedding(labels, bias), None
    given = (None, None) if training else (running_mean, running_var)
    formula = (eps, activation, slope)
    count: int | Tensor = x.shape[0] * x.shape[2] * x.shape[3]

    choice = dispatch.choose(_OP, x, impl)
    if choice.impl == "reference":
        if synchronize and process_group is not None:
            mean, var, count = reference.statistics(x, process_group.group_name)
            given = (mean, var)
        y, mean, var = reference.conditional_batch_norm(
            x, gain, bias, *given, labels=labels, eps=eps, activation=activation, slope=slope, per_sample=per_sample
        )
        y = y.contiguous(memory_format=_layout.memory_format(x))
    else:
        refuse_transforms(_OP, x, gain, bias)
        family = NAMESPACES[choice.impl]
        if synchronize and process_group is not None:
            y, mean, var, count = synchronized.conditional_batch_norm(
                x, gain, bias, labels, *formula, family=family, process_group=process_group
            )
        else:
            forward = getattr(torch.ops, family).conditional_batch_norm_forward
            y, mean, var = forward(x, gain, bias, labels, *given, *formula, per_sample)

    if training and running_mean is not None and running_var is not None:
        if per_sample and len(x) > 0:
            mean, var, count = mean.mean(0), var.mean(0), x.shape[2] * x.shape[3]
        update_running_statistics(running_mean, running_var, mean, var, count, momentum)
    return y


@torch.no_grad()
def update_running_statistics(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, count: int | Tensor, momentum: float | Tensor
) -> None:
    """Move the running statistics towards those of ``count`` pixels, the variance unbiased; no pixels move nothing."""
    if not isinstance(count, Tensor) and count == 0:
        return
    unbiased = var * (count / (count - 1))
    for running, batch in ((running_mean, mean), (running_var, unbiased)):
        batch = batch.to(running.dtype)
        weight = momentum.to(running.dtype) if isinstance(momentum, Tensor) else momentum
        if isinstance(count, Tensor):  # known to the device alone
            running.copy_(running.lerp(batch, weight).where(count > 1, running))
        else:
            running.lerp_(batch, weight)


def _check(
    x: Tensor,
    gain: Tensor,
    bias: Tensor,
    labels: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    synchronize: bool,
    activation: str,
) -> None:
    if x.dim() != 4:
        raise InputError(f"x: got shape {tuple(x.shape)}, expected [N, C, H, W]")
    if x.dtype not in _DTYPES:
        raise InputError(f"x: got dtype {x.dtype}, expected one of {', '.join(map(str, _DTYPES))}")
    if activation not in reference.ACTIVATIONS:
        raise InputError(f"activation: got {activation!r}, expected one of {', '.join(reference.ACTIVATIONS)}")
    n, c = x.shape[:2]
    if training and not synchronize and n * x.shape[2] * x.shape[3] == 1:
        raise InputError(f"x: got shape {tuple(x.shape)}, expected more than one value per channel when training")
    statistics = {"running_mean": running_mean, "running_var": running_var}
    if not training and None in statistics.values():
        raise InputError("running_mean, running_var: got None, expected tensors [C] when training=False")
    rows = n
    if labels is not None:
        _check_labels(x, gain, labels)
        rows = gain.shape[0]
    for name, tensor, shape in (
        ("gain", gain, (rows, c)),
        ("bias", bias, (rows, c)),
        ("running_mean", running_mean, (c,)),
        ("running_var", running_var, (c,)),
    ):
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise InputError(f"{name}: got shape {tuple(tensor.shape)}, expected {tuple(shape)}")
        if tensor.device != x.device:
            raise InputError(f"{name}: got a tensor on {tensor.device}, expected {x.device}, where x is")
        if not tensor.is_floating_point():
            raise InputError(f"{name}: got dtype {tensor.dtype}, expected a floating one")
        if name in statistics and tensor.requires_grad:
            raise InputError(f"{name}: got a tensor that requires grad, expected a buffer")


def _check_per_sample(x: Tensor, synchronize: bool) -> None:
    if synchronize:
        raise InputError("process_group: got several ranks, expected one with per_sample=True")
    if x.shape[2] * x.shape[3] == 1:
        raise InputError(f"x: got shape {tuple(x.shape)}, expected more than one pixel when training with per_sample")


def _check_labels(x: Tensor, gain: Tensor, labels: Tensor) -> None:
    if gain.dim() != 2:
        raise InputError(f"gain: got shape {tuple(gain.shape)}, expected [classes, {x.shape[1]}] with labels")
    if labels.dtype != torch.int64:
        raise InputError(f"labels: got dtype {labels.dtype}, expected torch.int64")
    if labels.shape != x.shape[:1]:
        raise InputError(f"labels: got shape {tuple(labels.shape)}, expected {tuple(x.shape[:1])}")
    if labels.device != x.device:
        raise InputError(f"labels: got a tensor on {labels.device}, expected {x.device}, where x is")
    # Elsewhere asking would wait for the device, and a traced graph cannot ask.
    if labels.device.type == "cpu" and labels.numel() > 0 and not torch.compiler.is_compiling():
        least, most = (bound.item() for bound in labels.aminmax())
        if least < 0 or most >= gain.shape[0]:
            raise InputError(f"labels: got {least} to {most}, expected them from 0 to {gain.shape[0] - 1}")


# ---- Registration ----

SCHEMAS = {
    "conditional_batch_norm_forward": (
        "(Tensor x, Tensor gain, Tensor bias, Tensor? labels, Tensor? mean, Tensor? var, float eps, str activation,"
        " float slope, bool per_sample=False) -> (Tensor y, Tensor mean, Tensor var)"
    ),
    "conditional_batch_norm_backward": (
        "(Tensor dy, Tensor x, Tensor gain, Tensor bias, Tensor? labels, Tensor mean, Tensor var,"
        " bool batch_statistics, float eps, str activation, float slope) -> (Tensor dx, Tensor dgain, Tensor dbias)"
    ),
    "conditional_batch_norm_backward_backward": (
        "(Tensor ddx, Tensor ddgain, Tensor ddbias, Tensor dy, Tensor x, Tensor gain, Tensor bias,"
        " Tensor? labels, Tensor mean, Tensor var, bool batch_statistics, float eps, str activation, float slope)"
        " -> (Tensor ddy, Tensor dx, Tensor dgain)"
    ),
}


def _forward_fake(
    x: Tensor,
    gain: Tensor,
    bias: Tensor,
    labels: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
    activation: str,
    slope: float,
    per_sample: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = x.shape[:2] if per_sample else x.shape[1:2]
    statistics = gain.new_empty(shape, dtype=torch.promote_types(x.dtype, torch.float32))
    return _layout.empty_like(x), statistics, torch.empty_like(statistics)


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, gain, bias, labels, mean, _, eps, activation, slope, _ = inputs
    ctx.save_for_backward(x, gain, bias, labels, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.arguments = (mean is None, eps, activation, slope)


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, batch_statistics, eps, activation, slope = inputs
    ctx.save_for_backward(*tensors)
    ctx.arguments = (batch_statistics, eps, activation, slope)


def _formulas(ops: SimpleNamespace) -> Formulas:
    def forward_vjp(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        dx, dgain, dbias = ops.conditional_batch_norm_backward(dy, *ctx.saved_tensors, *ctx.arguments)
        return dx, dgain, dbias, *[None] * 7

    # mean and var get no cotangents of their own: where they are functions of x, that path is part of x's.
    def backward_vjp(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        ddy, dx, dgain = ops.conditional_batch_norm_backward_backward(*cotangents, *ctx.saved_tensors, *ctx.arguments)
        return ddy, dx, dgain, *[None] * 8

    return {
        "conditional_batch_norm_forward": (_forward_fake, _save_forward, forward_vjp),
        "conditional_batch_norm_backward": (synchronized.backward_fake, _save_backward, backward_vjp),
        "conditional_batch_norm_backward_backward": (synchronized.backward_backward_fake, None, None),
    }


register_op(_OP, SCHEMAS, _formulas, native_formulas=True)
