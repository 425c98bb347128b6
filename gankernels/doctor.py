"""``gankernels doctor``: what runs on this machine and why, and what was left out of the build."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from typing import Any

import torch

from gankernels import _native, dispatch, ops  # noqa: F401  (importing the ops registers them)
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
    ``forced``; ``ops`` (op -> device -> implementation -> "chosen: ...", "available" or "not available: ...");
    ``extras`` (package -> version, or what needs it).
    """
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return {
        "versions": {
            "gankernels": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": _version("triton"),
            "cuda": torch.version.cuda,
        },
        "cpu": {
            "processor": _processor(),
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
        },
        "ops": {op: {device: _implementations(op, device) for device in devices} for op in dispatch.ops()},
        "extras": {name: _version(name) or f"not installed; needed by {use}" for name, use in _EXTRAS.items()},
    }


def main(argv: list[str]) -> int:
    parser = ArgumentParser("doctor", "What runs on this machine and why; what was left out of the build.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    facts = doctor()
    print(json.dumps(facts, indent=2) if args.json else _text(facts))
    return 0


def _implementations(op: str, device: str) -> dict[str, str]:
    verdicts = {}
    for impl in dispatch.IMPLEMENTATIONS:
        why_not = dispatch.unavailable(op, impl, device)
        verdicts[impl] = "available" if why_not is None else f"not available: {why_not}"
    try:
        impl, reason = dispatch.choose(op, device)
        verdicts[impl] = f"chosen: {reason}"
    except ImplementationUnavailable:
        # The doctor is asked when something is forced that cannot run; it answers all the same.
        forced = os.environ["GANKERNELS_IMPL"]
        verdicts[forced] += " (forced by GANKERNELS_IMPL: every call raises)"
    return verdicts


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
    for op, devices in facts["ops"].items():
        for device, verdicts in devices.items():
            lines += ["", f"{op} on {device} tensors"]
            lines += [f"  {impl:<10} {verdict}" for impl, verdict in verdicts.items()]
    missing = {name: text for name, text in facts["extras"].items() if text.startswith("not installed")}
    lines += ["", *(f"{name}: {text}" for name, text in missing.items())] if missing else []
    return "\n".join(lines)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _device(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "capability": f"{properties.major}{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
    }
