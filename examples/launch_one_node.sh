#!/usr/bin/env bash
# All GPUs of one machine; options after the script's name go to the run:
#   mkdir -p runs/alum  # --load of an empty folder is a fresh start, of a missing one an error
#   examples/launch_one_node.sh --config examples/from_scratch.yaml --save runs/alum --load runs/alum
# A dead process makes torchrun restart all of them, up to 3 times, from the last checkpoint (--load).
set -euo pipefail
GPUS=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${SAVE_SECONDS:-240}  # torchrun kills workers this long after a SIGTERM (default: 30 s)
export TORCH_NCCL_DUMP_ON_TIMEOUT=${TORCH_NCCL_DUMP_ON_TIMEOUT:-1}  # the last collectives of each rank, /tmp/nccl_trace_rank_*
export TORCH_NCCL_TRACE_BUFFER_SIZE=${TORCH_NCCL_TRACE_BUFFER_SIZE:-2000}
exec torchrun --standalone --nproc-per-node "$GPUS" --max-restarts 3 pretrain_bert_alum.py "$@"
