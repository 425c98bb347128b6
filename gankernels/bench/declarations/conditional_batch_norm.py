"""Conditional batch norm with a ReLU behind it, at every shape that the networks have."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gankernels.bench import networks
from gankernels.bench.declaration import DOUBLE_BACKWARD, FORWARD, FORWARD_BACKWARD, Benchmark, Case
from gankernels.ops import conditional_batch_norm

#: Forward: x is read twice, y written. Backward: x and dy read twice, dx written. The backward of that: x, dy and the
#: cotangent of dx read twice, ddy and the new dx written; the penalty reads dx and writes that cotangent.
_PASSES = {FORWARD: 3, FORWARD_BACKWARD: 3 + 5, DOUBLE_BACKWARD: 3 + 5 + 2 + 8}


#: Gain and bias looked up in tables by class. The tables of ten classes are no bytes to speak of.
_TABLES = Case("SNGAN-32 G block 3, norm 2, class tables", (64, 256, 32, 32), {"classes": 10})

#: Adaptive instance norm (Huang and Belongie, arXiv 1703.06868), as MUNIT's decoder has it (arXiv 1804.04732).
_INSTANCE = Case("MUNIT-256 G residual block, instance norm", (4, 256, 64, 64), {"per_sample": True})


def _inputs(case: Case, rng: torch.Generator) -> list[Tensor]:
    n, c = case.shape[:2]
    rows = case.arguments.get("classes", n)
    x = torch.randn(case.shape, generator=rng)
    gain, bias = (torch.randn(rows, c, generator=rng) for _ in range(2))
    labels = [torch.randint(rows, (n,), generator=rng)] if "classes" in case.arguments else []
    return [x, 1 + gain / 4, bias, *labels]


def _stock(case: Case, x: Tensor, gain: Tensor, bias: Tensor, labels: Tensor | None = None) -> Tensor:
    if labels is not None:
        gain, bias = F.embedding(labels, gain), F.embedding(labels, bias)
    x_hat = F.instance_norm(x) if _per_sample(case) else F.batch_norm(x, None, None, training=True)
    return F.relu(x_hat * gain[:, :, None, None] + bias[:, :, None, None])


def _ours(case: Case, x: Tensor, gain: Tensor, bias: Tensor, labels: Tensor | None = None, *, impl: str) -> Tensor:
    per_sample = _per_sample(case)
    return conditional_batch_norm(x, gain, bias, labels=labels, per_sample=per_sample, activation="relu", impl=impl)


def _kink(case: Case, x: Tensor, gain: Tensor, bias: Tensor, labels: Tensor | None = None) -> Tensor:
    return conditional_batch_norm(x, gain, bias, labels=labels, per_sample=_per_sample(case), impl="reference")


def _per_sample(case: Case) -> bool:
    return bool(case.arguments.get("per_sample"))


BENCHMARK = Benchmark(
    op="conditional_batch_norm",
    cases=[*networks.conditional_batch_norm_cases(), _TABLES, _INSTANCE],
    inputs=_inputs,
    stock=_stock,
    ours=_ours,
    bytes=lambda case, mode, itemsize: case.passes(_PASSES[mode], itemsize),
    modes=(FORWARD, FORWARD_BACKWARD, DOUBLE_BACKWARD),
    reference="reference",
    kink=_kink,
    launches=lambda mode: {FORWARD: 2, FORWARD_BACKWARD: 4, DOUBLE_BACKWARD: 8}[mode],
)
