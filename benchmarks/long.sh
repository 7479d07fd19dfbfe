#!/usr/bin/env bash
# The trainings of docs/studies.md that overfit: `bash benchmarks/long.sh OUT [SEED…]` (0 1), WIDTH (8) of them at a time, one
# thread each. A call stops after LIMIT seconds (540), the same command goes on, until it says "all done". Then OUT/ARM-SEED are
# the runs, both checkpoints measured.
#
# DATASET: CIFAR-10 as images. FLAGS: more of train.py's (--mixed-precision bf16 --compile). N: test images (2000). EPOCHS, SIZE
# and HOLDOUT (120, 2500, 300) make it smaller, to rehearse. PYTHON: the interpreter (python).
set -euo pipefail
cd "$(dirname "$0")/.."
: "${DATASET:?name the images of CIFAR-10 in DATASET}"
export out=$1 python=${PYTHON:-python} ends=$(($(date +%s) + ${LIMIT:-540})) PYTHONPATH=$PWD OMP_NUM_THREADS=1
export size="--train-size ${SIZE:-2500} --holdout ${HOLDOUT:-300} --epochs ${EPOCHS:-120}" flags=${FLAGS:---mixed-precision bf16 --compile} n=${N:-2000}
shift
mkdir -p "$out"

one() { # ARM-SEED FLAGS…: what is left of it; 1 if that is more than the time allows
  local run=$out/$1 resume=""
  shift
  [ ! -e "$run/config.json" ] || resume=--resume
  [ -e "$run/README.md" ] || left "$run.log" "$python" train.py resnet20-cifar10 --dataset "$DATASET" $size $flags "$@" --output "$run" $resume
  for checkpoint in last best; do
    [ -e "$run.$checkpoint" ] || left "$run.log" "$python" evaluate.py "$run" --dataset "$DATASET" --attacks clean pgd20 cw20 \
      --n "$n" --checkpoint "$checkpoint" --resume
    touch "$run.$checkpoint"
  done
}
left() { # LOG COMMAND…: within the call's time
  local log=$1 seconds=$((ends - $(date +%s))) code=0 && shift
  ((seconds > 0)) || return 1
  timeout --foreground --signal TERM "$seconds" "$@" >>"$log" 2>&1 || code=$?
  [ "$code" = 0 ] || [ "$code" = 124 ] || { tail -n 1 "$log" && return 255; } # at 255 xargs begins no other
  [ "$code" = 0 ]
}
export -f one left

for seed in ${*:-0 1}; do
  sed "s/\$/ --seed $seed/; s/ /-$seed /" <<'ARMS'
pgd_at-none --method pgd_at --interpolation none
pgd_at-piat --method pgd_at
nmse-piat --method nmse
nmse-none --method nmse --interpolation none
pgd_at-ema --method pgd_at --interpolation none --ema 0.995
trades-none --method trades --interpolation none
trades-piat --method trades
ARMS
done | xargs -P "${WIDTH:-8}" -L 1 bash -euc 'one "$@"' one || {
  [ $? != 124 ] || { echo "long.sh: one of them failed, as its line above says" && exit 1; }
  echo "long.sh: more to do; the same command goes on" && exit 3
}
echo "long.sh: all done"
