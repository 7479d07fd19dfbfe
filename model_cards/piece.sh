#!/usr/bin/env bash
# Make a model where a machine is lent for minutes at a time: train it, round it to fp16, measure that, and pack it up in
# files of at most 15 MiB. A call takes some nine minutes at most and goes on where the last one stood, until it says "whole".
#
#   there   bash model_cards/piece.sh OUT NAME RECIPE [train.py's flags]
#   here    (cd OUT && sha256sum --check NAME.sha256) && cat OUT/NAME.tar.* | tar x -C model_cards && piat card model_cards/NAME
#
# PIECE: seconds after which a call stops (540). AA: test images for AutoAttack (1000; the split must have them). PYTHON: the
# interpreter (python).
set -euo pipefail
out=$1 name=$2 run=runs/$2-fp32 half=runs/$2 python=${PYTHON:-python}
shift 2

left() { echo $((${PIECE:-540} - SECONDS)); }
again() { echo "$name: more to $1; the same command goes on" && exit 3; }
data() { "$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["piat"]["dataset"])' "$half/config.json"; }
measure() { # evaluate.py ends well when its time is spent, and says so
  local seconds && seconds=$(left)
  ((seconds > 0)) || again measure
  "$python" evaluate.py "$half" --dataset "$(data)" "$@" --time-budget "${seconds}s" --resume | tee "$half.log"
  ! grep -q "^the time budget" "$half.log" || again measure
}

if [ ! -d "$half" ]; then
  [ ! -e "$run/config.json" ] || set -- "$@" --resume
  code=0
  timeout --foreground --signal TERM "$(left)" "$python" train.py "$@" --output "$run" || code=$?
  [ "$code" != 124 ] || again train # it has saved its state
  [ "$code" = 0 ] || exit "$code"
  "$python" model_cards/halve.py "$run" "$half"
fi
measure --attacks clean pgd20 pgd100 mim20 cw20
[ ! -e "$half/model_best.safetensors" ] || measure --attacks clean pgd20 --checkpoint best
measure --attacks clean pgd20 aa --n "${AA:-1000}" --output "$half/aa${AA:-1000}"
mkdir -p "$out" && rm -f "$out/$name".tar.*
tar c -C runs "$name" | split --bytes 15M - "$out/$name.tar."
(cd "$out" && sha256sum "$name".tar.* >"$name.sha256")
echo "$name: whole"
