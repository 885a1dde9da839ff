#!/usr/bin/env bash
# Make the weights that ship with the package, from nothing: worlds, backbone, features, SDST. About three hours on 2 cores.
# Every step goes on where it was interrupted, so this can be called again.
set -eu
cd "$(dirname "$0")/.."
sidelight="${SIDELIGHT:-.venv/bin/sidelight}"
python="${PYTHON:-.venv/bin/python}"

"$sidelight" shapes --out data/shapes/train --videos 700 --seed 0 --split train
"$sidelight" shapes --out data/shapes/val --videos 60 --seed 0 --split val
[ -e runs/shapes-backbone/model.safetensors ] || "$sidelight" pretrain shapes-backbone
taught=runs/shapes-backbone-visibility
[ -e "$taught/model.safetensors" ] || "$sidelight" pretrain shapes-backbone-visibility
mkdir -p src/sidelight/weights/shapes-backbone
cp "$taught/model.safetensors" "$taught/config.json" src/sidelight/weights/shapes-backbone/
"$sidelight" train shapes --resume
"$sidelight" train shapes-finetune --resume
"$python" - <<'PY'
from sidelight.training.checkpoint import Checkpoint
Checkpoint.from_pretrained("runs/shapes-finetune/best").save_pretrained("src/sidelight/weights/shapes", half=True)
PY
