#!/usr/bin/env bash
# Run on every node with the same HEAD (host name of one of them) and NODES; --save must be on a shared file system.
#   mkdir -p runs/alum  # --load of an empty folder is a fresh start, of a missing one an error
#   HEAD=node1 NODES=2 examples/launch_many_nodes.sh --config examples/from_scratch.yaml --save runs/alum --load runs/alum
set -euo pipefail
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # a new store after every restart, without addresses of dead workers
GPUS=${GPUS:-8}
exec torchrun --nnodes "$NODES" --nproc-per-node "$GPUS" --max-restarts 3 \
    --rdzv-backend c10d --rdzv-endpoint "$HEAD:${PORT:-29500}" --rdzv-id "${RUN_ID:-alum}" \
    pretrain_bert_alum.py "$@"
