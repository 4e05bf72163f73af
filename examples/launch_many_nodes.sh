#!/usr/bin/env bash
# Run on every node with the same HEAD (host name of one of them) and NODES; --save must be on a shared file system.
#   mkdir -p runs/alum  # --load of an empty folder is a fresh start, of a missing one an error
#   HEAD=node1 NODES=2 examples/launch_many_nodes.sh --config examples/from_scratch.yaml --save runs/alum --load runs/alum
# IFACE names the network interface between the nodes, if their host names do not resolve to it (docs/scale.md).
# SAVE_SECONDS (240) is the time that workers told to stop have for their last checkpoint.
set -euo pipefail
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # a new store after every restart, without addresses of dead workers
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${SAVE_SECONDS:-240}  # torchrun kills workers this long after a SIGTERM (default: 30 s)
export TORCH_NCCL_DUMP_ON_TIMEOUT=${TORCH_NCCL_DUMP_ON_TIMEOUT:-1}  # the last collectives of each rank, /tmp/nccl_trace_rank_*
export TORCH_NCCL_TRACE_BUFFER_SIZE=${TORCH_NCCL_TRACE_BUFFER_SIZE:-2000}
if [ -n "${IFACE:-}" ]; then
    export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$IFACE} NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-$IFACE}
fi
GPUS=${GPUS:-8}
exec torchrun --nnodes "$NODES" --nproc-per-node "$GPUS" --max-restarts 3 \
    --rdzv-backend c10d --rdzv-endpoint "$HEAD:${PORT:-29500}" --rdzv-id "${RUN_ID:-alum}" \
    pretrain_bert_alum.py "$@"
