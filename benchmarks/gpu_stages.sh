#!/usr/bin/env bash
# The stages of gpu.sh, which runs each as `gpu_stages.sh STAGE` with RESULTS (the stage's folder), PYTHON and SKIPPED
# set. The last line that a stage prints is its line in the summary.
set -euo pipefail

cd "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

have() { command -v "$1" >/dev/null; }

skip() {
  echo "$1"
  exit "$SKIPPED"
}

build() {
  "$PYTHON" setup.py build_ext --inplace
  "$PYTHON" - <<'EOF'
import sys

import torch
from gankernels import _native

if _native.why_no_cuda:
    sys.exit(f"no CUDA part, so Triton alone will run: {_native.why_no_cuda}")
print(f"CUDA part built for sm_{''.join(map(str, torch.cuda.get_device_capability()))} and torch {torch.__version__}")
EOF
}

facts() {
  "$PYTHON" -m gankernels doctor --json >"$RESULTS/doctor.json"
  for tool in nvcc cmake ninja c++ compute-sanitizer ncu "$PYTHON"; do
    echo "$tool: $("$tool" --version 2>&1 | tr '\n' ' ')"
  done >"$RESULTS/tools.txt"
  "$PYTHON" -m pip list --format=freeze >"$RESULTS/packages.txt" || echo "no pip"
  have nvidia-smi || skip "no nvidia-smi; doctor.json has what torch knows"
  nvidia-smi -q >"$RESULTS/nvidia-smi.txt"
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv,noheader
}

tests() {
  local workers=() cores
  cores=$(nproc)
  # Most of the work is compiling Triton's kernels.
  if "$PYTHON" -c 'import xdist' 2>/dev/null; then workers=(-n "$((cores < 8 ? cores : 8))" --dist worksteal); fi
  "$PYTHON" -m pytest tests -m gpu -v "${workers[@]}" --junitxml="$RESULTS/junit.xml" \
    --continue-on-collection-errors -p no:cacheprovider -o timeout=100
}

# bench ops|steps
bench() {
  "$PYTHON" -m gankernels bench "$1" --csv "$RESULTS/$1.csv" --json "$RESULTS/$1.json" --html "$RESULTS/$1.html"
}

sanitizer() {
  have compute-sanitizer || skip "no compute-sanitizer"
  local failed=()
  for tool in memcheck racecheck; do
    # Every tensor is an allocation of its own, or an access past its end would hit the next one and go unseen.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 1 --target-processes all \
      "$PYTHON" benchmarks/gpu_kernels.py --impl cuda 2>&1 | tee "$RESULTS/$tool.txt" || failed+=("$tool")
    if grep -q 'Device not supported' "$RESULTS/$tool.txt"; then skip "compute-sanitizer does not support this device"; fi
  done
  echo "of memcheck and racecheck failed: ${failed[*]:-none}"
  ((${#failed[@]} == 0))
}

profile() {
  have ncu || skip "no ncu"
  # --clock-control none: by default ncu would fix the GPU's clocks.
  ncu --clock-control none --target-processes all --profile-from-start off --section SpeedOfLight \
    --section MemoryWorkloadAnalysis --section Occupancy --section LaunchStats --csv --log-file "$RESULTS/kernels.csv" \
    "$PYTHON" benchmarks/gpu_kernels.py --profile || {
    if grep -qE 'ERR_NVGPUCTRPERM|LibraryNotLoaded' "$RESULTS/kernels.csv"; then skip "ncu may not read the counters"; fi
    return 1
  }
  echo "$(grep -c 'SM Frequency' "$RESULTS/kernels.csv") kernels profiled"
}

case $1 in
  build | facts | tests | sanitizer | profile) "$1" ;;
  bench)
    bench ops
    GANKERNELS_CUDA_CLUSTERS=0 "$PYTHON" -m gankernels bench ops --op conditional_batch_norm \
      --csv "$RESULTS/without_clusters.csv"
    ;;
  steps) bench steps ;;
  tune) "$PYTHON" -m gankernels tune ;;
esac
