"""Launchers of the Triton kernels in device*.py: plain tensors in and out, three launches an order.

They run compiled on CUDA tensors, and on CPU tensors in Triton's interpreter (TRITON_INTERPRET=1, set before triton is
imported). They are asynchronous, allocate by shape alone, and add in an order that depends on shapes alone: safe in a
CUDA graph, and the same bits every time. Arguments are trusted; op.py checks them.

Gain and bias have a row for each sample, or with labels for each class, of which sample n has row labels[n].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from gankernels.ops import _layout
from gankernels.ops._launch import Specialisation, on_device_of
from gankernels.ops.conditional_batch_norm import device, device_backward, device_backward_backward, tiles
from gankernels.ops.conditional_batch_norm.synchronized import rows_of_batch


def conditional_batch_norm_forward(
    x: Tensor,  # [N, C, H, W]
    gain: Tensor,  # [rows, C]
    bias: Tensor,  # [rows, C]
    labels: Tensor | None,  # [N]
    mean: Tensor | None,  # [C]
    var: Tensor | None,  # [C]
    eps: float,
    activation: str,
    slope: float,
    per_sample: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """``y = act((x - mean) * gain / sqrt(var + eps) + bias)``.

    Without ``mean`` and ``var`` they are taken over N, H and W, with ``per_sample`` over H and W, and are [N, C] then.
    Returns y in x's dtype and layout, and the mean and the biased variance that were used, in fp32 (fp64 for fp64).
    """
    layout, acc = _layout.memory_format(x), tiles.accumulator(x)
    y = _layout.empty_like(x)
    batch_statistics = mean is None or var is None
    if mean is None or var is None:
        shape = x.shape[:2] if per_sample else x.shape[1:2]
        mean, var = x.new_empty(shape, dtype=acc), x.new_empty(shape, dtype=acc)
    else:
        mean, var = mean.to(acc, copy=True), var.to(acc, copy=True)
    if x.numel() == 0:
        return (y, mean.fill_(torch.nan), var.fill_(torch.nan)) if batch_statistics else (y, mean, var)
    x, gain, bias = x.contiguous(memory_format=layout), gain.contiguous(), bias.contiguous()
    plan = tiles.plan_of(x, layout, 0, per_sample)
    with on_device_of(x):
        if batch_statistics:
            launch_statistics(plan, x, mean, var)
        device._conditional_batch_norm_forward_kernel[plan.grid](
            x, gain, bias, mean, var, y, plan.c, plan.l, plan.s, plan.chunks, plan.tiles,
            **tiles.formula(eps, activation, slope, labels, gain), **plan.tile,
        )  # fmt: skip
    return y, mean, var


def conditional_batch_norm_backward(
    dy: Tensor,  # [N, C, H, W]
    x: Tensor,  # [N, C, H, W]
    gain: Tensor,  # [rows, C]
    bias: Tensor,  # [rows, C]
    labels: Tensor | None,  # [N]
    mean: Tensor,  # [C]
    var: Tensor,  # [C]
    batch_statistics: bool,
    eps: float,
    activation: str,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients dx, dgain and dbias of the forward. ``mean`` and ``var`` are those that it returned.

    With ``batch_statistics`` they are functions of x, otherwise constants. dx has x's dtype and layout, dgain and dbias
    have the dtypes of gain and bias.
    """
    layout, gain, bias = _layout.memory_format(x), gain.contiguous(), bias.contiguous()
    dx, dgain, dbias = _layout.empty_like(x), torch.empty_like(gain), torch.empty_like(bias)
    if x.numel() == 0:
        return dx, dgain.zero_(), dbias.zero_()
    x, dy = (t.contiguous(memory_format=layout) for t in (x, dy))
    plan, formula = tiles.plan_of(x, layout, 1, mean.dim() == 2), tiles.formula(eps, activation, slope, labels, gain)
    terms = x.new_empty((2, plan.s), dtype=tiles.accumulator(x))
    with on_device_of(x):
        sums = launch_backward_sums(plan, formula, dy, x, gain, bias, mean, var)
        of_rows, sums = launch_row_sums(plan, sums, labels, len(gain))
        device_backward._conditional_batch_norm_backward_terms_kernel[plan.small_grid](
            sums, rows_of_batch(gain, labels), var, dgain, dbias, terms,
            of_rows.samples, plan.s, of_rows.chunks, plan.samples * plan.l,
            EPS=float(eps), BATCH_STATISTICS=batch_statistics, **of_rows.small_tile,
        )  # fmt: skip
        launch_backward(plan, formula, batch_statistics, dy, x, gain, bias, mean, var, terms, dx)
    return dx, dgain, dbias


def conditional_batch_norm_backward_backward(
    ddx: Tensor,  # [N, C, H, W]
    ddgain: Tensor,  # [rows, C]
    ddbias: Tensor,  # [rows, C]
    dy: Tensor,  # [N, C, H, W]
    x: Tensor,  # [N, C, H, W]
    gain: Tensor,  # [rows, C]
    bias: Tensor,  # [rows, C]
    labels: Tensor | None,  # [N]
    mean: Tensor,  # [C]
    var: Tensor,  # [C]
    batch_statistics: bool,
    eps: float,
    activation: str,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The vector-Jacobian product of the backward: cotangents of dx, dgain and dbias in, those of dy, x and gain out.

    ddy and dx have x's dtype and layout, dgain has gain's dtype. The cotangent of bias is zero almost everywhere.
    """
    layout = _layout.memory_format(x)
    gain, bias, ddgain, ddbias = (t.contiguous() for t in (gain, bias, ddgain, ddbias))
    ddy, dx, dgain = _layout.empty_like(x), _layout.empty_like(x), torch.empty_like(gain)
    if x.numel() == 0:
        return ddy, dx, dgain.zero_()
    x, dy, ddx = (t.contiguous(memory_format=layout) for t in (x, dy, ddx))
    plan, formula = tiles.plan_of(x, layout, 2, mean.dim() == 2), tiles.formula(eps, activation, slope, labels, gain)
    terms = x.new_empty((5, plan.s), dtype=tiles.accumulator(x))
    with on_device_of(x):
        sums = launch_backward_backward_sums(plan, formula, ddx, dy, x, gain, bias, mean, var)
        of_rows, sums = launch_row_sums(plan, sums, labels, len(gain))
        device_backward_backward._conditional_batch_norm_backward_backward_terms_kernel[plan.small_grid](
            sums, rows_of_batch(ddgain, labels), rows_of_batch(gain, labels), var, dgain, terms,
            of_rows.samples, plan.s, of_rows.chunks, plan.samples * plan.l,
            EPS=float(eps), BATCH_STATISTICS=batch_statistics, **of_rows.small_tile,
        )  # fmt: skip
        launch_backward_backward(
            plan, formula, batch_statistics, ddx, ddgain, ddbias, dy, x, gain, bias, mean, var, terms, ddy, dx
        )
    return ddy, dx, dgain


# ---- The passes over pixels ----  on dense tensors of one layout, on x's device; parts.py launches them one by one.


def launch_statistics(plan: tiles.Plan, x: Tensor, mean: Tensor, var: Tensor) -> None:
    """Writes mean and var [S], in the accumulation type or in fp64."""
    sums = x.new_empty((2, plan.rows, plan.s), dtype=tiles.accumulator(x))
    device._conditional_batch_norm_statistics_kernel[plan.grid](
        x, sums, plan.c, plan.l, plan.s, plan.rows, plan.chunks, plan.tiles, **plan.tile
    )
    device._conditional_batch_norm_finish_statistics_kernel[plan.small_grid](
        x, sums, mean, var, plan.c, plan.l, plan.s, plan.rows, plan.chunks, plan.tiles * plan.tile["BLOCK_L"],
        CHANNELS_LAST=plan.tile["CHANNELS_LAST"], **tiles.SMALL, **tiles.OPTIONS,
    )  # fmt: skip


def launch_backward_sums(plan: tiles.Plan, formula: dict[str, Any], *tensors: Tensor) -> Tensor:
    """s0 and s1 for each row of partial sums: [2, rows, S]. ``tensors``: dy, x, gain, bias, mean, var."""
    sums = tensors[-1].new_empty((2, plan.rows, plan.s))
    device_backward._conditional_batch_norm_backward_sums_kernel[plan.grid](
        *tensors, sums, plan.c, plan.l, plan.s, plan.rows, plan.chunks, plan.tiles, **formula, **plan.tile
    )
    return sums


def launch_backward(plan: tiles.Plan, formula: dict[str, Any], batch_statistics: bool, *tensors: Tensor) -> None:
    """``tensors``: dy, x, gain, bias, mean, var, terms [2, S], and dx, which it writes."""
    kernel = device_backward._conditional_batch_norm_backward_kernel
    _launch_pixels(kernel, plan, formula, batch_statistics, tensors)


def launch_backward_backward_sums(plan: tiles.Plan, formula: dict[str, Any], *tensors: Tensor) -> Tensor:
    """s0, s1, t0, t1 and u for each row of partial sums: [5, rows, S]. ``tensors``: ddx, then those of order 1."""
    sums = tensors[-1].new_empty((5, plan.rows, plan.s))
    device_backward_backward._conditional_batch_norm_backward_backward_sums_kernel[plan.grid](
        *tensors, sums, plan.c, plan.l, plan.s, plan.rows, plan.chunks, plan.tiles, **formula, **plan.tile
    )
    return sums


def launch_backward_backward(
    plan: tiles.Plan, formula: dict[str, Any], batch_statistics: bool, *tensors: Tensor
) -> None:
    """``tensors``: ddx, ddgain, ddbias, dy, x, gain, bias, mean, var, terms [5, S], and ddy and dx, which it writes."""
    kernel = device_backward_backward._conditional_batch_norm_backward_backward_kernel
    _launch_pixels(kernel, plan, formula, batch_statistics, tensors)


def _launch_pixels(
    kernel: Any, plan: tiles.Plan, formula: dict[str, Any], batch_statistics: bool, tensors: Sequence[Tensor]
) -> None:
    """The pass of a backward that writes pixels."""
    sizes = (plan.c, plan.l, plan.s, plan.chunks, plan.tiles)
    kernel[plan.grid](*tensors, *sizes, **formula, BATCH_STATISTICS=batch_statistics, **plan.tile)


def launch_row_sums(plan: tiles.Plan, sums: Tensor, labels: Tensor | None, classes: int) -> tuple[tiles.Plan, Tensor]:
    """Partial sums [quantities, rows, C] of each row of gain, and the plan of the step on [rows, C] over them."""
    if labels is None:
        return plan, sums
    of_classes = sums.new_empty((len(sums), classes, plan.c))
    grid = (*plan.small_grid, triton.cdiv(classes, tiles.CLASSES), len(sums))
    device._conditional_batch_norm_class_sums_kernel[grid](
        sums, labels.contiguous(), of_classes, plan.n, classes, plan.c, plan.chunks,
        BLOCK_CLASSES=tiles.CLASSES, **plan.small_tile,
    )  # fmt: skip
    small_tile = plan.small_tile | {"BLOCK_N": tiles.SMALL["BLOCK_ROWS"], "BLOCK_K": 1}
    return plan._replace(n=classes, chunks=1, small_tile=small_tile), of_classes


def specialisations() -> Iterator[Specialisation]:
    """Every kernel in every dtype and layout, with the activation that needs most registers, at [64, 192, 32, 32].

    With labels, which are one load more, and with statistics of each sample where registers are fewest: in fp64 and in
    16 bits, channels_last.
    """
    types = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}
    pixels = ("x_ptr", "y_ptr", "dy_ptr", "dx_ptr", "ddx_ptr", "ddy_ptr")
    functions = vars(device) | vars(device_backward) | vars(device_backward_backward)
    kernels = [kernel for name, kernel in functions.items() if name.startswith("_conditional_batch_norm_")]
    for dtype, type_ in types.items():
        for channels_last in (False, True):
            for kernel in kernels:
                small = "BLOCK_L" not in kernel.arg_names
                # The layout hardly touches the steps on [N, C], and fp16 differs from bf16 in its conversions alone.
                if not channels_last and (small or type_ == "fp16"):
                    continue
                if small and "x_ptr" not in kernel.arg_names and type_ in ("bf16", "fp16"):
                    continue  # the same as fp32
                order = kernel.__name__.count("backward")
                plan = tiles.plan_for(64, 192, 1024, dtype, channels_last, order)
                given = {"EPS": 1e-5, "ACTIVATION": "lrelu", "SLOPE": 0.2, "BATCH_STATISTICS": True}
                given |= {"BLOCK_CLASSES": tiles.CLASSES}
                given |= {} if "of_classes_ptr" in kernel.arg_names else {"labels_ptr": None}
                given |= plan.tile | tiles.SMALL | plan.small_tile if small else plan.tile
                accumulator = "fp64" if type_ == "fp64" else "fp32"
                pointers = dict.fromkeys(pixels, type_) | {"labels_ptr": "i64"}
                found = Specialisation.of(kernel, given, tiles.OPTIONS, pointers, accumulator)
                yield found
                signature, constexprs = found.signature, found.constexprs
                if signature.get("labels_ptr") == "constexpr" and channels_last and type_ in ("bf16", "fp64"):
                    with_labels = {name: value for name, value in constexprs.items() if name != "labels_ptr"}
                    yield found._replace(signature=signature | {"labels_ptr": "*i64"}, constexprs=with_labels)
                if "PER_SAMPLE" in constexprs and channels_last and type_ in ("bf16", "fp64"):
                    yield found._replace(constexprs=constexprs | {"PER_SAMPLE": True})
                exact = signature | {"mean_ptr": "*fp64", "var_ptr": "*fp64"}
                # As parts.py launches it.
                if kernel is device._conditional_batch_norm_finish_statistics_kernel and exact != signature:
                    yield found._replace(signature=exact)
