#!/usr/bin/env bash
# All that only a machine with an NVIDIA GPU can tell, in one command and with no network. `gpu.sh --help` says how.
# What each stage does stands in gpu_stages.sh.
set -euo pipefail

BENCHMARKS=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
PYTHON=${PYTHON:-python3}

# In the order in which they run: what matters most comes first.
STAGES=(build facts tests bench steps sanitizer tune profile)
# Seconds that a stage is promised. It may take longer where those after it are left theirs.
declare -A PROMISED=([build]=90 [facts]=20 [tests]=100 [bench]=120 [steps]=60 [sanitizer]=60 [tune]=40 [profile]=40)
declare -A ABOUT=(
  [build]="the native extension with its CUDA part, for this GPU, into the source tree; installs nothing"
  [facts]="gankernels doctor, nvidia-smi, and the versions of everything"
  [tests]="pytest -m gpu"
  [bench]="gankernels bench ops"
  [steps]="gankernels bench steps"
  [sanitizer]="compute-sanitizer's memcheck and racecheck on a small case of every CUDA kernel"
  [tune]="gankernels tune, into OUT/cache"
  [profile]="Nsight Compute's (ncu) figures for every kernel at one shape"
)
SKIPPED=77 # the exit status of a stage that cannot run here, as automake has it

usage() {
  cat <<EOF
usage: benchmarks/gpu.sh [--seconds N] [--archive FILE] OUT [STAGE...]

Builds the CUDA part of gankernels for this machine's GPU, tests it, measures it, and writes all results under OUT.
Needs an NVIDIA GPU, and python3 (or \$PYTHON) with torch for CUDA, triton, pytest, rich, setuptools, cmake and ninja;
the CUDA part needs nvcc. No network. Changes no setting of the GPU.

  --seconds N     time for all stages together (default 530)
  --archive FILE  keep OUT as FILE (.tar.gz) too, written anew whenever a stage ends
  --list          print the names of the stages

OUT/STAGE/log is what a stage printed, the files beside it are its results, and OUT/summary.txt has a line for each
stage. A stage that fails does not stop the next. Exit status: 0 if none failed, 1 if one did, 2 on bad arguments.

stages, in this order, with the seconds that each is promised (default: all):
EOF
  for stage in "${STAGES[@]}"; do printf '  %-10s %3d  %s\n' "$stage" "${PROMISED[$stage]}" "${ABOUT[$stage]}"; done
}

refuse() {
  echo "gpu.sh: $1" >&2
  exit 2
}

has_gpu() {
  [[ $(nvidia-smi -L 2>/dev/null) == *GPU* ]] ||
    "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null
}

summarise() {
  printf '%-10s %7s  %-8s  %s\n' "$@" | tee -a "$OUT/summary.txt"
}

# run_stage STAGE LIMIT: the exit status tells whether it failed.
run_stage() {
  local stage=$1 limit=$2 folder=$OUT/$1 began=$SECONDS status=0 verdict
  if ((limit < 1)); then
    summarise "$stage" 0 "no time" "the $TOTAL s were used up before it"
    return 1
  fi
  if [[ -e $folder ]]; then mv "$folder" "$folder.before-$(date +%s%N)"; fi
  mkdir -p "$folder"
  # In the background, so that a signal to this script is dealt with at once. A stage that takes too long is interrupted
  # as if by Ctrl-C, on which pytest and the benchmark write what they have; a shell's background ignores that by default.
  RESULTS=$folder timeout --signal=INT --kill-after=15 "$limit" \
    env --default-signal=INT bash "$BENCHMARKS/gpu_stages.sh" "$stage" </dev/null >"$folder/log" 2>&1 &
  child=$!
  wait "$child" || status=$?
  case $status in
    0) verdict="ok" ;;
    "$SKIPPED") verdict="skipped" ;;
    124 | 137) verdict="too long" ;;
    *) verdict="failed" ;;
  esac
  echo "$status" >"$folder/status"
  summarise "$stage" "$((SECONDS - began))" "$verdict" "$(grep -v '^ *$' "$folder/log" | tail -n 1 | cut -c1-150)"
  ((status == 0 || status == SKIPPED))
}

archive() {
  if [[ -n $ARCHIVE ]]; then
    tar -czf "$ARCHIVE.new" -C "$OUT" .
    mv "$ARCHIVE.new" "$ARCHIVE"
  fi
}

OUT="" ARCHIVE="" TOTAL=530
selected=()
while (($#)); do
  case $1 in
    -h | --help) usage && exit 0 ;;
    --list) printf '%s\n' "${STAGES[@]}" && exit 0 ;;
    --seconds | --archive)
      (($# > 1)) || refuse "$1: got nothing, expected a value"
      if [[ $1 == --seconds ]]; then TOTAL=$2; else ARCHIVE=$(realpath -m "$2"); fi
      shift
      ;;
    -*) refuse "got $1; --help says what there is" ;;
    *)
      if [[ -z $OUT ]]; then
        OUT=$(realpath -m "$1")
      elif [[ -n ${PROMISED[$1]:-} ]]; then
        selected+=("$1")
      else
        refuse "STAGE: got $1, expected one of ${STAGES[*]}"
      fi
      ;;
  esac
  shift
done
[[ -n $OUT ]] || refuse "OUT: got nothing, expected a folder for the results; --help says more"
[[ $TOTAL =~ ^[1-9][0-9]*$ ]] || refuse "--seconds: got $TOTAL, expected a whole number of seconds"
has_gpu || refuse "no NVIDIA GPU here: neither nvidia-smi nor $PYTHON's torch sees one"
mkdir -p "$OUT" 2>/dev/null || refuse "OUT: got $OUT, expected a folder that can be written"
((${#selected[@]})) || selected=("${STAGES[@]}")

export PYTHON SKIPPED PYTHONUNBUFFERED=1 GANKERNELS_CACHE="$OUT/cache"
child=""
trap '[[ -z $child ]] || kill "$child" 2>/dev/null; exit 130' INT TERM
any_failed=0 owed=0
for stage in "${selected[@]}"; do owed=$((owed + PROMISED[$stage])); done
: >"$OUT/summary.txt"
summarise stage seconds status "last line of its log"
for stage in "${selected[@]}"; do
  owed=$((owed - PROMISED[$stage])) left=$((TOTAL - SECONDS))
  limit=$((left - owed > PROMISED[$stage] ? left - owed : PROMISED[$stage]))
  run_stage "$stage" "$((limit < left ? limit : left))" || any_failed=1
  archive
done
exit "$any_failed"
