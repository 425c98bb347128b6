"""``gankernels doctor``: what runs on this machine and why, and what was left out of the build."""

from __future__ import annotations

import json
import os
import platform
from typing import Any

import torch

from gankernels import _machine, _native, dispatch, ops, selfcheck, verdicts  # noqa: F401  (importing the ops registers them)
from gankernels._arguments import ArgumentParser
from gankernels._version import __version__
from gankernels.errors import ImplementationUnavailable

#: Packages that the extras bring; each missing one is named with the command that needs it.
_EXTRAS = {
    "pillow": "data, train, sample",
    "rich": "train",
    "tyro": "train",
    "safetensors": "export",
    "tensorboard": "train --tensorboard",
    "scikit-learn": "the data set `digits`",
    "efficientnet-lite-pytorch": "evaluate: FD-EffLite0 instead of FD-classifier",
}


def doctor() -> dict[str, Any]:
    """What runs on this machine and why, as a dictionary that JSON can hold.

    Keys: ``versions``; ``cpu`` (threads, instruction set of the kernels); ``extension`` (whether it loaded, what it was
    built with, ``left_out``: part -> reason); ``cuda`` (each device's name, capability and memory in GiB); ``triton``;
    ``forced``; ``verdicts`` (the file's ``path``, and for each device's name the ``state`` of what `gankernels tune`
    wrote about it); ``ops`` (op -> device -> implementation -> "chosen: ...", "available", "not available: ..." or
    "wrong on this machine: ..."); ``elsewhere`` (op -> device -> dtype -> size class -> implementation, where that is
    not the one chosen for large fp32 tensors, of which ``ops`` speaks); ``extras`` (package -> version, or what needs
    it).
    """
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    indexed = [torch.device("cpu"), *(torch.device("cuda", index) for index in range(torch.cuda.device_count()))]
    return {
        "versions": {
            "gankernels": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": _machine.version("triton"),
            "cuda": torch.version.cuda,
        },
        "cpu": {
            "processor": _machine.processor(),
            "threads": torch.get_num_threads(),
            "kernels_built_for": _native.extension.cpu_isa() if _native.extension else None,
        },
        "extension": {
            "loaded": _native.extension is not None,
            "why_not": _native.why_no_cpu,
            **{key: _native.build.get(key) for key in ("torch", "compiler", "left_out")},
        },
        "cuda": [_device(index) for index in range(torch.cuda.device_count())],
        "triton": dispatch.machine_lacks("triton", devices[-1]) or "available",
        "forced": {
            "GANKERNELS_IMPL": os.environ.get("GANKERNELS_IMPL"),
            "GANKERNELS_CPU_ISA": os.environ.get("GANKERNELS_CPU_ISA"),
            "GANKERNELS_CUDA_CLUSTERS": os.environ.get("GANKERNELS_CUDA_CLUSTERS"),
        },
        "verdicts": {
            "path": str(verdicts.path()),
            "state": {verdicts.device_name(device) or str(device): verdicts.read(device).state for device in indexed},
        },
        "ops": {op: {device: _implementations(op, device) for device in devices} for op in dispatch.ops()},
        "elsewhere": {op: {device: _elsewhere(op, device) for device in devices} for op in dispatch.ops()},
        "extras": {name: _machine.version(name) or f"not installed; needed by {use}" for name, use in _EXTRAS.items()},
    }


def main(argv: list[str]) -> int:
    parser = ArgumentParser("doctor", "What runs on this machine and why; what was left out of the build.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    facts = doctor()
    print(json.dumps(facts, indent=2) if args.json else _text(facts))
    return 0


def _implementations(op: str, device: str) -> dict[str, str]:
    found = {}
    for impl in dispatch.implementations(op):
        why_not = dispatch.unavailable(op, impl, device)
        why_wrong = _wrong(op, impl, device)
        if why_not is not None:
            found[impl] = f"not available: {why_not}"
        else:
            found[impl] = f"wrong on this machine: {why_wrong}" if why_wrong else "available"
    try:
        impl, reason = dispatch.choose(op, device)
        # Right in fp32, where it is chosen, and wrong in another dtype: both are said.
        wrong = f"; {found[impl]}" if found[impl].startswith("wrong") else ""
        found[impl] = f"chosen: {reason}{wrong}"
    except ImplementationUnavailable:
        # The doctor is asked when something is forced that cannot run; it answers all the same.
        forced = os.environ["GANKERNELS_IMPL"]
        found[forced] += " (forced by GANKERNELS_IMPL: every call raises)"
    return found


def _wrong(op: str, impl: str, device: str) -> str:
    """In which dtypes ``impl`` is known to be wrong, and why; empty if in none."""
    why = {}
    for dtype in selfcheck.DTYPES:
        for size in verdicts.SIZE_CLASSES:
            verdict = verdicts.read(dispatch.indexed(device)).find(op, dtype, size)
            if verdict is not None and impl in verdict.wrong:
                why[verdicts.dtype_name(dtype)] = verdict.wrong[impl]
        failed = selfcheck.known_failures(op, dispatch.indexed(device), dtype)
        if impl in failed:
            why[verdicts.dtype_name(dtype)] = failed[impl]
    return "; ".join(f"{dtype}: {text}" for dtype, text in why.items())


def _elsewhere(op: str, device: str) -> dict[str, dict[str, str]]:
    usual = dispatch.plan(op, torch.device(device)).large.impl
    found: dict[str, dict[str, str]] = {}
    for dtype in selfcheck.DTYPES:
        plan = dispatch.plan(op, torch.device(device), dtype)
        others = {size: choice.impl for size, choice in plan._asdict().items() if choice.impl != usual}
        if others:
            found[verdicts.dtype_name(dtype)] = others
    return found


def _text(facts: dict[str, Any]) -> str:
    versions, cpu, extension = facts["versions"], facts["cpu"], facts["extension"]
    lines = [
        "  ".join(f"{name} {version}" for name, version in versions.items() if version),
        f"cpu        {cpu['processor']}, {cpu['threads']} threads",
    ]
    if extension["loaded"]:
        lines.append(f"extension  loaded, built by {extension['compiler']} for torch {extension['torch']}")
        lines.append(f"           CPU kernels run on {cpu['kernels_built_for']}")
    else:
        lines.append(f"extension  not loaded: {extension['why_not']}")
    lines += [f"           left out {part}: {why}" for part, why in (extension["left_out"] or {}).items()]
    for device in facts["cuda"]:
        lines.append(f"cuda       {device['name']}, sm_{device['capability']}, {device['memory_gib']} GiB")
    if not facts["cuda"]:
        lines.append("cuda       no device")
    lines.append(f"triton     {facts['triton']}")
    lines += [f"forced     {name}={value}" for name, value in facts["forced"].items() if value]
    lines.append(f"verdicts   {facts['verdicts']['path']}")
    lines += [f"           {name}: {state}" for name, state in facts["verdicts"]["state"].items()]
    for op, devices in facts["ops"].items():
        for device, found in devices.items():
            lines += ["", f"{op} on {device} tensors"]
            lines += [f"  {impl:<10} {verdict}" for impl, verdict in found.items()]
            for dtype, others in facts["elsewhere"][op][device].items():
                lines.append(f"  {dtype}: {', '.join(f'{impl} for {size}' for size, impl in others.items())}")
    missing = {name: text for name, text in facts["extras"].items() if text.startswith("not installed")}
    lines += ["", *(f"{name}: {text}" for name, text in missing.items())] if missing else []
    return "\n".join(lines)


def _device(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "capability": f"{properties.major}{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
    }
