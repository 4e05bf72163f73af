#!/usr/bin/env bash
# All GPUs of one machine; options after the script's name go to the run:
#   mkdir -p runs/alum  # --load of an empty folder is a fresh start, of a missing one an error
#   examples/launch_one_node.sh --config examples/from_scratch.yaml --save runs/alum --load runs/alum
# A dead process makes torchrun restart all of them, up to 3 times, from the last checkpoint (--load).
set -euo pipefail
GPUS=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}
exec torchrun --standalone --nproc-per-node "$GPUS" --max-restarts 3 pretrain_bert_alum.py "$@"
