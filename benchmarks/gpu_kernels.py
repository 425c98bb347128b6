"""Runs every kernel of every op on the GPU: small, for compute-sanitizer, or at one real size, for a profiler.

    compute-sanitizer python benchmarks/gpu_kernels.py
    ncu --profile-from-start off python benchmarks/gpu_kernels.py --profile

Inputs are drawn and results are judged on the CPU, so that hardly a kernel but ours runs. Exit status: 1 if a result
is wrong, 2 if there is nothing to run.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor

from gankernels import dispatch
from gankernels.ops import conditional_batch_norm
from gankernels.verification import another_function

Function = Callable[..., Tensor]
#: Name, function of (tensors, impl=), tensors on the CPU.
Case = tuple[str, Function, list[Tensor]]

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def conditional_batch_norm_cases(profile: bool) -> Iterator[Case]:
    # Without a kink, where either side is right; the tests know how to judge the others.
    def function(*tensors: Tensor, impl: str) -> Tensor:
        return conditional_batch_norm(*tensors, activation="none", impl=impl)

    # Large enough that the pixels of a sample are split between blocks; and one with no size divisible by a vector.
    # And some whose channels fit the shared memory of a cluster, in one order or both.
    shapes = [(64, 192, 32, 32), (16, 768, 16, 16)] if profile else [(2, 8, 128, 128), (2, 32, 32, 32), (3, 5, 9, 7)]
    dtypes = [torch.float32, torch.bfloat16] if profile else [torch.float32, torch.bfloat16, torch.float64]
    layouts = ["channels_last"] if profile else LAYOUTS
    for shape, dtype, layout in product(shapes, dtypes, layouts):
        x = torch.randn(shape).to(dtype).contiguous(memory_format=LAYOUTS[layout])
        gain, bias = (torch.randn(shape[:2]).to(torch.promote_types(dtype, torch.float32)) for _ in range(2))
        yield f"{shape} {dtype} {layout}", function, [x, gain, bias]


#: Of each implementation: GANKERNELS_CUDA_CLUSTERS, and what to say of it. Kernels in clusters have others beside them.
WAYS = {"cuda": [("1", ""), ("0", " without clusters")], "triton": [("1", "")]}

OPS = {"conditional_batch_norm": conditional_batch_norm_cases}


def two_orders(function: Function, tensors: list[Tensor], cotangents: list[Tensor], **impl: str) -> list[Tensor]:
    """The output, its gradients, and the gradients of those by the cotangent and the tensors."""
    tensors = [t.detach().requires_grad_() for t in tensors]
    y = function(*tensors, **impl)
    dy = cotangents[0].to(y).requires_grad_()
    first = torch.autograd.grad(y, tensors, dy, create_graph=True)
    grads = [c.to(g) for c, g in zip(cotangents[1:], first, strict=True)]
    second = torch.autograd.grad(first, [dy, *tensors], grads, allow_unused=True)
    return [t.detach() for t in (y, *first, *second) if t is not None]


def run(case: Case, impl: str, device: str) -> list[Tensor]:
    """The two orders on ``device``, in fp64 by the reference."""
    _, function, tensors = case
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(t.shape, generator=generator).to(t) for t in (tensors[0], *tensors)]
    if impl == "reference":
        tensors, cotangents = [t.double() for t in tensors], [c.double() for c in cotangents]
    return two_orders(function, [t.to(device) for t in tensors], [c.to(device) for c in cotangents], impl=impl)


def profile(case: Case, impl: str) -> str | None:
    run(case, impl, "cuda")  # Triton compiles at the first call
    torch.cuda.profiler.start()
    run(case, impl, "cuda")
    torch.cuda.profiler.stop()
    return None


def judge(case: Case, impl: str) -> str | None:
    """Why the results of ``impl`` are not those of the reference, or None."""
    got = [t.cpu() for t in run(case, impl, "cuda")]
    return another_function(got, run(case, "reference", "cpu"), case[2][0].dtype)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run every kernel of every op on the GPU.")
    parser.add_argument("--impl", nargs="+", default=["cuda", "triton"], choices=["cuda", "triton"])
    parser.add_argument("--profile", action="store_true", help="one real size, between the profiler's start and stop")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device")
        return 2
    torch.manual_seed(0)
    runs = failures = 0
    for (op, cases), impl in product(OPS.items(), args.impl):
        if why_not := dispatch.unavailable(op, impl, "cuda"):
            print(f"{op} {impl}: not run, {why_not}")
            continue
        for (clusters, remark), case in product(WAYS[impl], cases(args.profile)):
            os.environ["GANKERNELS_CUDA_CLUSTERS"] = clusters
            why = profile(case, impl) if args.profile else judge(case, impl)
            print(f"{op} {impl} {case[0]}{remark}: {why or 'done'}", flush=True)
            runs, failures = runs + 1, failures + bool(why)
    torch.cuda.synchronize()
    print(f"{runs} cases, {failures} wrong")
    return 1 if failures else 0 if runs else 2


if __name__ == "__main__":
    sys.exit(main())
