#!/usr/bin/env bash
# What `make demo` runs: a class-conditional GAN learns real pictures, then shows and judges what it learnt.
# Safe to run again: what is done is not done twice.   usage: demo.sh BIN, the environment's folder of programs
set -euo pipefail
bin=$1
run=runs/demo
seconds=$SECONDS

if [ -d /usr/share/datasets/fashion-mnist ] || [ -n "${GANKERNELS_DATA:-}" ]; then
  data=fashion-mnist
elif command -v apt-get >/dev/null && [ "$(id -u)" = 0 ] &&
  { apt-get update -qq && apt-get install -y -qq dataset-fashion-mnist; } >/dev/null 2>&1; then
  echo "demo: installed the Debian package dataset-fashion-mnist"
  data=fashion-mnist
else
  echo "demo: no Fashion-MNIST (apt-get install dataset-fashion-mnist brings it); taking scikit-learn's digits"
  data=digits
fi

"$bin/gankernels" doctor
if [ -e "$run/finished" ]; then
  echo "demo: $run is trained already; remove it to train again"
else
  # The preset's networks are the paper's. These are small enough for two cores, and wide where the pictures are small:
  # less than four minutes show 84,000 pictures to them.
  options=(--images 84000 --n-dis 1 --g.ch 32 --g.widths 4 2 1 0.5 --d.ch 32 --d.widths 0.5 1 2 2)
  options+=(--g.lr 4e-4 --d.lr 4e-4 --ema.kimg 2 --tick.images 12000)
  "$bin/gankernels" train --preset sngan-32 --data "$data" --out "$run" --resume "${options[@]}"
  touch "$run/finished"
fi
"$bin/gankernels" sample --run "$run" --out "$run/samples.png"
"$bin/gankernels" evaluate --run "$run" --data "$data" --metrics accuracy,fd
"$bin/python" - "$run/stats.jsonl" <<'EOF'
import json, sys

last = json.loads(open(sys.argv[1]).readlines()[-1])
print(f"demo: {last['images']:,} images in {last['seconds']:.0f} s of training, {last['images_per_second']:.0f} images/s")
EOF
echo "demo: $((SECONDS - seconds)) s in all; the pictures, a row for each class, are in $run/samples.png"
