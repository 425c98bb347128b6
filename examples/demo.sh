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
  "$bin/gankernels" train --preset sngan-32 --data "$data" --out "$run" --resume $DEMO_OPTIONS
  touch "$run/finished"
fi
"$bin/gankernels" sample --run "$run" --out "$run/samples.png"
"$bin/gankernels" evaluate --run "$run" --data "$data" --metrics accuracy,fd
echo "demo: $((SECONDS - seconds)) s; the pictures, a row for each class, are in $run/samples.png"
