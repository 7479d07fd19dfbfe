#!/usr/bin/env bash
# All that a borrowed CUDA device is worth, most valuable first: `bash benchmarks/cuda.sh OUT [PART…]`, PART being tests, step,
# attacks, long, model or graphs (all of them). Each piece of a part is done once: a call stops after LIMIT seconds (540) or at
# a failure, and the same command goes on behind it, until it says "all done".
#
# DATASET: CIFAR-10 as images, for attacks, long and model (else they are left out, and that is said). PEERS: a folder of the
# authors' checkouts TRADES, MART and GAIRAT, for the ratios of step; BATCH: images of its updates (128). DEVICE=cpu, BACKBONES,
# MODES, ROUNDS, N: to rehearse it in minutes without a device. PYTHON: the interpreter (python).
set -euo pipefail
cd "$(dirname "$0")/.."
out=$1 && shift
parts=${*:-tests step attacks long model graphs}
python=${PYTHON:-python} device=${DEVICE:-cuda} limit=${LIMIT:-540}
export PYTHONPATH=$PWD DEVICE=$device
mkdir -p "$out/done"

once() { # NAME COMMAND…: run it unless it has ended well before, as long as the call has time
  local name=$1 left=$((limit - SECONDS)) code=0 && shift
  [ ! -e "$out/done/$name" ] || return 0
  ((left > 20)) || { echo "cuda.sh: the call's time is spent before $name; the same command goes on" && exit 3; }
  echo "== $name"
  timeout --foreground --signal TERM "$left" "$@" >"$out/$name.log" 2>&1 || code=$?
  tail -n 12 "$out/$name.log"
  [ "$code" = 0 ] || { echo "cuda.sh: $name ended with $code; the same command goes on there" && exit "$code"; }
  touch "$out/done/$name"
}

has_data() { [ -n "${DATASET:-}" ] || { echo "cuda.sh: $1 is left out: name CIFAR-10's images in DATASET" && return 1; }; }

tests() { once tests "$python" -m pytest -n 4 -m cuda -p no:cacheprovider -ra --durations=0 tests/test_cuda.py; }

step() { # plain and compiled, beside the authors' code
  local mode backbone
  for mode in ${MODES:-bf16:eager bf16:default no:eager no:default}; do
    for backbone in ${BACKBONES:-resnet18 wrn_32_10}; do
      local precision=${mode%:*} compile=${mode#*:}
      local flags=(--method trades --backbone "$backbone" --mixed-precision "$precision" --rounds "${ROUNDS:-7}")
      [ "$compile" = eager ] || flags+=(--compile "$compile")
      [ -z "${PEERS:-}" ] || flags+=(--peer "$PEERS/TRADES")
      [ -z "${BATCH:-}" ] || flags+=(--batch-size "$BATCH")
      once "step-$backbone-$precision-$compile" "$python" benchmarks/step.py "${flags[@]}" --output "$out/step.jsonl"
    done
  done
}

attacks() { # seconds stand in each results.json beside its attack; searched in fp32 and in bf16
  has_data attacks || return 0
  local attack precision
  for precision in fp32 bf16; do
    for attack in aa fast malt; do
      once "attacks-$attack-$precision" "$python" evaluate.py model_cards/resnet20-cifar10-jpeg --dataset "$DATASET" --n "${N:-1000}" \
        --attacks clean "$attack" --search-precision "$precision" --output "$out/attacks-$attack-$precision" --resume
    done
  done
}

long() { # side by side: one small network alone leaves a GPU idle
  has_data long || return 0
  LIMIT=$((limit - SECONDS - 20)) PYTHON=$python once long bash benchmarks/long.sh "$out/long"
}

model() { # piece.sh saves what it has when its own time is spent
  has_data model || return 0
  PIECE=$((limit - SECONDS - 20)) PYTHON=$python once model bash model_cards/piece.sh "$out" resnet18-cifar10-jpeg resnet18-cifar10 \
    --dataset "$DATASET" --mixed-precision bf16 --compile ${MODEL_FLAGS:-}
}

graphs() { MODES=bf16:reduce-overhead step; } # the attack as a CUDA graph, which no GPU has seen yet

for part in $parts; do "$part"; done
echo "cuda.sh: all done"
