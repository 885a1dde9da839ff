#!/usr/bin/env bash
# Make the weights that ship with the package: worlds, backbone, features and SDST. It takes about three hours on 2 cores.
# After an interruption, call it again: each step continues or is skipped.
set -eu
cd "$(dirname "$0")/.."
sidelight="${SIDELIGHT:-.venv/bin/sidelight}"
python="${PYTHON:-.venv/bin/python}"

"$sidelight" shapes --out data/shapes/train --videos 700 --seed 0 --split train
"$sidelight" shapes --out data/shapes/val --videos 60 --seed 0 --split val
[ -e runs/shapes-backbone/model.safetensors ] || "$sidelight" pretrain shapes-backbone
backbone=runs/shapes-backbone-visibility
[ -e "$backbone/model.safetensors" ] || "$sidelight" pretrain shapes-backbone-visibility
mkdir -p src/sidelight/weights/shapes-backbone
cp "$backbone/model.safetensors" "$backbone/config.json" src/sidelight/weights/shapes-backbone/
"$sidelight" train shapes --resume
"$sidelight" train shapes-finetune --resume
"$python" - <<'PY'
from sidelight.training.checkpoint import Checkpoint
Checkpoint.from_pretrained("runs/shapes-finetune/best").save_pretrained("src/sidelight/weights/shapes", half=True)
PY
