#!/usr/bin/env bash
# What an installed package must do, in a folder of its own: bash tests/smoke.sh BIN, the environment's programs.
set -euo pipefail
bin=$1 folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"$bin/piat" --help
"$bin/piat" train digits --epochs 2 --clean-epochs 1 --train-size 256 --holdout 32 --output run
"$bin/piat" evaluate run --attacks clean pgd5 --n 50
"$bin/piat" card run
"$bin/piat" figures run --only epochs scatter
"$bin/piat" report run --only epochs
"$bin/python" - <<'END'
import piat_hub
import torch

model = piat_hub.from_pretrained("run")
assert model(torch.rand(2, 1, 8, 8)).shape == (2, 10)
assert "site-packages" in piat_hub.__file__, piat_hub.__file__
END
echo "the installed package works"
