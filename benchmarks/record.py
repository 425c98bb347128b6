"""Makes the committed figures of this machine anew: benchmarks/results/<device>/{ops,steps}.csv and their likes.

    python benchmarks/record.py [ops|steps|system-memory ...]

``system-memory`` is the ops with memory that the system gives anew at every call, as a plain PyTorch program has it on
a CPU; see docs/benchmarking.md. Run it on an idle machine, then ``make tables``.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import torch

from gankernels.bench import rows

RESULTS = Path(__file__).resolve().parent / "results"
#: name -> the command behind ``gankernels bench``
RUNS = {"ops": ["ops"], "steps": ["steps"], "system-memory": ["ops", "--memory", "system"]}
FILES = {"ops": "ops.csv", "steps": "steps.csv", "system-memory": "ops-system-memory.csv"}


def folder() -> Path:
    """The folder of this machine's figures."""
    device = rows.stamp("cuda" if torch.cuda.is_available() else "cpu")["device"]
    return RESULTS / re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in RUNS]
    if unknown:
        print(f"record: got {unknown[0]!r}, expected some of {', '.join(RUNS)}", file=sys.stderr)
        return 2
    folder().mkdir(parents=True, exist_ok=True)
    codes = []
    for name in names or RUNS:
        if name == "system-memory" and torch.cuda.is_available():
            continue
        # A process each: what one tells the allocator holds for as long as it lives.
        command = [sys.executable, "-m", "gankernels", "bench", *RUNS[name], "--csv", str(folder() / FILES[name])]
        codes.append(subprocess.run(command).returncode)
    return max(codes, default=0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
