"""Conditional batch norm + activation, forward and backward: ours against PyTorch at its best, in one process.

    python benchmarks/bench_conditional_batch_norm.py [--quick] [--keep-memory] [--out FILE.csv]

Providers: eager (contiguous, stock PyTorch), eager-best (the same in channels_last), compile (torch.compile of it in
channels_last), and each of our implementations. All see the same numbers, are checked before they are timed, and are
timed in turns. A peer is correct when it computes the same function as the fp64 reference; ours must also keep its
error within twice eager's, in the worse of eager's layouts. The peer of ``speedup_vs_best_peer`` is the fastest of the
first three. The floor is 8 passes over the tensor (forward: x read twice, y written; backward: x and dy read twice, dx
written) at the bandwidth of a copy, measured in the same run.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import gankernels
from gankernels import dispatch
from gankernels.ops import conditional_batch_norm
from gankernels._memory import keep_freed_memory

OP = "conditional_batch_norm"
PASSES = 8
MODE = "forward+backward"
#: With glibc told to keep what is freed, as the trainer does: no contender pays for page faults.
KEPT = "forward+backward, kept memory"
# position -> [N, C, H, W]
SHAPES = {
    "batch 64, 192 channels, 32 px": (64, 192, 32, 32),
    "SNGAN-32 G block 1": (64, 256, 8, 8),
    "SNGAN-32 G block 3": (64, 256, 32, 32),
    "BigGAN-128 G block 1": (16, 1536, 4, 4),
    "BigGAN-128 G block 3": (16, 768, 16, 16),
    "BigGAN-128 G block 5": (16, 192, 64, 64),
}
QUICK = ("batch 64, 192 channels, 32 px", "BigGAN-128 G block 1")
COLUMNS = (
    *("op", "position", "shape", "dtype", "layout", "mode", "provider", "impl", "ms", "ms_p20", "ms_p80"),
    *("speedup_vs_eager", "speedup_vs_best_peer", "floor_share", "floor_kind", "correct"),
    *("device", "torch", "triton", "gankernels", "commit", "date"),
)

Provider = Callable[[Tensor, Tensor, Tensor], Tensor]


def stock(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """What a user writes with stock PyTorch."""
    return F.relu(F.batch_norm(x, None, None, training=True) * gain[:, :, None, None] + bias[:, :, None, None])


def fused(impl: str) -> Provider:
    return lambda x, gain, bias: conditional_batch_norm(x, gain, bias, activation="relu", impl=impl)


def inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    n, c = shape[:2]
    x, dy = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(2))
    gain, bias = (torch.randn(n, c, generator=generator).to(device, dtype) for _ in range(2))
    return x, 1 + gain / 4, bias, dy


def step(provider: Provider, x: Tensor, gain: Tensor, bias: Tensor, dy: Tensor) -> list[Tensor]:
    y = provider(x, gain, bias)
    return [y, *torch.autograd.grad(y, (x, gain, bias), dy)]


def errors(results: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [(got.double() - want).abs().max().item() for got, want in zip(results, exact, strict=True)]


def measure(function: Callable[[], object], device: str) -> float:
    """Milliseconds of one call."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)
    start_s = time.perf_counter()
    function()
    return (time.perf_counter() - start_s) * 1e3


def copy_bandwidth(x: Tensor, device: str, repeats: int) -> float:
    """Bytes read and written per millisecond by a copy of x into memory that is already mapped."""
    target = torch.empty_like(x)
    target.copy_(x)
    times = [measure(lambda: target.copy_(x), device) for _ in range(repeats)]
    return 2 * x.numel() * x.element_size() / statistics.median(times)


def benchmark(position: str, shape: tuple[int, ...], dtype: torch.dtype, device: str, repeats: int) -> list[dict]:
    torch._dynamo.reset()
    x, gain, bias, dy = inputs(shape, dtype, device)
    # Where z is within rounding of zero, any implementation may find either side of the ReLU: no gradient enters there,
    # and the errors that are compared are those of arithmetic.
    z = conditional_batch_norm(x.double(), gain.double(), bias.double(), impl="reference")
    dy = dy.masked_fill(z.abs() < 32 * torch.finfo(dtype).eps, 0)
    plain = [t.clone().requires_grad_() for t in (x, gain, bias)] + [dy]
    last = [t.contiguous(memory_format=torch.channels_last) for t in (x, dy)]
    best = [last[0].requires_grad_(), plain[1], plain[2], last[1]]
    contenders: dict[str, tuple[str, Provider, list[Tensor]]] = {
        "eager": ("", stock, plain),
        "eager-best": ("", stock, best),
        "compile": ("", torch.compile(stock), best),
    }
    for impl in dispatch.IMPLEMENTATIONS[1:]:
        if dispatch.unavailable(OP, impl, device) is None:
            contenders[f"gankernels-{impl}"] = (impl, fused(impl), best)

    exact = step(fused("reference"), *[t.detach().double().requires_grad_() for t in plain[:3]], dy.double())
    allowed = [
        2 * max(pair)
        for pair in zip(errors(step(stock, *plain), exact), errors(step(stock, *best), exact), strict=True)
    ]
    same_function = [torch.finfo(dtype).eps ** 0.5 * want.abs().max().item() for want in exact]
    correct, times = {}, {name: [] for name in contenders}
    for name, (_, provider, tensors) in contenders.items():
        found = errors(step(provider, *tensors), exact)
        if provider is stock or name == "compile":
            correct[name] = all(error <= bound for error, bound in zip(found, same_function, strict=True))
        else:
            correct[name] = all(error <= bound for error, bound in zip(found, allowed, strict=True))
        step(provider, *tensors)
    names = [name for name in contenders if correct[name]]
    bandwidth = copy_bandwidth(best[0].detach(), device, repeats)
    for turn in range(repeats):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            _, provider, tensors = contenders[name]
            times[name].append(measure(lambda p=provider, t=tensors: step(p, *t), device))

    median = {name: statistics.median(times[name]) for name in names}
    peer = min(median[name] for name in ("eager", "eager-best", "compile") if name in median)
    floor = PASSES * x.numel() * x.element_size() / bandwidth
    rows = []
    for name, (impl, _, tensors) in contenders.items():
        row = {
            "op": OP,
            "position": position,
            "shape": "x".join(map(str, shape)),
            "dtype": str(dtype).removeprefix("torch."),
            "layout": "contiguous" if tensors is plain else "channels_last",
            "provider": name,
            "impl": impl,
            "floor_kind": f"copy {bandwidth / 1e6:.1f} GB/s",
            "correct": "yes" if correct[name] else "wrong",
        }
        if name in median:
            p20, _, _, p80 = statistics.quantiles(times[name], n=5)
            row |= {"ms": f"{median[name]:.3f}", "ms_p20": f"{p20:.3f}", "ms_p80": f"{p80:.3f}"}
            row["speedup_vs_eager"] = f"{median['eager'] / median[name]:.2f}" if "eager" in median else ""
            row["speedup_vs_best_peer"] = f"{peer / median[name]:.2f}"
            row["floor_share"] = f"{floor / median[name]:.2f}"
        rows.append(row)
    return rows


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    facts = gankernels.doctor()["cpu"]
    return f"{facts['processor']}, {facts['threads']} threads, {facts['kernels_built_for']}"


def default_out(device: str, mode: str) -> Path:
    name = torch.cuda.get_device_name() if device == "cuda" else gankernels.doctor()["cpu"]["processor"]
    folder = "-".join(name.lower().replace("(r)", "").replace("@", "").split())
    threads = "" if device == "cuda" else f"-{os.cpu_count()}-cores"
    suffix = "-kept-memory" if mode == KEPT else ""
    return Path(__file__).parent / "results" / f"{folder}{threads}" / f"{OP}{suffix}.csv"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two shapes, few repeats")
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument(
        "--keep-memory", action="store_true", help="no page faults for anyone: glibc keeps what is freed"
    )
    parser.add_argument("--out", type=Path, help="the CSV file; the default is the device's in benchmarks/results")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    root = Path(__file__).parent
    commit = subprocess.run(["git", "-C", root, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    mode = KEPT if args.keep_memory and keep_freed_memory() else MODE
    stamp = {
        "mode": mode,
        "device": device_name(device),
        "torch": torch.__version__,
        "triton": gankernels.doctor()["versions"]["triton"] or "",
        "gankernels": gankernels.__version__,
        "commit": commit.stdout.strip(),
        "date": datetime.date.today().isoformat(),
    }
    rows = []
    for position in QUICK if args.quick else SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            for row in benchmark(position, SHAPES[position], dtype, device, 9 if args.quick else args.repeats):
                rows.append(row | stamp)
                shown = [f"{row[key]:<{width}}" for key, width in (("position", 30), ("dtype", 9), ("provider", 16))]
                shown += [
                    f"{row.get('ms', row['correct']):>9} ms",
                    f"{row.get('speedup_vs_best_peer', ''):>6} x best peer",
                ]
                print(*shown, f"{row.get('floor_share', ''):>5} of the floor", flush=True)
    out = args.out or default_out(device, mode)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial")
    with open(partial, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(partial, out)
    print(f"written to {out} ({stamp['device']})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
