#!/usr/bin/env bash
# 16 GPUs on two nodes under Slurm, the paper's setting:
#   sbatch examples/launch_slurm.sh --config examples/from_scratch.yaml --save runs/alum --load runs/alum
# Slurm warns with SIGTERM 300 s before the time limit: the run finishes its iteration, saves and ends cleanly, and the
# job is requeued, until the run is finished or a job ends without a newer checkpoint than it found.
# 300 s must cover an iteration or two, the save (checkpoint size / speed of the file system, docs/scale.md; with
# --async-save perhaps the previous one, too) and a reserve of 60 s. torchrun, which passes the signal on, would by default kill
# its workers after 30 s: here it waits for SAVE_SECONDS (240) instead. Change both numbers together.
# IFACE names the network interface between the nodes, if their host names do not resolve to it.
#SBATCH --job-name=alum
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # a new store after every restart, without addresses of dead workers
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${SAVE_SECONDS:-240}  # torchrun kills workers this long after a SIGTERM (default: 30 s)
export TORCH_NCCL_DUMP_ON_TIMEOUT=${TORCH_NCCL_DUMP_ON_TIMEOUT:-1}  # the last collectives of each rank, /tmp/nccl_trace_rank_*
export TORCH_NCCL_TRACE_BUFFER_SIZE=${TORCH_NCCL_TRACE_BUFFER_SIZE:-2000}
if [ -n "${IFACE:-}" ]; then
    export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$IFACE} NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-$IFACE}
fi

save_folder() {
    while [ $# -gt 1 ]; do
        if [ "$1" = --save ]; then echo "$2"; return; fi
        shift
    done
    echo "error: --save DIR must be on the command line: whether the job is requeued depends on the contents of DIR." >&2
    return 2
}
newest() { cat "$SAVE/latest_checkpointed_iteration.txt" 2>/dev/null || echo none; }

SAVE=$(save_folder "$@")
mkdir -p "$SAVE"  # --load of an empty folder is a fresh start, of a missing one an error
FOUND=$(newest)
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
if srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node 8 --max-restarts 3 \
    --rdzv-backend c10d --rdzv-endpoint "$HEAD:29500" --rdzv-id "$SLURM_JOB_ID" \
    pretrain_bert_alum.py "$@"; then
    exit 0  # not reached by a run that was told to stop: torchrun fails on SIGTERM
fi
if [ "$(newest)" = "$FOUND" ]; then
    echo "error: the run failed without a newer checkpoint in $SAVE than $FOUND; the job is not requeued." >&2
    exit 1
fi
scontrol requeue "$SLURM_JOB_ID"
